"""The rates of runs: when the next item of each may begin."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from batchkit.model import RunId
from batchkit.store.database import Database
from batchkit.store.statements import Statements


@dataclass(frozen=True, slots=True)
class Reserved:
    """When items may begin: after so many *seconds*. Where that is too long to wait for, nothing *was_reserved*."""

    seconds: float
    was_reserved: bool


class Rates:
    """
    Keeps runs to their rates, whatever the number of workers.

    Each reservation is a transaction of its own under the run's lock, in front of the chunk's. What was reserved for a
    chunk that then fails is lost: a run may be slower than its rate, and never faster.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = Statements(database.tables, database.clock)

    def reserve(self, run_id: RunId, *, items: int, rate: float, within: float) -> Reserved:
        """
        Reserve the time of *items* behind what is reserved already, if it begins in *within* seconds at the latest.

        Time that passed unused is no credit: after a rest a run begins at its rate.
        """
        with self._database.transaction() as tx:
            tx.execute(self._statements.lock_run(run_id))
            # In a statement of its own: the moment and the value are those under the lock.
            reserved: datetime | None
            now: datetime
            reserved, now = tx.execute(self._statements.reserved_until(run_id)).one()
            begins = now if reserved is None else max(reserved, now)
            wait = (begins - now).total_seconds()
            if wait > within:
                return Reserved(wait, was_reserved=False)
            ends = begins + timedelta(seconds=items / rate)
            tx.execute(self._statements.reserve_until(run_id, ends))
            return Reserved(wait, was_reserved=True)
