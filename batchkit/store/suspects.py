"""Places that workers die at: what is known of them, kept with the partition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Connection, RowMapping

from batchkit.errors import LeaseLost, NothingToSkip
from batchkit.model import Lease, RunId
from batchkit.store.database import Database
from batchkit.store.statements import Statements
from batchkit.suspicion import Death, Suspicion, after_end


class Suspects:
    """
    What partitions are suspected of. Each change is made under the lock of the run.

    A partition that is suspected of nothing, which is nearly every one, costs nothing here.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = Statements(database.tables, database.clock)

    def book(self, tx: Connection, run_id: RunId, *, worker: str | None, death: Death) -> str | None:
        """
        Book the ends of the leases of a run that have run out, as part of *tx*, which has locked the run.

        *death* is what is known of the end of *worker*; of the others nothing is. Twice is once. Gives why a person is
        needed, where one is.
        """
        reason = None
        for row in tx.execute(self._statements.ended(run_id)).mappings().all():
            found = self.book_end(tx, row, death=death if row["worker"] == worker else Death.UNSEEN)
            reason = reason or found
        return reason

    def book_end(self, tx: Connection, row: RowMapping, *, death: Death = Death.UNSEEN) -> str | None:
        """Book the end of the lease that a partition, as it was read by *tx*, still has; else as `book` does."""
        before, place, passed = Suspicion.read(row["suspicion"]), row["seq"], row["done"] + row["failed"]
        after = after_end(before, fence=row["fence"], place=place, passed=passed, death=death)
        if after != before:
            self._write(tx, RunId(row["run_id"]), row["number"], row["fence"], after)
        if after is None or not after.needs_person(place=place, passed=passed):
            return None
        where = "is the first" if row["cursor"] is None else f"comes behind the cursor {row['cursor']}"
        return (
            f"the item that {where} in partition {row['number']} was being worked alone when its worker was killed, "
            f"{len(after.ends)} times, and nobody saw whether it was killed by the item; mend that and resume the run, "
            f"or resume it with --skip, which records the item as a failure and goes on behind it"
        )

    def enter(self, lease: Lease, *, items: int) -> Lease:
        """
        Write down that the holder of *lease* enters a place that is suspect with *items* at most.

        Raises:
            LeaseLost: the lease is over.
        """

        def entered(known: Suspicion | None) -> Suspicion:
            return (known or Suspicion(place=lease.seq)).enter(place=lease.seq, fence=lease.fence, items=items)

        return self._change_held(lease, entered)

    def stop(self, lease: Lease) -> None:
        """
        Write down that the holder of *lease*, who has entered a place, knows of a shutdown.

        Raises:
            LeaseLost: the lease is over.
        """
        self._change_held(lease, lambda known: known and known.stop(place=lease.seq, fence=lease.fence))

    def forget(self, lease: Lease) -> Lease:
        """
        Suspect nothing of a partition any more, which has got past it.

        Raises:
            LeaseLost: the lease is over.
        """
        return self._change_held(lease, lambda _: None)

    def take_back(self, lease: Lease) -> None:
        """Take back that the end of *lease* was counted: its worker is alive."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.lock_run(lease.run_id))
            row = tx.execute(self._statements.read_partition(lease.run_id, lease.number)).mappings().one()
            known = Suspicion.read(row["suspicion"])
            if known is not None:
                self._write(tx, lease.run_id, lease.number, row["fence"], known.take_back(lease.fence))

    def let_go_on(self, tx: Connection, run_id: RunId, *, skip: bool) -> None:
        """
        Let a person have what is suspect of a run tried again, or have its killers skipped, as part of *tx*.

        Raises:
            NothingToSkip: no item is known to be one.
        """
        has_skipped = False
        for row in tx.execute(self._statements.suspects(run_id)).mappings().all():
            known = Suspicion.read(row["suspicion"])
            is_skipped = skip and known is not None and known.is_killer(place=row["seq"])
            after = replace(known, is_to_skip=True) if is_skipped and known is not None else None
            self._write(tx, run_id, row["number"], row["fence"], after)
            has_skipped = has_skipped or is_skipped
        if skip and not has_skipped:
            raise NothingToSkip(run_id)

    def _change_held(self, lease: Lease, change: Callable[[Suspicion | None], Suspicion | None]) -> Lease:
        with self._database.transaction() as tx:
            tx.execute(self._statements.lock_run(lease.run_id))
            row = tx.execute(self._statements.read_partition(lease.run_id, lease.number)).mappings().one()
            after = change(Suspicion.read(row["suspicion"]))
            text = None if after is None else after.write()
            if tx.execute(self._statements.suspect_held(lease, text)).rowcount != 1:
                raise LeaseLost(lease.run_id, partition=lease.number, fence=lease.fence)
        return replace(lease, suspicion=after)

    def _write(self, tx: Connection, run_id: RunId, number: int, fence: int, after: Suspicion | None) -> None:
        text = None if after is None else after.write()
        if tx.execute(self._statements.suspect(run_id, number, fence, text)).rowcount != 1:
            message = f"partition {number} of run {run_id} was claimed though the run's row was locked"
            raise RuntimeError(message)
