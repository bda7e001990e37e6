"""Items that failed: recording them with the checkpoint that moves past them, and reading them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import Connection

from batchkit.errors import FailureResolved
from batchkit.model import FailedItem, Failure, Lease, RunId
from batchkit.store.database import Database
from batchkit.store.statements import Statements


class Failures:
    """The failures in a database. Each is written in the transaction that moves its run past the item."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = Statements(database.tables, database.clock)

    def record(self, tx: Connection, lease: Lease, failed: Iterable[FailedItem]) -> None:
        """
        Write down items that failed, as part of *tx*.

        Raises:
            FailureResolved: another run has done one of them meanwhile; *tx* must be rolled back.
        """
        for each in failed:
            if each.failure_id is None:
                tx.execute(self._statements.insert_failure(lease.run_id, lease.number, each))
            elif tx.execute(self._statements.fail_again(lease.run_id, each)).rowcount != 1:
                raise FailureResolved(lease.run_id)

    def resolve(self, tx: Connection, lease: Lease, failures: Collection[int]) -> None:
        """
        Mark failures as done, as part of *tx*, which carries what was written for them.

        Raises:
            FailureResolved: another run has done one of them meanwhile; *tx* must be rolled back.
        """
        if failures and tx.execute(self._statements.resolve(lease.run_id, failures)).rowcount != len(failures):
            raise FailureResolved(lease.run_id)

    def tally(self, tx: Connection, run_id: RunId, *, is_shared: bool) -> tuple[int, int]:
        """
        Count the items of a run that were done, and those that failed.

        Where it *is_shared* others commit failures as well: until the end of *tx* they wait, so that together they
        record no more than are allowed.
        """
        if is_shared:
            tx.execute(self._statements.lock_run(run_id))
        done, failed = tx.execute(self._statements.item_tally(run_id)).one()
        return int(done), int(failed)

    def page(self, run_id: RunId, *, after: int, limit: int) -> list[Failure]:
        """Read at most *limit* failures of a run, or tried again by it, behind the one with the number *after*."""
        with self._database.reading() as tx:
            rows = tx.execute(self._statements.failures(run_id, after=after, limit=limit)).mappings()
            return [Failure(**row) for row in rows]

    def still_open(self, run_id: RunId, *, after: int, until: int, limit: int, in_doubt: bool) -> list[Failure]:
        """Read at most *limit* failures of a run that nobody has done since, behind *after* and up to *until*."""
        failure = self._database.tables.failure.c
        found = self._statements.open_failures(run_id, in_doubt=in_doubt)
        statement = found.where(failure.id > after, failure.id <= until).limit(limit)
        with self._database.reading() as tx:
            return [Failure(**row) for row in tx.execute(statement).mappings()]

    def last_open(self, run_id: RunId, *, in_doubt: bool) -> int | None:
        """Give the number of the newest failure that nobody has done since; None where there is none."""
        with self._database.reading() as tx:
            found = tx.execute(self._statements.last_open_failure(run_id, in_doubt=in_doubt)).scalar_one()
        return None if found is None else int(found)

    def count_open(self, run_id: RunId, *, in_doubt: bool) -> int:
        """Count the failures that nobody has done since; with *in_doubt*, with those of which that is not known."""
        with self._database.reading() as tx:
            return int(tx.execute(self._statements.count_open_failures(run_id, in_doubt=in_doubt)).scalar_one())
