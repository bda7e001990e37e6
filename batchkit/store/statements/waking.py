"""The SQL of wake-ups: what waits for a worker, and who may send word of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    Float,
    and_,
    case,
    exists,
    func,
    literal,
    or_,
    select,
)
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Select

from batchkit.model import RunId, WakeUp
from batchkit.states import PartitionKind, PartitionState
from batchkit.store.clock import Later, UtcTime
from batchkit.store.statements.terms import Terms, unindexed


class Waking(Terms):
    """The SQL of wake-ups: what waits for a worker, and who may send word of it."""

    def wake_ups(self) -> Select[Any]:
        """Read what waits for a worker, those first that have waited longest."""
        run, partition = self.run.c, self.partition.c
        return (
            select(
                partition.run_id,
                partition.number.label("partition"),
                partition.wake_no.label("number"),
                run.job,
                run.params,
                run.queue,
                run.message,
                # There is one message to tell of the end, and one partition that it goes with at a time.
                or_(partition.number == 0, partition.kind == PartitionKind.FINISH).label("is_by_message"),
                partition.due_at,
                self.clock.now().label("asked_at"),
                partition.patience_seconds.label("patience"),
            )
            .join(self.run, run.id == partition.run_id)
            .where(
                self.is_workable(),
                run.requested.is_(None),
                self.is_not_held_off(),
                partition.state == PartitionState.OPEN,
                self.is_free(),
                partition.due_at <= self.clock.one(),
            )
            .order_by(partition.due_at, partition.run_id, partition.number)
        )

    def first_wake_ups(self) -> Select[Any]:
        """Read the wake-up of each run that has waited longest."""
        run, partition = self.run.c, self.partition.c
        number = self.first_waiting(partition.number, of=run.id).correlate(self.run).scalar_subquery()
        each = select(run.id, number.label("number")).where(*self._may_be_woken()).subquery()
        return self.wake_ups().join(each, and_(each.c.id == partition.run_id, each.c.number == partition.number))

    def shares(self, run_id: RunId) -> Select[Any]:
        """Count the wake-ups of a run that are under way, and its live leases; give how many of these it may have."""
        run = self.run.c
        return select(self._under_way(), self.live_leases(), run.max_workers).where(run.id == run_id)

    def short_of_workers(self, limit: int, *, window: int) -> Select[Any]:
        """
        Find runs with several partitions of which some wait, and less than *window* wake-ups of theirs are under way.

        Or less than its `max_workers` leaves room for. It says for all runs what `shares` does for one.
        """
        run, partition = self.run.c, self.partition.c
        waiting = (
            exists()
            .where(
                partition.run_id == run.id,
                partition.state == PartitionState.OPEN,
                partition.due_at <= self.clock.one(),
                self.is_free(),
                self.is_overdue(),
            )
            .correlate(self.run)
        )
        under_way = self._under_way()
        has_place = or_(run.max_workers.is_(None), under_way < run.max_workers - self.live_leases())
        return (
            select(run.id)
            .where(*self._may_be_woken(), run.partitions > 1, under_way < window, has_place, waiting)
            .order_by(run.id)
            .limit(limit)
        )

    def _may_be_woken(self) -> list[ColumnElement[bool]]:
        run = self.run.c
        return [self.is_workable(), run.requested.is_(None), self.is_not_held_off()]

    def _under_way(self) -> ColumnElement[int]:
        """Count the wake-ups of a run that are under way: by their own index, which finds these few among all."""
        run, partition = self.run.c, self.partition.c
        return (
            select(func.count())
            .select_from(self.partition)
            .where(
                partition.run_id == run.id,
                partition.resend_at > self.clock.one(),
                unindexed(partition.state) == PartitionState.OPEN,
                unindexed(partition.due_at) <= self.clock.now(),
                self.is_free(),
            )
            .correlate(self.run)
            .scalar_subquery()
        )

    def take_resend(self, wake_up: WakeUp, *, patience: float) -> Executable:
        """Win the right to send a wake-up again; nobody else has it for *patience* seconds."""
        return (
            self.update_partition()
            .where(
                self.partition.c.run_id == wake_up.run_id,
                self.partition.c.number == wake_up.partition,
                self.partition.c.wake_no == wake_up.number,
                self.is_overdue(),
                self.is_free(),
            )
            .values(resend_at=self.clock.after(literal(patience, Float)), patience_seconds=patience)
        )

    def send_anew(
        self,
        run_id: RunId,
        number: int,
        wake_no: int,
        *,
        seconds: float = 0.0,
        not_before: datetime | None = None,
        patience: float | None = None,
    ) -> Executable:
        """
        Let a wake-up that came to nothing not count as under way any more: it is to be sent again after *seconds*.

        With *not_before*, not before then. *patience* is how long it was given before, in case it was never sent.
        """
        partition, at = self.partition.c, self.clock.after(literal(seconds, Float))
        return (
            self.update_partition()
            .where(
                partition.run_id == run_id,
                partition.number == number,
                partition.wake_no == wake_no,
                self.is_free(),
            )
            .values(
                resend_at=at if not_before is None else Later(literal(not_before, UtcTime()), at),
                patience_seconds=patience,
            )
        )

    def backlog(self, *, waited: float, unswept: float) -> Executable:
        """Count the runs that have *waited* so long for a worker, and those of them that no sweep has seen to."""
        run, partition, other = self.run.c, self.partition.c, self.partition.alias("other")
        # Where a dead worker's lease has run out, it waits since then.
        since = func.coalesce(partition.lease_expires_at, partition.due_at, type_=UtcTime())
        # A run with several partitions sends its wake-ups by and by; it waits where nobody works any of them.
        attended = exists().where(
            other.c.run_id == run.id, other.c.worker.is_not(None), other.c.lease_expires_at > self.clock.now()
        )
        found = (
            self.wake_ups()
            .add_columns(since.label("since"), func.coalesce(partition.resend_at, since, type_=UtcTime()).label("send"))
            .where(since <= self.ago(waited), or_(run.partitions == 1, ~attended))
            .subquery()
        )
        each = (
            select(
                func.min(found.c.since).label("since"),
                func.max(found.c.send).label("send"),
                func.max(found.c.asked_at).label("asked_at"),
            )
            .group_by(found.c.run_id)
            .subquery()
        )
        late = case((each.c.send <= self.ago(unswept), 1))
        return select(func.count(each.c.since), func.min(each.c.since), func.max(each.c.asked_at), func.count(late))
