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
    update,
)
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Select

from batchkit.model import RunId, WakeUp
from batchkit.states import WORKABLE, PartitionKind, PartitionState
from batchkit.store.clock import Later, UtcTime
from batchkit.store.statements.terms import Terms, count_if


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
                run.state.in_(WORKABLE),
                run.requested.is_(None),
                self.is_not_held_off(),
                partition.state == PartitionState.OPEN,
                self.is_free(),
                partition.due_at <= self.clock.now(),
            )
            .order_by(partition.due_at, partition.run_id, partition.number)
        )

    def shares(self, run_id: RunId) -> Select[Any]:
        """Count the wake-ups of a run that are under way, and its live leases; give how many of these it may have."""
        run, partition = self.run.c, self.partition.c
        is_under_way = and_(
            partition.state == PartitionState.OPEN,
            self.is_free(),
            partition.due_at <= self.clock.now(),
            ~self.is_overdue(),
        )
        counts: list[ColumnElement[Any]] = [count_if(is_under_way), count_if(self.is_live())]
        return (
            select(*counts, run.max_workers)
            .join(self.run, run.id == partition.run_id)
            .where(partition.run_id == run_id)
            .group_by(run.max_workers)
        )

    def short_of_workers(self, limit: int) -> Select[Any]:
        """Find runs with several partitions of which some wait, and no wake-up of theirs is under way."""
        waiting = self.wake_ups().where(self.is_overdue(), self.run.c.partitions > 1, self.has_room()).order_by(None)
        return waiting.with_only_columns(self.run.c.id).distinct().limit(limit)

    def take_resend(self, wake_up: WakeUp, *, patience: float) -> Executable:
        """Win the right to send a wake-up again; nobody else has it for *patience* seconds."""
        return (
            update(self.partition)
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
            update(self.partition)
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
        partition, other = self.partition.c, self.partition.alias("other")
        # Where a dead worker's lease has run out, it waits since then.
        since = func.coalesce(partition.lease_expires_at, partition.due_at, type_=UtcTime())
        # A run with several partitions sends its wake-ups by and by; it waits where nobody works any of them.
        attended = exists().where(other.c.run_id == partition.run_id, other.c.lease_expires_at > self.clock.now())
        found = (
            self.wake_ups()
            .add_columns(since.label("since"), func.coalesce(partition.resend_at, since, type_=UtcTime()).label("send"))
            .where(since <= self.ago(waited), or_(self.run.c.partitions == 1, ~attended))
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
