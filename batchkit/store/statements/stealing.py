"""The SQL of ranges that are cut while they are worked, for workers that find nothing else of a run."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    and_,
    case,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Select

from batchkit.model import Lease, RunId
from batchkit.states import PartitionKind, PartitionState
from batchkit.store.statements.terms import Terms, count_if, unindexed


class Stealing(Terms):
    """The SQL of ranges that are cut while they are worked, for workers that find nothing else of a run."""

    def first_waiting(self, run_id: RunId) -> Select[Any]:
        """Find a partition of a run's items that a worker could claim now."""
        partition = self.partition.c
        return (
            select(partition.number)
            .where(*self._open_items(run_id), self.is_free(), partition.due_at <= self.clock.now())
            .limit(1)
        )

    def ranges(self, run_id: RunId) -> Select[Any]:
        """Count a run's partitions, those with items left, those that are worked, and the cuts that are wanted."""
        partition = self.partition.c
        is_open = and_(partition.kind == PartitionKind.ITEMS, partition.state == PartitionState.OPEN)
        is_worked = and_(is_open, self.is_live())
        counts: list[ColumnElement[Any]] = [
            func.count(),
            func.max(partition.number),
            count_if(is_open),
            count_if(is_worked),
            func.coalesce(func.sum(case((is_worked, partition.cuts_wanted), else_=0)), 0),
        ]
        return select(*counts).where(partition.run_id == run_id)

    def worked(self, run_id: RunId, *, limit: int) -> Select[Any]:
        """Read partitions that are worked, first those that nobody wants cut and that have done least."""
        partition = self.partition.c
        columns = ("number", "fence", "cursor", "until", "done", "rate", "chunk_size")
        return (
            select(*(partition[name] for name in columns))
            .where(*self._open_items(run_id), self.is_live())
            .order_by(partition.cuts_wanted, partition.done, partition.number)
            .limit(limit)
        )

    def want_cuts(self, run_id: RunId, number: int, *, fence: int, cuts: int) -> Executable:
        """Want a partition cut into so many ranges more, where it still has the holder that it had."""
        partition = self.partition.c
        return (
            update(self.partition)
            .where(
                partition.run_id == run_id,
                partition.number == number,
                partition.fence == fence,
                unindexed(partition.state) == PartitionState.OPEN,
            )
            .values(cuts_wanted=partition.cuts_wanted + literal(cuts))
        )

    def want_no_cuts(self, lease: Lease) -> Executable:
        """Take note that a partition is not cut now."""
        return update(self.partition).where(self.is_held_by(lease)).values(cuts_wanted=0)

    def shorten(self, lease: Lease, *, until: str) -> Executable:
        """
        Let a partition end earlier, which only its holder does, and only between two chunks.

        No row means that the lease is over, or that it stands or ends elsewhere than its holder believes.
        """
        partition = self.partition.c
        ends = partition.until.is_(None) if lease.until is None else partition.until == lease.until
        return (
            update(self.partition)
            .where(
                self.is_held_by(lease),
                self.is_live(),
                partition.seq == lease.seq,
                unindexed(partition.state) == PartitionState.OPEN,
                ends,
            )
            .values(until=until, cuts_wanted=0)
        )

    def _open_items(self, run_id: RunId) -> tuple[ColumnElement[bool], ...]:
        partition = self.partition.c
        return (
            partition.run_id == run_id,
            partition.kind == PartitionKind.ITEMS,
            partition.state == PartitionState.OPEN,
        )
