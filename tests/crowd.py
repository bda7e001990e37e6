"""Databases in which much is going on, written in bulk: many runs, many partitions, long histories."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Integer, String, Table, and_, case, cast, func, insert, literal, null, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import literal_column

from batchkit.model import run_id_at
from batchkit.starting_keys import KEYS_OF_USERS
from batchkit.states import PartitionKind, PartitionState, RunState
from batchkit.store import Store

JOBS = 10
_DAY_SECONDS = 86_400.0
_LONG_AGO_SECONDS = 60 * _DAY_SECONDS
_TIME_DIGITS = 10
_RUN_DIGITS = 14
#: One run of this many that has ended failed, and has left its partition open ...
_FAILED_EVERY = 20
#: ... and one of this many was purged, and stays for its key.
_KEPT_EVERY = 10
_UNDER_WAY = 4

_SERIES = {
    "postgresql": "(SELECT generate_series(0, {last}) AS {name})",
    "sqlite": (
        "(WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < {last}) SELECT n AS {name} FROM s)"
    ),
    "mysql": "(SELECT seq AS {name} FROM seq_0_to_{last})",
}


@dataclass(frozen=True)
class Crowd:
    """
    What is added to a database.

    Each unfinished run has one partition that a worker holds, a few whose wake-ups are under way, and others that wait.
    """

    #: two letters, which no other crowd of this database has
    tag: str
    unfinished: int = 0
    partitions: int = 1
    finished: int = 0
    failures: int = 0
    transitions: int = 0

    def unfinished_run(self, number: int) -> str:
        """Give the id of one of the unfinished runs."""
        return f"{_now_prefix()}{self.tag}{number:0{_RUN_DIGITS}}"

    def finished_run(self, number: int) -> str:
        """Give the id of one of those that have ended."""
        return f"{_old_prefix()}{self.tag}{number:0{_RUN_DIGITS}}"


_STARTED = time.time()


def _now_prefix() -> str:
    return run_id_at(_STARTED)[:_TIME_DIGITS]


def _old_prefix() -> str:
    return run_id_at(_STARTED - _LONG_AGO_SECONDS)[:_TIME_DIGITS]


def fill(store: Store, crowd: Crowd) -> None:
    """Write a crowd, in one transaction for each kind of rows."""
    writer = _Writer(store, crowd)
    for step in (writer.unfinished, writer.finished, writer.failures, writer.transitions):
        with store.database.transaction() as tx:
            if tx.dialect.name == "postgresql":
                # That each row's run is there is known here, and looking it up ten million times takes long.
                tx.exec_driver_sql("SET LOCAL session_replication_role = replica")
            step(tx)


def analyze(store: Store) -> None:
    """Have the database count what is in its tables, as each does by itself after a while."""
    names = ("run", "partition", "transition", "failure")
    with store.database.reading() as connection:
        for name in names:
            command = "ANALYZE TABLE" if connection.dialect.name == "mysql" else "ANALYZE"
            connection.exec_driver_sql(f"{command} batchkit_{name}")


class _Writer:
    def __init__(self, store: Store, crowd: Crowd) -> None:
        self._tables = store.database.tables
        self._clock = store.database.clock
        self._dialect = store.database.engine.dialect.name
        self._crowd = crowd

    def unfinished(self, tx: Connection) -> None:
        crowd, n, m = self._crowd, _n("n"), _n("m")
        if not crowd.unfinished:
            return
        run_id = self._id(crowd.unfinished_run(0), n)
        self._insert(
            tx,
            self._tables.run,
            {
                **self._run(run_id),
                "state": _word(RunState.RUNNING),
                "partitions": literal(crowd.partitions),
                "started_at": self._at(-3600),
                "turn_at": self._at(-60, n * 0.001),
                "planned_at": self._at(-3600),
            },
            n=crowd.unfinished,
        )
        is_held, is_under_way = m == 0, and_(m > 0, m <= _UNDER_WAY)
        self._insert(
            tx,
            self._tables.partition,
            {
                **self._partition(run_id, m),
                "state": _word(PartitionState.OPEN),
                "holder": case((is_held, literal("token")), else_=null()),
                "worker": case((is_held, self._text("host-", n, ":1")), else_=null()),
                "lease_seconds": literal(60.0),
                "lease_expires_at": case((is_held, self._at(_DAY_SECONDS)), else_=null()),
                "claimed_at": case((is_held, self._at(-30)), else_=null()),
                "checkpointed_at": case((is_held, self._at(-1)), else_=null()),
                "due_at": self._at(-600, m * 0.01),
                "resend_at": case((is_held, null()), (is_under_way, self._at(_DAY_SECONDS)), else_=self._at(-600)),
                "done": literal(1000),
                "rate": literal(100.0),
            },
            n=crowd.unfinished,
            m=crowd.partitions,
        )

    def finished(self, tx: Connection) -> None:
        crowd, n = self._crowd, _n("n")
        if not crowd.finished:
            return
        run_id = self._id(crowd.finished_run(0), n)
        has_failed, is_kept = n % _FAILED_EVERY == 0, n % _KEPT_EVERY == 1
        state = case((has_failed, literal_column("'failed'")), else_=literal_column("'succeeded'"))
        keyed = self._text(KEYS_OF_USERS + crowd.tag, n)
        self._insert(
            tx,
            self._tables.run,
            {
                **self._run(run_id),
                "state": state,
                "partitions": literal(1),
                "start_key": case((is_kept, keyed), else_=null()),
                "purged_at": case((is_kept, self._at(-_DAY_SECONDS)), else_=null()),
                "started_at": self._at(-_LONG_AGO_SECONDS),
                "finished_at": self._at(-_LONG_AGO_SECONDS + 10),
            },
            n=crowd.finished,
        )
        is_open = case((has_failed, literal_column("'open'")), else_=literal_column("'final'"))
        self._insert(
            tx,
            self._tables.partition,
            {
                **self._partition(run_id, literal(0)),
                "state": is_open,
                "due_at": self._at(-_LONG_AGO_SECONDS),
                "resend_at": self._at(-_LONG_AGO_SECONDS),
                "done": literal(1000),
            },
            n=crowd.finished,
        )

    def failures(self, tx: Connection) -> None:
        """Give half of the failures to one run, and the others to those that have failed."""
        crowd, n = self._crowd, _n("n")
        if not crowd.failures:
            return
        others = max(1, crowd.finished // _FAILED_EVERY)
        number = case((n % 2 == 0, 0), else_=(n % others) * _FAILED_EVERY)
        self._insert(
            tx,
            self._tables.failure,
            {
                "run_id": self._id(crowd.finished_run(0), number),
                "partition": literal(0),
                "cursor": cast(n, String(20)),
                "item": cast(n, String(20)),
                "error_type": literal("ValueError"),
                "message": literal("it is odd"),
                "traceback": literal("Traceback (most recent call last): ..."),
                "attempts": literal(1),
                "failed_at": self._at(-_LONG_AGO_SECONDS),
                "in_doubt": literal_column("false"),
            },
            n=crowd.failures,
        )

    def transitions(self, tx: Connection) -> None:
        crowd, n = self._crowd, _n("n")
        if not crowd.transitions:
            return
        # Those that were kept for their keys have none any more.
        number = (n % max(1, crowd.finished // _KEPT_EVERY)) * _KEPT_EVERY
        self._insert(
            tx,
            self._tables.transition,
            {
                "run_id": self._id(crowd.finished_run(0), number),
                "at": self._at(-_LONG_AGO_SECONDS),
                "before": literal_column("'queued'"),
                "after": literal_column("'running'"),
                "reason": literal("claimed"),
                "worker": literal("host:1"),
            },
            n=crowd.transitions,
        )

    def _run(self, run_id: ColumnElement[str]) -> dict[str, ColumnElement[Any]]:
        return {
            "id": run_id,
            "job": self._text("job-", literal_column(f"(n % {JOBS})", Integer)),
            "params": literal('{"domain": "example.com"}'),
            "queue": literal("default"),
            "version": literal(0),
            "delivery": literal("exactly-once"),
            "total_is_estimate": literal_column("false"),
            "interruptions": literal(0),
            "created_at": self._at(-3600),
        }

    def _partition(self, run_id: ColumnElement[str], number: ColumnElement[int]) -> dict[str, ColumnElement[Any]]:
        return {
            "run_id": run_id,
            "number": number,
            "kind": _word(PartitionKind.ITEMS),
            "cursor": literal("12345678"),
            "failed": literal(0),
            "seq": literal(10),
            "carry": literal("{}"),
            "fence": literal(1),
            "claims": literal(1),
        }

    def _at(self, seconds: float, more: ColumnElement[Any] | None = None) -> ColumnElement[Any]:
        offset: ColumnElement[float] = literal_column(repr(float(seconds)))
        return self._clock.after(offset if more is None else offset + more)

    def _text(self, before: str, n: ColumnElement[int], after: str = "") -> ColumnElement[str]:
        if self._dialect == "sqlite":
            return literal(before).op("||")(n).op("||")(literal(after))
        return func.concat(literal(before), cast(n, String(20)), literal(after))

    def _id(self, first: str, n: ColumnElement[int]) -> ColumnElement[str]:
        prefix, digits = literal(first[:-_RUN_DIGITS]), literal(_RUN_DIGITS)
        if self._dialect == "sqlite":
            return prefix.op("||")(func.printf(literal(f"%0{_RUN_DIGITS}d"), n))
        return func.concat(prefix, func.lpad(cast(n, String(20)), digits, literal("0")))

    def _insert(self, tx: Connection, table: Table, values: dict[str, ColumnElement[Any]], **series: int) -> None:
        template = _SERIES[self._dialect]
        source = " CROSS JOIN ".join(
            template.format(last=count - 1, name=name) + f" AS numbers_{name}" for name, count in series.items()
        )
        tx.execute(insert(table).from_select(list(values), select(*values.values()).select_from(text(source))))


def _n(name: str) -> ColumnElement[int]:
    return literal_column(name, Integer)


def _word(word: RunState | PartitionState | PartitionKind) -> ColumnElement[str]:
    return literal_column(f"'{word.value}'")
