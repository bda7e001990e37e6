"""Recording as failures what a run that works at most once has left in doubt."""

from __future__ import annotations

from sqlalchemy import Connection

from batchkit import doubts
from batchkit.model import RunId
from batchkit.store.database import Database
from batchkit.store.statements import Statements


class Doubts:
    """
    The items that were begun and of which nobody knows what became.

    Each is recorded in the transaction that takes its partition from the one who began it: by his own release, or by
    whoever ends his lease. The run's row is locked before, since what is written refers to it.
    """

    def __init__(self, database: Database) -> None:
        self._statements = Statements(database.tables, database.clock)

    def record(self, tx: Connection, run_id: RunId, number: int, *, fence: int, seq: int, doubt: str) -> bool:
        """Record what is in doubt in a partition, and count it; False where somebody else has moved the partition."""
        items = doubts.recorded(doubt, partition=number)
        moved = tx.execute(self._statements.count_doubt(run_id, number, fence=fence, seq=seq, items=len(items)))
        if moved.rowcount != 1:
            return False
        for each in items:
            if each.failure_id is None:
                tx.execute(self._statements.insert_failure(run_id, number, each))
            else:
                # No row: another run has done it, and nothing of it is in doubt.
                tx.execute(self._statements.fail_again(run_id, each))
        return True

    def settle(self, tx: Connection, run_id: RunId) -> None:
        """Record what is in doubt in the partitions of a run that nobody holds."""
        for row in tx.execute(self._statements.left_in_doubt(run_id)).mappings().all():
            self.record(tx, run_id, row["number"], fence=row["fence"], seq=row["seq"], doubt=row["doubt"])
