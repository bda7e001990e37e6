"""A kit that works runs at once, and a ledger that chunks write into."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, create_engine, func, insert, select, update
from sqlalchemy.orm import Session

from batchkit import BatchKit, Chunk, Run, batched
from batchkit.queues import InlineQueue

ledger = Table("ledger", MetaData(), Column("item", Integer, nullable=False))
_names = itertools.count()


class Ledger:
    """The items that were done, as the database tells it."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        ledger.create(self.engine)

    def items(self) -> list[int]:
        """Give all items, in order."""
        with self.engine.connect() as connection:
            return list(connection.execute(select(ledger.c.item).order_by(ledger.c.item)).scalars())

    def count(self) -> int:
        """Count the items."""
        with self.engine.connect() as connection:
            return int(connection.execute(select(func.count()).select_from(ledger)).scalar_one())


def write(chunk: Chunk[int]) -> None:
    """Write a chunk's items into the ledger."""
    chunk.connection.execute(insert(ledger), [{"item": item} for item in chunk])


def sleep(connection: Connection, seconds: float) -> None:
    """Keep the database's server busy."""
    function = {"postgresql": func.pg_sleep, "mysql": func.sleep}[connection.dialect.name]
    connection.execute(select(function(seconds)))


class Watched:
    """The numbers from 0, and somebody who is told of each read, in its transaction."""

    def __init__(self, stop: int, on_read: Callable[[int | None], object]) -> None:
        self._stop = stop
        self._on_read = on_read

    def read(self, after: int | None, limit: int, session: Session) -> list[tuple[int, int]]:
        """Read."""
        session.connection().exec_driver_sql("SELECT 1")
        self._on_read(after)
        first = 0 if after is None else after + 1
        return [(item, item) for item in range(first, min(first + limit, self._stop))]


def let_leases_run_out(kit: BatchKit, run: Run) -> None:
    """Let the leases on a run be over, and nobody have seen to that."""
    partition = kit.metadata.tables["batchkit_partition"]
    over = datetime(2020, 1, 1, tzinfo=timezone.utc)
    engine = kit._store.database.engine  # noqa: SLF001  there is no public way to a lease
    with engine.begin() as tx:
        held = (partition.c.run_id == run.id, partition.c.holder.is_not(None))
        tx.execute(update(partition).where(*held).values(lease_expires_at=over))


def end_leases(kit: BatchKit, run: Run) -> None:
    """Let the leases on a run be ended by somebody who knows that their workers are dead."""
    for each in run.partitions():
        if each.worker is not None:
            kit._store.leases.end_leases_of(each.worker, run.id)  # noqa: SLF001  Celery and RQ know it


@pytest.fixture
def kit(database_url: str) -> Iterator[BatchKit]:
    """Give a kit on each database in turn."""
    made = BatchKit(database_url, queue=InlineQueue())
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def done(database_url: str) -> Iterator[Ledger]:
    """Give the ledger."""
    made = Ledger(database_url)
    yield made
    made.engine.dispose()


def job(source: Any, function: Callable[..., None], **options: Any) -> Any:
    """Make a job with a name of its own."""
    return batched(source, name=f"tests.job{next(_names)}", **options)(function)
