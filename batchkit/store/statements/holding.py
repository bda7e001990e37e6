"""The SQL of a partition that a worker holds: its lease, its checkpoints, giving it back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Float,
    Integer,
    String,
    Text,
    bindparam,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.dml import ReturningUpdate, Update
from sqlalchemy.sql.selectable import Select

from batchkit.model import Lease, RunId
from batchkit.states import PartitionState
from batchkit.store.statements.terms import Terms


class Holding(Terms):
    """The SQL of a partition that a worker holds: its lease, its checkpoints, giving it back."""

    def read_partition(self, run_id: RunId, number: int) -> Select[Any]:
        """Read a partition and whether its lease is live."""
        return select(self.partition, self.is_live().label("is_live")).where(
            self.partition.c.run_id == run_id, self.partition.c.number == number
        )

    def checkpoint(self, *, one_writer: bool) -> Update:
        """
        Move a partition on, as the last statement of its chunk's transaction that locks anything.

        No row found means that the lease is over. With *one_writer* the lease must have been live when the transaction
        took the write lock: nobody can have claimed since, and nobody, we neither, could renew it.
        """
        partition = self.partition.c
        since = bindparam("locked_at", type_=String) if one_writer else self.clock.now()
        return (
            update(self.partition)
            .where(
                partition.run_id == bindparam("run_id", type_=String),
                partition.number == bindparam("number_", type_=Integer),
                partition.fence == bindparam("fence_", type_=Integer),
                partition.holder == bindparam("holder_", type_=String),
                partition.seq == bindparam("seq_", type_=Integer),
                partition.lease_expires_at > since,
            )
            .values(
                cursor=bindparam("cursor_", type_=Text),
                done=partition.done + bindparam("done_", type_=Integer),
                failed=partition.failed + bindparam("failed_", type_=Integer),
                seq=partition.seq + 1,
                carry=bindparam("carry_", type_=Text),
                chunk_size=bindparam("chunk_size_", type_=Integer),
                rate=bindparam("rate_", type_=Float),
                doubt=bindparam("doubt_", type_=Text),
                checkpointed_at=self.clock.now(),
                chunk_seconds=bindparam("chunk_seconds_", type_=Float),
                lease_expires_at=self.renewed(bindparam("lease_", type_=Float)),
            )
        )

    def checkpoint_with_standing(self, *, one_writer: bool) -> ReturningUpdate[Any]:
        """Move a partition on, and bring back how the run stands: no row means that the lease is over."""
        run, this_run = self.run.c, bindparam("run_id", type_=String)
        return self.checkpoint(one_writer=one_writer).returning(
            select(run.state).where(run.id == this_run).scalar_subquery().label("state"),
            select(run.requested).where(run.id == this_run).scalar_subquery().label("requested"),
            self.partition.c.cuts_wanted,
        )

    def checkpoint_or_error(self) -> Executable:
        """
        Move a partition on, and bring back how the run stands: an error, a division by zero, means the lease is over.

        The COMMIT is under way behind it already, and only an error keeps that from being made.
        """
        moved = self.checkpoint_with_standing(one_writer=False).cte("moved")
        is_moved = select(func.count()).select_from(moved).scalar_subquery()
        return select(
            *(select(moved.c[name]).scalar_subquery() for name in ("state", "requested", "cuts_wanted")),
            literal(1) // is_moved,
        )

    def standing(self) -> Select[Any]:
        """Read how a run stands, where the checkpoint cannot bring it back; as it is committed, and without a lock."""
        run, partition = self.run.c, self.partition.c
        return (
            select(run.state, run.requested, partition.cuts_wanted)
            .join(self.partition, partition.run_id == run.id)
            .where(run.id == bindparam("run_id", type_=String), partition.number == bindparam("number_", type_=Integer))
        )

    def renew(self, lease: Lease) -> Executable:
        """Push the end of a live lease forward, never backwards."""
        return (
            update(self.partition)
            .where(self.is_held_by(lease), self.is_live())
            .values(lease_expires_at=self.renewed(literal(lease.seconds, Float)))
        )

    def lengthen(self, lease: Lease) -> Executable:
        """Make the partition's next leases twice as long: its worker lived but could not renew this one in time."""
        return (
            update(self.partition)
            .where(
                self.partition.c.run_id == lease.run_id,
                self.partition.c.number == lease.number,
                self.partition.c.lease_seconds <= lease.seconds,
            )
            .values(lease_seconds=lease.seconds * 2)
        )

    def protect(self, lease: Lease, *, is_protected: bool) -> Executable:
        """Write down whether the holder of a live lease must not be stopped."""
        return update(self.partition).where(self.is_held_by(lease), self.is_live()).values(is_protected=is_protected)

    def release(self, lease: Lease, *, state: PartitionState, delay: float) -> Executable:
        """
        Give a partition back: it is due after *delay* seconds, behind those that wait already.

        Who gives it back without a delay wakes the next worker up; else the sweep does, when it is due. Of several
        partitions, those are woken for that have waited longest.
        """
        is_left = delay > 0 or lease.partitions > 1
        return (
            update(self.partition)
            .where(self.is_held_by(lease))
            .values(
                holder=None,
                worker=None,
                lease_expires_at=None,
                state=state,
                due_at=self.clock.after(literal(delay, Float)),
                resend_at=self.clock.after(literal(delay, Float)) if is_left else self.patience(),
            )
        )

    def suspect_held(self, lease: Lease, suspicion: str | None) -> Executable:
        """Write down what a partition is suspected of, where it is still its holder's."""
        return update(self.partition).where(self.is_held_by(lease)).values(suspicion=suspicion)
