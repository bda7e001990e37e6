"""The SQL of what people are shown of runs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    case,
    func,
    or_,
    select,
)
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Select

from batchkit.model import RunId
from batchkit.states import PartitionKind
from batchkit.store.statements.terms import Terms, count_if


class Reading(Terms):
    """The SQL of what people are shown of runs."""

    def job_of(self, run_id: RunId) -> Select[Any]:
        """Read the name of a run's job."""
        return select(self.run.c.job).where(self.run.c.id == run_id)

    def read_records(self) -> Select[Any]:
        """Read runs with their progress, in this one statement, so that the counters belong together."""
        partition = self.partition.c
        return select(
            self.run,
            self._of_items(func.coalesce(func.sum(partition.done), 0)).label("done"),
            self._of_items(func.coalesce(func.sum(partition.failed), 0)).label("failed"),
            self._of_items(func.coalesce(func.sum(partition.in_doubt), 0)).label("in_doubt"),
            self._of_items(count_if(self.is_live())).label("workers"),
            self._of_items(func.sum(case((self.is_live(), partition.rate)))).label("rate"),
            self._of_items(func.max(partition.chunk_size)).label("chunk_size"),
            self.clock.now().label("read_at"),
        )

    def read_partitions(self, run_id: RunId) -> Select[Any]:
        """Read a run's partitions and whether each has a live lease."""
        return (
            select(self.partition, self.is_live().label("is_live"))
            .where(self.partition.c.run_id == run_id)
            .order_by(self.partition.c.number)
        )

    def read_carries(self, run_id: RunId) -> Select[Any]:
        """Read what the partitions of a run's items carry, their counters, and where each has its place."""
        partition = self.partition.c
        counters = (partition.carry, partition.done, partition.failed, partition.in_doubt)
        return select(*counters, partition.number, partition.cut_from).where(
            partition.run_id == run_id, partition.kind == PartitionKind.ITEMS
        )

    def read_history(self, run_id: RunId) -> Select[Any]:
        """Read a run's changes of state, oldest first."""
        return select(self.transition).where(self.transition.c.run_id == run_id).order_by(self.transition.c.id)

    def read_transition(self, number: int) -> Select[Any]:
        """Read one change of a run's state."""
        return select(self.transition).where(self.transition.c.id == number)

    def chunk_seconds(self, *, within: float) -> Select[Any]:
        """Give the longest last chunk, by job, of the runs that have not ended longer ago than *within*."""
        run, partition = self.run.c, self.partition.c
        return (
            select(run.job, func.max(partition.chunk_size / partition.rate))
            .join(self.partition, partition.run_id == run.id)
            .where(
                partition.rate > 0,
                partition.chunk_size.is_not(None),
                or_(run.finished_at.is_(None), run.finished_at > self.ago(within)),
            )
            .group_by(run.job)
        )

    def _of_items(self, value: ColumnElement[Any]) -> ColumnElement[Any]:
        of_run = (self.partition.c.run_id == self.run.c.id, self.partition.c.kind == PartitionKind.ITEMS)
        return select(value).where(*of_run).correlate(self.run).scalar_subquery()
