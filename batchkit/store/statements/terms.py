"""The guards and terms that the statements of all subjects share."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import (
    Float,
    and_,
    case,
    func,
    literal,
    not_,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.sql.dml import Update
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Select

from batchkit.model import Lease
from batchkit.states import FINAL, WORKABLE, PartitionState, RunState
from batchkit.store.clock import Clock, Later
from batchkit.store.tables import Tables

V = TypeVar("V")

#: How long a message is given to reach a worker before it is sent again.
PATIENCE_SECONDS = 15.0


class Terms:
    """
    What the statements of each subject are made of: the tables of one schema, one clock, and the guards.

    MySQL sets the columns of an UPDATE one after the other, and a value sees those that were set before it: none may
    read a column that the same statement sets, unless the same comes out.
    """

    def __init__(self, tables: Tables, clock: Clock) -> None:
        self.run = tables.run
        self.partition = tables.partition
        self.transition = tables.transition
        self.failure = tables.failure
        self.worker = tables.worker
        self.clock = clock

    def update_partition(self) -> Update:
        """
        Begin an UPDATE of partitions, which are found by their run and number and by no other index.

        Where a table is small MySQL may take any index that begins with the run. It would lock the entry there before
        the row, and deadlock with who has the row and changes the entry.
        """
        by_key, made = "FORCE INDEX (PRIMARY)", update(self.partition)
        for name in ("mysql", "mariadb"):
            made = made.with_hint(by_key, dialect_name=name)
        return made

    def is_held_by(self, lease: Lease) -> ColumnElement[bool]:
        """Say that a partition is held under this very lease, live or not."""
        partition = self.partition.c
        return and_(
            partition.run_id == lease.run_id,
            partition.number == lease.number,
            partition.fence == lease.fence,
            partition.holder == lease.holder,
        )

    def is_free(self) -> ColumnElement[bool]:
        """Say that nobody has a live lease on a partition."""
        partition = self.partition.c
        return or_(partition.lease_expires_at.is_(None), partition.lease_expires_at <= self.clock.now())

    def is_live(self) -> ColumnElement[bool]:
        """Say that somebody has a live lease on a partition."""
        return self.partition.c.lease_expires_at > self.clock.now()

    def is_held(self) -> ColumnElement[bool]:
        """Say that somebody holds a partition, or did when the lease ran out; an index finds these few."""
        return self.partition.c.worker.is_not(None)

    def is_workable(self) -> ColumnElement[bool]:
        """
        Say that workers may claim partitions of a run, in words by which an index finds these few.

        Where a run has no end it is in no state of those that have ended. Both at once would have PostgreSQL think that
        they are fewer by far than they are, and compare each with each.
        """
        is_unworkable = self.run.c.state.in_(sorted({*RunState} - FINAL - WORKABLE))
        return and_(self.run.c.finished_at.is_(None), not_(is_unworkable))

    def is_not_held_off(self) -> ColumnElement[bool]:
        """Say that no throttle holds all of a run off."""
        return or_(self.run.c.held_until.is_(None), self.run.c.held_until <= self.clock.now())

    def has_room(self) -> ColumnElement[bool]:
        """Say that a run may have another worker."""
        return or_(self.run.c.max_workers.is_(None), self.live_leases() < self.run.c.max_workers)

    def live_leases(self) -> ColumnElement[int]:
        """Count the live leases of a run."""
        other = self.partition.alias("other").c
        return (
            select(func.count())
            .where(other.run_id == self.run.c.id, other.worker.is_not(None), other.lease_expires_at > self.clock.now())
            .correlate(self.run)
            .scalar_subquery()
        )

    def first_waiting(self, column: ColumnElement[V], *, of: ColumnElement[str]) -> Select[Any]:
        """Read a column of the partition that has waited longest in a run, of those that nobody has."""
        partition = self.partition.c
        return (
            select(column)
            .where(
                partition.run_id == of,
                partition.state == PartitionState.OPEN,
                partition.due_at <= self.clock.one(),
                self.is_free(),
            )
            .order_by(partition.due_at, partition.number)
            .limit(1)
        )

    def is_overdue(self) -> ColumnElement[bool]:
        """Say that a wake-up is not known to be under way, or has been for too long."""
        return or_(self.partition.c.resend_at.is_(None), self.partition.c.resend_at <= self.clock.now())

    def ago(self, seconds: float) -> ColumnElement[datetime]:
        """Give the moment *seconds* ago."""
        return self.clock.after(literal(-seconds, Float))

    def patience(self) -> ColumnElement[datetime]:
        """Give the moment until which a message that is sent now counts as under way."""
        return self.clock.after(literal(PATIENCE_SECONDS, Float))

    def renewed(self, seconds: ColumnElement[float]) -> Later:
        """Give the end of a lease that is renewed for *seconds*, never before the end that it has."""
        return Later(self.partition.c.lease_expires_at, self.clock.after(seconds))


def count_if(condition: ColumnElement[bool]) -> ColumnElement[int]:
    """Count the rows of which *condition* is true."""
    return func.count(case((condition, 1)))


def unindexed(column: ColumnElement[V]) -> ColumnElement[V]:
    """
    Give a column in a form that no index can find.

    For the guard of an UPDATE of one row: in a small table MySQL may look a row up by the guard's index and not by its
    id, and then locks the entry in that index before the row, and deadlocks with whoever locks the row first.
    """
    return func.coalesce(column, null(), type_=column.type)
