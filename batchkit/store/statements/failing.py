"""The SQL of items that failed, or are in doubt."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import (
    false,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Select

from batchkit.model import FailedItem, RunId
from batchkit.store.statements.terms import Terms


class Failing(Terms):
    """The SQL of items that failed, or are in doubt."""

    def insert_failure(self, run_id: RunId, partition: int, failed: FailedItem) -> Executable:
        """Record an item that failed, or is in doubt."""
        return insert(self.failure).values(
            run_id=run_id,
            partition=partition,
            after=failed.after,
            cursor=failed.cursor,
            item=failed.item,
            error_type=failed.error.type,
            message=failed.error.message,
            traceback=failed.error.traceback,
            attempts=failed.attempts,
            failed_at=self.clock.now(),
            in_doubt=failed.in_doubt,
        )

    def fail_again(self, run_id: RunId, failed: FailedItem) -> Executable:
        """Record that a failure failed again when the run *run_id* tried it; nothing where it is resolved."""
        failure = self.failure.c
        return (
            update(self.failure)
            .where(failure.id == failed.failure_id, failure.resolved_at.is_(None))
            .values(
                error_type=failed.error.type,
                message=failed.error.message,
                traceback=failed.error.traceback,
                attempts=failure.attempts + failed.attempts,
                failed_at=self.clock.now(),
                in_doubt=failed.in_doubt,
                retried_by=run_id,
            )
        )

    def resolve(self, run_id: RunId, failures: Collection[int]) -> Executable:
        """Mark failures as done by the run *run_id*, those that nobody has done before."""
        failure = self.failure.c
        return (
            update(self.failure)
            .where(failure.id.in_(failures), failure.resolved_at.is_(None))
            .values(retried_by=run_id, resolved_at=self.clock.now())
        )

    def open_failures(self, run_id: RunId, *, in_doubt: bool) -> Select[Any]:
        """Read the failures of a run that are not resolved, oldest first; *in_doubt*: those that may be none, too."""
        return select(self.failure).where(*self._is_open(run_id, in_doubt=in_doubt)).order_by(self.failure.c.id)

    def last_open_failure(self, run_id: RunId, *, in_doubt: bool) -> Select[Any]:
        """Read the number of the newest failure of a run that is not resolved."""
        return select(func.max(self.failure.c.id)).where(*self._is_open(run_id, in_doubt=in_doubt))

    def count_open_failures(self, run_id: RunId, *, in_doubt: bool) -> Select[Any]:
        """Count the failures of a run that are not resolved."""
        return select(func.count()).where(*self._is_open(run_id, in_doubt=in_doubt))

    def failures(self, run_id: RunId, *, after: int, limit: int) -> Select[Any]:
        """Read the failures of a run, and those that it tried again for another, oldest first."""
        failure = self.failure
        return (
            select(failure)
            .where(or_(failure.c.run_id == run_id, failure.c.retried_by == run_id), failure.c.id > after)
            .order_by(failure.c.id)
            .limit(limit)
        )

    def left_in_doubt(self, run_id: RunId) -> Select[Any]:
        """Read what is in doubt in the partitions of a run that nobody holds."""
        partition = self.partition.c
        return select(partition.number, partition.fence, partition.seq, partition.doubt).where(
            partition.run_id == run_id, partition.doubt.is_not(None), partition.holder.is_(None)
        )

    def count_doubt(self, run_id: RunId, number: int, *, fence: int, seq: int, items: int) -> Executable:
        """Count what is in doubt in a partition, and have done with it; no row where it has moved on meanwhile."""
        partition = self.partition.c
        return (
            update(self.partition)
            .where(
                partition.run_id == run_id,
                partition.number == number,
                partition.fence == fence,
                partition.seq == seq,
                partition.doubt.is_not(None),
            )
            .values(in_doubt=partition.in_doubt + items, doubt=None, seq=partition.seq + 1)
        )

    def item_tally(self, run_id: RunId) -> Select[Any]:
        """Count a run's items that were done, and those that failed."""
        partition = self.partition.c
        return select(func.coalesce(func.sum(partition.done), 0), func.coalesce(func.sum(partition.failed), 0)).where(
            partition.run_id == run_id
        )

    def _is_open(self, run_id: RunId, *, in_doubt: bool) -> list[ColumnElement[bool]]:
        failure = self.failure.c
        known: list[ColumnElement[bool]] = [] if in_doubt else [failure.in_doubt.is_(false())]
        return [failure.run_id == run_id, failure.resolved_at.is_(None), *known]
