"""The SQL of messages that tell of the ends of runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    Float,
    and_,
    case,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Select

from batchkit.model import RunId
from batchkit.store.statements.terms import Terms, unindexed


class Announcing(Terms):
    """The SQL of messages that tell of the ends of runs."""

    def announcement_due(self) -> ColumnElement[datetime | None]:
        """Say when the message of a run that has ended is to be sent again; never where no message started it."""
        return case((self.run.c.message.is_not(None), self.patience()), else_=None)

    def is_announcement_due(self) -> ColumnElement[bool]:
        """Say that the message of a run that has ended has not told of it in time."""
        return self.run.c.announce_at <= self.clock.now()

    def unannounced(self) -> Select[Any]:
        """Read the messages that are to tell of the ends of runs."""
        run, partition = self.run.c, self.partition.c
        return (
            select(
                run.id.label("run_id"),
                partition.number.label("partition"),
                partition.wake_no.label("number"),
                run.job,
                run.params,
                run.queue,
                run.message,
                run.finished_at.label("due_at"),
                self.clock.now().label("asked_at"),
                true().label("is_announcement"),
            )
            .join(self.partition, and_(partition.run_id == run.id, partition.number == 0))
            .order_by(run.announce_at)
        )

    def take_announcement_resend(self, run_id: RunId, *, patience: float) -> Executable:
        """Win the right to send the message of an ended run again."""
        return (
            update(self.run)
            .where(self.run.c.id == run_id, unindexed(self.run.c.announce_at) <= self.clock.now())
            .values(announce_at=self.clock.after(literal(patience, Float)))
        )

    def begin_announcing(self, run_id: RunId, *, seconds: float) -> Executable:
        """Win the right to tell of the end of a run, for *seconds*."""
        run = self.run.c
        return (
            update(self.run)
            .where(
                run.id == run_id,
                unindexed(run.announce_at).is_not(None),
                or_(run.announcing_until.is_(None), run.announcing_until <= self.clock.now()),
            )
            .values(
                announcing_until=self.clock.after(literal(seconds, Float)),
                announce_at=self.clock.after(literal(seconds, Float)),
            )
        )

    def keep_announcing(self, run_id: RunId, *, seconds: float) -> Executable:
        """Push the end of the right to tell of the end of a run forward; nothing where it was told or resumed."""
        until = self.clock.after(literal(seconds, Float))
        return (
            update(self.run)
            .where(self.run.c.id == run_id, self.run.c.announcing_until.is_not(None))
            .values(announcing_until=until, announce_at=until)
        )

    def announced(self, run_id: RunId) -> Executable:
        """Write down that the end of a run was told."""
        return update(self.run).where(self.run.c.id == run_id).values(announce_at=None, announcing_until=None)
