"""The guards and terms that the statements of all subjects share."""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

from sqlalchemy import (
    Float,
    and_,
    case,
    func,
    literal,
    null,
    or_,
    select,
)
from sqlalchemy.sql.elements import ColumnElement

from batchkit.model import Lease
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

    def is_not_held_off(self) -> ColumnElement[bool]:
        """Say that no throttle holds all of a run off."""
        return or_(self.run.c.held_until.is_(None), self.run.c.held_until <= self.clock.now())

    def has_room(self) -> ColumnElement[bool]:
        """Say that a run may have another worker."""
        run, other = self.run.c, self.partition.alias("other")
        workers = (
            select(func.count())
            .select_from(other)
            .where(other.c.run_id == run.id, other.c.lease_expires_at > self.clock.now())
            .correlate(self.run)
            .scalar_subquery()
        )
        return or_(run.max_workers.is_(None), workers < run.max_workers)

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
