"""The tables of batchkit, as Alembic and the statements see them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Enum,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    false,
)
from sqlalchemy.dialects import mysql

from batchkit.states import PartitionKind, PartitionState, Request, RunState
from batchkit.store.clock import UtcTime

#: Where Alembic keeps the version of these tables, beside a user's own `alembic_version`.
VERSION_TABLE = "batchkit_version"

_ID = String(26)
_NAME = String(255)
#: A SHA-256 in hexadecimal digits: however long what it is of, and the same wherever text is compared in another way.
_DIGEST = String(64)
#: SQLite numbers rows by itself only where the type is exactly INTEGER.
_SERIAL = BigInteger().with_variant(Integer(), "sqlite")
#: MySQL's TEXT ends at 64 kB, and its FLOAT has 4 bytes.
LONG_TEXT = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
DOUBLE = Float().with_variant(mysql.DOUBLE(asdecimal=False), "mysql", "mariadb")

#: How MySQL keeps a table: transactions at all, any character, keys that differ by case as everywhere else, and
#: indexes of names of 255 characters, for which the row formats that a server may still be set to have no room.
MYSQL_OPTIONS: dict[str, Any] = {
    f"{name}_{option}": value
    for name in ("mysql", "mariadb")
    for option, value in {
        "engine": "InnoDB",
        "charset": "utf8mb4",
        "collate": "utf8mb4_bin",
        "row_format": "DYNAMIC",
    }.items()
}


@dataclass(frozen=True)
class Tables:
    """The tables of one schema."""

    metadata: MetaData
    run: Table
    partition: Table
    transition: Table
    failure: Table
    worker: Table


def _words(kind: type[RunState | Request | PartitionState | PartitionKind]) -> Enum:
    # Plain text in the database: a new word must not need a change of type there.
    return Enum(
        kind,
        native_enum=False,
        create_constraint=False,
        length=16,
        values_callable=lambda words: [word.value for word in words],
    )


@functools.cache
def tables(schema: str | None = None) -> Tables:
    """
    Give the tables in *schema*; their metadata can be part of a user's own Alembic environment.

    The checkpoint updates one partition row over and over. No index may name a column whose value it changes: on
    PostgreSQL that would end heap-only updates, and the table would grow with every chunk.
    """
    metadata = MetaData(schema=schema)
    run = Table(
        "batchkit_run",
        metadata,
        Column("id", _ID, primary_key=True),
        Column("job", _NAME, nullable=False),
        Column("params", LONG_TEXT, nullable=False),
        Column("queue", _NAME, nullable=False),
        Column("state", _words(RunState), nullable=False),
        Column("requested", _words(Request)),
        # Raised to lock the row before anything else of the run is looked at.
        Column("version", BigInteger, nullable=False),
        Column("delivery", String(16), nullable=False),
        Column("total", BigInteger),
        Column("total_is_estimate", Boolean, nullable=False),
        Column("identity", LONG_TEXT),
        Column("fingerprint", LONG_TEXT),
        Column("waiting_reason", LONG_TEXT),
        Column("result", LONG_TEXT),
        Column("error", LONG_TEXT),
        Column("interruptions", Integer, nullable=False),
        Column("rerun_of", _ID),
        # The run whose failures this one tries again: they are its items.
        Column("failures_of", _ID),
        # How often a chunk was tried again, and why the last time.
        Column("retries", Integer, nullable=False, server_default="0"),
        Column("retry_reason", LONG_TEXT),
        # Names the start: of the message that made it, or as a user did. A start of the same name joins the run.
        Column("start_key", _NAME),
        # One unfinished run has a unique key: it stands in `active_key` while the run has not ended, and nowhere else.
        Column("unique_key", _DIGEST),
        Column("active_key", _DIGEST),
        # Where it begins, and how many items it works at most.
        Column("start_after", LONG_TEXT),
        Column("item_limit", BigInteger),
        # Whether every chunk is rolled back.
        Column("is_dry_run", Boolean, nullable=False, server_default=false()),
        # Whether the failures that it tries again are those, too, of which nobody knows whether they happened.
        Column("retries_in_doubt", Boolean, nullable=False, server_default=false()),
        # Into how many partitions it is to be cut, and how many workers it may have at a time.
        Column("partitions", Integer, nullable=False, server_default="1"),
        Column("max_workers", Integer),
        # When a worker last came for some of it: of several runs that wait, the one goes first that had none longest.
        Column("turn_at", UtcTime),
        # Until when a throttle holds all of its partitions off.
        Column("held_until", UtcTime),
        # That message, as its queue wrote it down, so that it can be sent again.
        Column("message", LONG_TEXT),
        # When to send the message of an ended run again; nothing is left to announce where this is empty.
        Column("announce_at", UtcTime),
        Column("announcing_until", UtcTime),
        # When the next item of a throttled run may begin: what is before that is reserved.
        Column("next_item_at", UtcTime),
        Column("created_at", UtcTime, nullable=False),
        Column("planned_at", UtcTime),
        Column("started_at", UtcTime),
        Column("finished_at", UtcTime),
        # When its history and its failures were removed; what is left is there for its start key.
        Column("purged_at", UtcTime),
        Index("ix_batchkit_run_state", "state", "id"),
        Index("ix_batchkit_run_job", "job", "id"),
        Index("ix_batchkit_run_start_key", "start_key", unique=True),
        Index("ix_batchkit_run_active_key", "active_key", unique=True),
        Index("ix_batchkit_run_announce", "announce_at"),
        **MYSQL_OPTIONS,
    )
    partition = Table(
        "batchkit_partition",
        metadata,
        Column("run_id", _ID, nullable=False),
        Column("number", Integer, nullable=False),
        Column("kind", _words(PartitionKind), nullable=False),
        Column("state", _words(PartitionState), nullable=False),
        Column("cursor", LONG_TEXT),
        Column("until", LONG_TEXT),
        Column("done", BigInteger, nullable=False),
        Column("failed", BigInteger, nullable=False),
        # Counts checkpoints: whether a commit whose reply was lost happened is seen by it.
        Column("seq", BigInteger, nullable=False),
        Column("carry", LONG_TEXT, nullable=False),
        Column("chunk_size", Integer),
        Column("rate", DOUBLE),
        Column("fence", BigInteger, nullable=False),
        # A random token beside the fence: a database that fails over asynchronously can give a number twice.
        Column("holder", String(32)),
        Column("worker", _NAME),
        Column("lease_seconds", DOUBLE),
        Column("lease_expires_at", UtcTime),
        Column("claims", Integer, nullable=False),
        Column("due_at", UtcTime, nullable=False),
        # Which wake-up a worker may claim with: a claim uses it up, so that copies of a message do nothing.
        Column("wake_no", BigInteger, nullable=False, server_default="0"),
        # When a wake-up that nobody has claimed with is sent again.
        Column("resend_at", UtcTime),
        # Of several partitions: how long that was from when it was sent last; empty until it is sent.
        Column("patience_seconds", DOUBLE),
        # At most once: the items that the function is called for right now, and how many were left so by a crash.
        Column("doubt", LONG_TEXT),
        Column("in_doubt", BigInteger, nullable=False, server_default="0"),
        # What is known of a place that workers died at, as JSON; empty nearly everywhere.
        Column("suspicion", LONG_TEXT),
        # Since when its holder has it, and when that has moved it on last; a renewal of the lease is no sign of that.
        Column("claimed_at", UtcTime),
        Column("checkpointed_at", UtcTime),
        # How long a chunk is expected to take, how long its holder may go on after a signal to stop (empty where nobody
        # said), and whether the holder must not be stopped at all.
        Column("chunk_seconds", DOUBLE),
        Column("working_seconds", DOUBLE),
        Column("is_protected", Boolean, nullable=False, server_default=false()),
        # Which partition's range it was cut from while that was worked, and into how many more others want it cut.
        Column("cut_from", Integer),
        Column("cuts_wanted", Integer, nullable=False, server_default="0"),
        PrimaryKeyConstraint("run_id", "number"),
        ForeignKeyConstraint(["run_id"], [run.c.id], ondelete="CASCADE"),
        Index("ix_batchkit_partition_due", "state", "due_at"),
        # Finds what is held among all that is not; a checkpoint does not change it.
        Index("ix_batchkit_partition_worker", "worker"),
        **MYSQL_OPTIONS,
    )
    transition = Table(
        "batchkit_transition",
        metadata,
        Column("id", _SERIAL, primary_key=True, autoincrement=True),
        Column("run_id", _ID, ForeignKey(run.c.id, ondelete="CASCADE"), nullable=False),
        Column("at", UtcTime, nullable=False),
        Column("before", _words(RunState)),
        Column("after", _words(RunState), nullable=False),
        Column("reason", LONG_TEXT, nullable=False),
        Column("worker", _NAME),
        Index("ix_batchkit_transition_run", "run_id", "id"),
        **MYSQL_OPTIONS,
    )
    failure = Table(
        "batchkit_failure",
        metadata,
        Column("id", _SERIAL, primary_key=True, autoincrement=True),
        Column("run_id", _ID, ForeignKey(run.c.id, ondelete="CASCADE"), nullable=False),
        Column("partition", Integer, nullable=False),
        # The item is the one behind `after`, and `cursor` is its own.
        Column("after", LONG_TEXT),
        Column("cursor", LONG_TEXT, nullable=False),
        Column("item", LONG_TEXT, nullable=False),
        Column("error_type", _NAME, nullable=False),
        Column("message", LONG_TEXT, nullable=False),
        Column("traceback", LONG_TEXT, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("failed_at", UtcTime, nullable=False),
        # The run that tried it again last, and when that succeeded.
        Column("retried_by", _ID),
        Column("resolved_at", UtcTime),
        # Whether it is not known to have failed: its worker ended in the middle of it.
        Column("in_doubt", Boolean, nullable=False, server_default=false()),
        Index("ix_batchkit_failure_run", "run_id", "id"),
        Index("ix_batchkit_failure_retried_by", "retried_by", "id"),
        **MYSQL_OPTIONS,
    )
    worker = Table(
        "batchkit_worker",
        metadata,
        # Its main process, which is the one that a platform signals.
        Column("name", _NAME, primary_key=True),
        # What a platform starts and stops as one.
        Column("instance", _NAME, nullable=False),
        Column("kind", String(16), nullable=False),
        # A JSON list of their names; empty where it works for all.
        Column("queues", LONG_TEXT),
        Column("slots", Integer, nullable=False),
        Column("started_at", UtcTime, nullable=False),
        Column("seen_at", UtcTime, nullable=False),
        Column("draining_at", UtcTime),
        **MYSQL_OPTIONS,
    )
    return Tables(
        metadata=metadata, run=run, partition=partition, transition=transition, failure=failure, worker=worker
    )
