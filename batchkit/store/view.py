"""The view `batchkit_busy`: what waits and what is worked, by queue, for those who read SQL and run no code of ours."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Float, Text, and_, case, cast, false, func, inspect, literal, null, or_, select
from sqlalchemy.engine import Connection
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Select

from batchkit.busy import OVERRUN, OVERRUN_SECONDS
from batchkit.errors import InvalidDatabase
from batchkit.states import PartitionState
from batchkit.store.clock import Clock
from batchkit.store.database import Database
from batchkit.store.fleet import FleetStatements

VIEW = "batchkit_busy"

_STANDINGS = ("ready", "interruptible", "protected")
_COUNTS = ("ready", "busy", "interruptible", "protected", "wanted")


class BusyView:
    """
    The view in one database.

    It is there for those who ask for it. PostgreSQL refuses to drop or alter a column that a view depends on, so it is
    loosened before migrations and made anew after them. Whoever changes what it says adds a migration, though an empty
    one: at the newest version it is left alone, since it may belong to somebody else than who migrates.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # The clock that tests shift is that of this process; the view reads the database's own.
        self._statements = _ViewStatements(database.tables, Clock())

    def sql(self) -> str:
        """
        Give the statement that makes the view, or makes it anew.

        Raises:
            InvalidDatabase: nobody reads such a view in this kind of database.
        """
        return self._replacing(self._statements.by_queue())

    def make(self, tx: Connection) -> None:
        """Make the view, or make it anew; what was granted on it stays."""
        tx.exec_driver_sql(self.sql())

    def is_there(self, tx: Connection) -> bool:
        """Tell whether somebody has asked for it."""
        return VIEW in inspect(tx).get_view_names(schema=self._database.schema)

    def loosen(self, tx: Connection) -> None:
        """Let it depend on nothing for a while. To drop it would also drop what was granted on it."""
        if self._database.engine.dialect.name == "postgresql":
            tx.exec_driver_sql(self._replacing(_hollow()))

    def _replacing(self, definition: Select[Any]) -> str:
        dialect = self._database.engine.dialect
        if dialect.name == "sqlite":
            raise InvalidDatabase(
                f"the view {VIEW} is for servers, so there is none in {self._database.url}; "
                f"`batchkit busy --json` tells the same"
            )
        schema = self._database.schema
        preparer = dialect.identifier_preparer
        name = VIEW if schema is None else f"{preparer.quote_schema(schema)}.{VIEW}"
        compiled = definition.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
        return f"CREATE OR REPLACE VIEW {name} AS {compiled}"


class _ViewStatements(FleetStatements):
    """What the view says."""

    def by_queue(self) -> Select[Any]:
        """
        Count by queue what waits and what is worked.

        Each partition is judged once, and once only, so that none is in two counts or in neither when its lease runs
        out meanwhile. It says what `kit.busy()` does.
        """
        run, partition = self.run.c, self.partition.c
        is_held = and_(partition.worker.is_not(None), self.is_live())
        standing = case(
            (and_(is_held, self._is_interruptible()), "interruptible"),
            (is_held, "protected"),
            (and_(self.is_free(), self._may_be_claimed()), "ready"),
        )
        each = (
            select(
                cast(run.queue, Text).label("queue"),
                run.max_workers,
                *(func.count(case((standing == name, 1))).label(name) for name in _STANDINGS),
            )
            .join_from(self.partition, self.run, run.id == partition.run_id)
            # For the indexes; what it lets through is judged by what is above.
            .where(or_(partition.worker.is_not(None), partition.state == PartitionState.OPEN))
            .group_by(run.id, run.queue, run.max_workers)
            .subquery("each_run")
        )
        interruptible, protected = func.sum(each.c.interruptible), func.sum(each.c.protected)
        held = each.c.interruptible + each.c.protected
        ready = func.sum(self._has_room_for(each.c.ready, held, each.c.max_workers))
        counts: dict[str, ColumnElement[int]] = {
            "ready": ready,
            "busy": interruptible + protected,
            "interruptible": interruptible,
            "protected": protected,
            "wanted": ready + interruptible + protected,
        }
        return (
            select(each.c.queue, *(cast(counts[name], BigInteger).label(name) for name in _COUNTS))
            .group_by(each.c.queue)
            .having(counts["wanted"] > 0)
        )

    def _is_interruptible(self) -> ColumnElement[bool]:
        """Say in SQL what `batchkit.busy` says in Python; what is not known makes it NULL, and so not true."""
        partition = self.partition.c
        expected, working = partition.chunk_seconds, partition.working_seconds
        moved_at = func.coalesce(partition.checkpointed_at, partition.claimed_at, self.clock.now())
        longest = expected * literal(OVERRUN, Float) + literal(OVERRUN_SECONDS, Float)
        return and_(
            ~partition.is_protected,
            moved_at >= self.clock.after(literal(0.0, Float) - longest),
            moved_at <= self.clock.after(working - expected),
        )


def _hollow() -> Select[Any]:
    """Give the same columns of nothing."""
    counts: list[ColumnElement[Any]] = [cast(literal(0), BigInteger).label(name) for name in _COUNTS]
    return select(cast(null(), Text).label("queue"), *counts).where(false())
