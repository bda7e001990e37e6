"""What the doctor asks the database: how it is set, whose clock it has, and what waits in it for too long."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select
from sqlalchemy.pool import AssertionPool, QueuePool, StaticPool

from batchkit.store.database import Database
from batchkit.store.dialects import Server
from batchkit.store.statements import Statements

_CLOCK_READINGS = 3


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """By how many seconds the database's clock is ahead of this process's, give or take the uncertainty."""

    seconds: float
    uncertainty: float

    @property
    def at_least(self) -> float:
        """The part of the offset that the time of asking cannot explain."""
        return max(0.0, abs(self.seconds) - self.uncertainty)


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for a worker for too long, and what a sweep should have seen to."""

    #: runs that have waited for a worker
    waiting: int
    #: how long the one that has waited longest has done so
    longest_seconds: float
    #: those of them whose wake-up is long overdue to be sent again
    unswept: int


class Health:
    """The health of one database. Nothing here changes anything."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = Statements(database.tables, database.clock)

    def server(self) -> Server:
        """
        Tell what the server is and how it is set.

        Raises:
            DatabaseUnavailable: it cannot be reached.
            InvalidDatabase: it was opened in a way that cannot keep the promises.
        """
        with self._database.reading() as connection:
            return self._database.dialect.server(connection.connection.driver_connection, self._database.schema)

    def pool_capacity(self) -> int | None:
        """Give how many connections this process may have at once; None where that has no bound."""
        pool = self._database.engine.pool
        if isinstance(pool, StaticPool | AssertionPool):
            return 1
        if not isinstance(pool, QueuePool):
            return None
        overflow = pool._max_overflow  # noqa: SLF001  there is no other way to ask for it
        return None if overflow < 0 or pool.size() == 0 else pool.size() + overflow

    def clock_offset(self) -> ClockOffset:
        """Compare the database's clock with this process's, by the quickest of a few readings."""
        with self._database.reading() as connection:
            return min(
                (self._read_clock(connection) for _ in range(_CLOCK_READINGS)), key=lambda read: read.uncertainty
            )

    def backlog(self, *, waited: float, unswept: float) -> Backlog:
        """Count the runs that have *waited* so many seconds, and those that no sweep has seen to for *unswept*."""
        with self._database.reading() as connection:
            runs, oldest, asked_at, late = connection.execute(
                self._statements.backlog(waited=waited, unswept=unswept)
            ).one()
        return Backlog(
            waiting=runs,
            longest_seconds=0.0 if oldest is None else (asked_at - oldest).total_seconds(),
            unswept=late,
        )

    def chunk_seconds(self, *, within: float) -> dict[str, float]:
        """Give the longest last chunk in seconds, by job, of the runs that were worked *within* so many seconds."""
        with self._database.reading() as connection:
            rows = connection.execute(self._statements.chunk_seconds(within=within)).all()
        return {job: float(seconds) for job, seconds in rows}

    def _read_clock(self, connection: Connection) -> ClockOffset:
        asked = time.time()
        began = time.monotonic()
        there: datetime = connection.execute(select(self._database.clock.now())).scalar_one()
        half = (time.monotonic() - began) / 2
        return ClockOffset(seconds=there.timestamp() - (asked + half), uncertainty=half)
