"""The SQL of claiming partitions: which may be claimed, whose turn it is, and the claim itself."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Float,
    case,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.selectable import Select

from batchkit.model import RunId
from batchkit.states import WORKABLE, PartitionState
from batchkit.store.clock import Later
from batchkit.store.statements.terms import Terms, unindexed


class Claiming(Terms):
    """The SQL of claiming partitions: which may be claimed, whose turn it is, and the claim itself."""

    def claimable(
        self, *, jobs: Collection[str], queues: Collection[str] | None, besides: Collection[RunId], limit: int
    ) -> Select[Any]:
        """
        Find runs of which a worker may claim a partition now, and the one of each that has waited longest.

        Runs take turns, whatever the number of their partitions: first comes the one that has waited longest since it
        could be claimed, or since a worker last came for it.
        """
        run, partition = self.run.c, self.partition.c
        waits = (
            partition.run_id == run.id,
            partition.state == PartitionState.OPEN,
            partition.due_at <= self.clock.now(),
            self.is_free(),
        )
        due = select(func.min(partition.due_at)).where(*waits).correlate(self.run).scalar_subquery()
        number = select(partition.number).where(*waits).order_by(partition.due_at, partition.number).limit(1)
        found = select(
            run.id.label("run_id"),
            number.correlate(self.run).scalar_subquery().label("number"),
            due.label("due_at"),
            run.turn_at,
        ).where(
            run.state.in_(WORKABLE),
            run.requested.is_(None),
            run.job.in_(jobs),
            self.is_not_held_off(),
            self.has_room(),
        )
        if queues is not None:
            found = found.where(run.queue.in_(queues))
        if besides:
            found = found.where(run.id.not_in(besides))
        each = found.subquery()
        return (
            select(each.c.run_id, each.c.number)
            .where(each.c.due_at.is_not(None))
            .order_by(Later(each.c.turn_at, each.c.due_at), each.c.run_id)
            .limit(limit)
        )

    def claimable_in(self, run_id: RunId, *, is_due: bool, limit: int) -> Select[Any]:
        """
        Find partitions of one run that a worker may claim now; with *is_due*, those only that are due.

        Those come last for which another worker is on its way.
        """
        run, partition = self.run.c, self.partition.c
        statement = (
            select(partition.number)
            .join(self.run, run.id == partition.run_id)
            .where(
                partition.run_id == run_id,
                partition.state == PartitionState.OPEN,
                self.is_free(),
                run.state.in_(WORKABLE),
                run.requested.is_(None),
                self.has_room(),
            )
            .order_by(case((self.is_overdue(), 0), else_=1), partition.due_at, partition.number)
            .limit(limit)
        )
        if not is_due:
            return statement
        return statement.where(partition.due_at <= self.clock.now(), self.is_not_held_off())

    def workers(self, run_id: RunId) -> Select[Any]:
        """Count the live leases on a run."""
        return select(func.count()).where(self.partition.c.run_id == run_id, self.is_live())

    def is_held_off(self, run_id: RunId) -> Select[Any]:
        """Tell whether a throttle holds all partitions of a run off."""
        return select(self.run.c.id).where(self.run.c.id == run_id, ~self.is_not_held_off())

    def hold_off(self, run_id: RunId, *, seconds: float) -> Executable:
        """Hold all partitions of a run off; those that are held by a worker ask its throttle themselves."""
        return (
            update(self.run).where(self.run.c.id == run_id).values(held_until=self.clock.after(literal(seconds, Float)))
        )

    def take_turn(self, run_id: RunId) -> Executable:
        """Write down that a worker has come for some of a run: other runs that wait go first after that."""
        return update(self.run).where(self.run.c.id == run_id).values(turn_at=self.clock.now())

    def claim(
        self,
        run_id: RunId,
        number: int,
        *,
        holder: str,
        worker: str,
        seconds: float,
        wake_no: int | None = None,
        chunk_seconds: float | None = None,
        working_seconds: float | None = None,
        is_protected: bool = False,
    ) -> Executable:
        """
        Take a partition that nobody holds, or whose holder's lease has ended, under a new fence.

        With *wake_no*, only if that is its newest wake-up; each claim uses the newest up.
        """
        lasts = case(
            (self.partition.c.lease_seconds > seconds, self.partition.c.lease_seconds), else_=literal(seconds, Float)
        )
        claimed = update(self.partition).where(
            self.partition.c.run_id == run_id,
            self.partition.c.number == number,
            unindexed(self.partition.c.state) == PartitionState.OPEN,
            self.is_free(),
        )
        if wake_no is not None:
            claimed = claimed.where(self.partition.c.wake_no == wake_no)
        return claimed.values(
            fence=self.partition.c.fence + 1,
            holder=holder,
            worker=worker,
            claims=self.partition.c.claims + 1,
            lease_seconds=lasts,
            lease_expires_at=self.clock.after(lasts),
            wake_no=self.partition.c.wake_no + 1,
            resend_at=None,
            patience_seconds=None,
            claimed_at=self.clock.now(),
            checkpointed_at=self.clock.now(),
            chunk_seconds=chunk_seconds,
            working_seconds=working_seconds,
            is_protected=is_protected,
        )

    def postpone(self, run_id: RunId, number: int, *, wake_no: int | None, seconds: float) -> Executable:
        """
        Have nobody woken up for a partition for *seconds*.

        It is due all the same: it is work that waits, and an autoscaler must not take it for none.
        """
        partition = self.partition.c
        postponed = update(self.partition).where(
            partition.run_id == run_id,
            partition.number == number,
            unindexed(partition.state) == PartitionState.OPEN,
            self.is_free(),
        )
        if wake_no is not None:
            postponed = postponed.where(partition.wake_no == wake_no)
        return postponed.values(resend_at=self.clock.after(literal(seconds, Float)), patience_seconds=None)

    def chunk_seconds_of(self, job: str, *, runs: int) -> Select[Any]:
        """Give how long the chunks of the newest *runs* of a job were expected to take, at the most."""
        run, partition = self.run.c, self.partition.c
        newest = (
            select(run.id)
            .where(run.job == job, run.started_at.is_not(None))
            .order_by(run.id.desc())
            .limit(runs)
            .subquery()
        )
        return select(func.max(partition.chunk_seconds)).join(newest, newest.c.id == partition.run_id)

    def reserved_until(self, run_id: RunId) -> Select[Any]:
        """Read until when the rate of a run is reserved, and the moment; under the run's lock."""
        return select(self.run.c.next_item_at, self.clock.now()).where(self.run.c.id == run_id)

    def reserve_until(self, run_id: RunId, ends: datetime) -> Executable:
        """Reserve the rate of a run until *ends*; under the run's lock."""
        return update(self.run).where(self.run.c.id == run_id).values(next_item_at=ends)
