"""Work stealing: wanting a range cut that another works, and cutting the range that one works oneself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, RowMapping

from batchkit.errors import LeaseLost
from batchkit.model import Lease, RunId
from batchkit.sources.base import MOST_PARTITIONS
from batchkit.states import PartitionKind, PartitionState, RunState
from batchkit.store.database import Database
from batchkit.store.runs import Runs
from batchkit.store.statements import Statements

#: How many partitions a run has at most, for each that it was to have: no source, however it is cut, makes dust.
_MOST_CUTS = 32


@dataclass(frozen=True, slots=True)
class Worked:
    """A partition that somebody works, as it was when it was looked at."""

    number: int
    fence: int
    cursor: str | None
    until: str | None
    done: int
    rate: float | None
    chunk_size: int | None


class Stealing:
    """
    How workers that find nothing to claim come by a part of what others have.

    A thief only says that it wants a range cut. Its holder cuts it, between two chunks: nobody else changes where a
    partition ends, so that no chunk in flight is ever cut through, and workers that know nothing of this lose nothing.
    """

    def __init__(self, database: Database, runs: Runs) -> None:
        self._database = database
        self._runs = runs
        self._statements = Statements(database.tables, database.clock)

    def missing(self, run_id: RunId) -> int:
        """
        Say how many ranges more a run should have: none while one waits, or where as many are open as it was to have.

        It is to have no more at once than are worked, so that they double at most.
        """
        with self._database.reading() as tx:
            if tx.execute(self._statements.first_waiting(run_id)).first() is not None:
                return 0
            run = tx.execute(self._statements.read_run(run_id)).mappings().one_or_none()
            if run is None or not _goes_on(run):
                return 0
            _, _, open_, worked, wanted = tx.execute(self._statements.ranges(run_id)).one()
            return max(0, min(_most_open(run) - int(open_) - int(wanted), int(worked)))

    def worked(self, run_id: RunId, *, limit: int) -> list[Worked]:
        """Read partitions of a run that are worked, *limit* at most."""
        with self._database.reading() as tx:
            return [Worked(**row) for row in tx.execute(self._statements.worked(run_id, limit=limit)).mappings()]

    def want_cuts(self, run_id: RunId, victim: Worked, *, cuts: int) -> bool:
        """Want a partition cut into so many ranges more; False where its holder is another by now, or it is final."""
        with self._database.transaction() as tx:
            wanted = self._statements.want_cuts(run_id, victim.number, fence=victim.fence, cuts=cuts)
            return tx.execute(wanted).rowcount == 1

    def leave_whole(self, lease: Lease) -> None:
        """Take note that the partition is not worth being cut."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.want_no_cuts(lease))

    def cut(self, lease: Lease, cuts: Sequence[str]) -> Lease:
        """
        Let the lease's partition end at the first of *cuts*, and others begin there; give the lease as it is now.

        A run that is to pause or end is not cut, nor one that has as many open ranges as it was to have. The lease then
        ends where it did. After any other error than LeaseLost it is not known where: its holder must give it back, and
        whoever claims next learns it under the run's lock.

        Raises:
            LeaseLost: the lease is over; nothing was changed.
        """
        with self._database.transaction() as tx:
            run = self._runs.lock(tx, lease.run_id)
            taken = [] if run is None or not _goes_on(run) else self._allowed(tx, run, cuts)
            if not taken:
                tx.execute(self._statements.want_no_cuts(lease))
                return lease
            if tx.execute(self._statements.shorten(lease, until=taken[0])).rowcount != 1:
                raise LeaseLost(lease.run_id, partition=lease.number, fence=lease.fence)
            self._insert(tx, lease, taken)
        return replace(lease, until=taken[0])

    def _allowed(self, tx: Connection, run: RowMapping, cuts: Sequence[str]) -> Sequence[str]:
        count, _, open_, _, _ = tx.execute(self._statements.ranges(run["id"])).one()
        most = min(MOST_PARTITIONS, _MOST_CUTS * run["partitions"])
        room = min(_most_open(run) - open_, most - count)
        if room >= len(cuts):
            return cuts
        return [cuts[len(cuts) * number // (room + 1)] for number in range(1, room + 1)]

    def _insert(self, tx: Connection, lease: Lease, cuts: Sequence[str]) -> None:
        _, last, _, _, _ = tx.execute(self._statements.ranges(lease.run_id)).one()
        whole = tx.execute(self._statements.read_partition(lease.run_id, lease.number)).mappings().one()
        known = {name: whole[name] for name in ("chunk_size", "chunk_seconds", "lease_seconds")}
        ends = [*cuts[1:], lease.until]
        inserted = self._statements.insert_partitions(
            kind=PartitionKind.ITEMS, state=PartitionState.OPEN, is_shared=True
        )
        # The first of them has the highest number, as the order of partitions wants it.
        rows = [
            {
                "run_id": lease.run_id,
                "number": last + len(cuts) - index,
                "cursor": cut,
                "until": end,
                "cut_from": lease.number,
                **known,
            }
            for index, (cut, end) in enumerate(zip(cuts, ends, strict=True))
        ]
        tx.execute(inserted, rows)


def _goes_on(run: RowMapping) -> bool:
    return run["state"] is RunState.RUNNING and run["requested"] is None


def _most_open(run: RowMapping) -> int:
    """Give how many ranges of a run may be open, for it has no use for more."""
    partitions: int = run["partitions"]
    return partitions if run["max_workers"] is None else min(partitions, run["max_workers"])
