"""The SQL of the states of runs, changed under the run's lock."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    and_,
    exists,
    insert,
    select,
    update,
)
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Select

from batchkit.model import RunId
from batchkit.promises import AT_LEAST_ONCE, EXACTLY_ONCE
from batchkit.states import FINAL, PartitionKind, PartitionState, Request, RunState
from batchkit.store.statements.terms import Terms, count_if, unindexed


class Settling(Terms):
    """The SQL of the states of runs, changed under the run's lock."""

    def lock_run(self, run_id: RunId) -> Executable:
        """
        Lock the run by an UPDATE; what is then read in a new statement is what the last holder of the lock left.

        A SELECT ... FOR UPDATE would not do: under REPEATABLE READ two last partitions each saw the other unfinished.
        """
        return update(self.run).where(self.run.c.id == run_id).values(version=self.run.c.version + 1)

    def read_run(self, run_id: RunId) -> Select[Any]:
        """Read a run's own row."""
        return select(self.run).where(self.run.c.id == run_id)

    def change_state(
        self, run_id: RunId, before: RunState, after: RunState, *, interruptions: int = 0, **values: object
    ) -> Executable:
        """
        Change a run's state, from the one that it is in, and take back what was requested of it.

        The end gives its unique key back. One that goes on after its end takes it again, or is refused by the index.
        """
        return (
            update(self.run)
            .where(self.run.c.id == run_id, self.run.c.state == before)
            .values(
                state=after,
                requested=None,
                interruptions=self.run.c.interruptions + interruptions,
                active_key=None if after in FINAL else self.run.c.unique_key,
                **values,
            )
        )

    def insert_transition(
        self, run_id: RunId, before: RunState | None, after: RunState, *, reason: str, worker: str | None
    ) -> Insert:
        """Record a change of state."""
        return insert(self.transition).values(
            run_id=run_id, at=self.clock.now(), before=before, after=after, reason=reason, worker=worker
        )

    def request(self, run_id: RunId, wanted: Request | None) -> Executable:
        """Ask something of a running run, or take it back."""
        return (
            update(self.run)
            .where(self.run.c.id == run_id, self.run.c.state == RunState.RUNNING)
            .values(requested=wanted)
        )

    def tally(self, run_id: RunId) -> Select[Any]:
        """Count a run's open partitions of items, those of any kind not final, live leases, and doubts left."""
        partition = self.partition.c
        counts: list[ColumnElement[Any]] = [
            count_if(and_(partition.kind == PartitionKind.ITEMS, partition.state == PartitionState.OPEN)),
            count_if(partition.state != PartitionState.FINAL),
            count_if(self.is_live()),
            count_if(and_(partition.doubt.is_not(None), partition.holder.is_(None))),
        ]
        return select(*counts).where(partition.run_id == run_id)

    def evict(self, run_id: RunId) -> Executable:
        """End for good the leases of a run that have run out: a holder that wakes up later is stale."""
        partition = self.partition.c
        return (
            update(self.partition)
            .where(partition.run_id == run_id, partition.holder.is_not(None), self.is_free())
            .values(
                fence=partition.fence + 1,
                holder=None,
                worker=None,
                lease_expires_at=None,
                due_at=self.clock.now(),
                resend_at=self.clock.now(),
            )
        )

    def open_finish(self, run_id: RunId, *, is_shared: bool) -> Executable:
        """Let workers claim the run's `finish`."""
        partition = self.partition.c
        return (
            update(self.partition)
            .where(partition.run_id == run_id, partition.state == PartitionState.WAITING)
            .values(
                state=PartitionState.OPEN,
                due_at=self.clock.now(),
                resend_at=self.clock.now() if is_shared else self.patience(),
            )
        )

    def make_due(self, run_id: RunId, *, is_shared: bool) -> Executable:
        """Let a run's partitions be claimed at once; who asks for it wakes workers up, by and by where *is_shared*."""
        partition = self.partition.c
        return (
            update(self.partition)
            .where(partition.run_id == run_id)
            .values(
                due_at=self.clock.now(),
                resend_at=self.clock.now() if is_shared else self.patience(),
                patience_seconds=None,
            )
        )

    def held_by(self, worker: str) -> Select[Any]:
        """Find the runs that a worker holds leases on, or did when they ran out."""
        run, partition = self.run.c, self.partition.c
        return (
            select(partition.run_id)
            .join(self.run, run.id == partition.run_id)
            .where(run.state == RunState.RUNNING, partition.worker == worker)
            .distinct()
        )

    def expire(self, worker: str, run_id: RunId) -> Executable:
        """Let a worker's leases on a run be over."""
        partition = self.partition.c
        return (
            update(self.partition)
            .where(partition.run_id == run_id, unindexed(partition.worker) == worker, self.is_live())
            .values(lease_expires_at=self.clock.now())
        )

    def unattended(self, limit: int, run_id: RunId | None = None) -> Select[Any]:
        """Find runs, or the one asked for, that are running though nobody holds a lease on them."""
        run, partition = self.run.c, self.partition.c
        attended = exists().where(partition.run_id == run.id, self.is_live())
        found = select(run.id).where(run.state == RunState.RUNNING, ~attended).order_by(run.id).limit(limit)
        return found if run_id is None else found.where(run.id == run_id)

    def ended(self, run_id: RunId) -> Select[Any]:
        """Read the partitions of a run whose holders' leases have run out."""
        partition = self.partition.c
        return select(self.partition).where(partition.run_id == run_id, partition.holder.is_not(None), self.is_free())

    def suspects(self, run_id: RunId) -> Select[Any]:
        """Read the partitions of a run that are suspected of something."""
        return select(self.partition).where(self.partition.c.run_id == run_id, self.partition.c.suspicion.is_not(None))

    def suspect(self, run_id: RunId, number: int, fence: int, suspicion: str | None) -> Executable:
        """Write down what a partition is suspected of, unless it was claimed meanwhile."""
        partition = self.partition.c
        return (
            update(self.partition)
            .where(partition.run_id == run_id, partition.number == number, partition.fence == fence)
            .values(suspicion=suspicion)
        )

    def count_interruption(self, run_id: RunId) -> Executable:
        """Count that a run was interrupted without leaving its state."""
        return update(self.run).where(self.run.c.id == run_id).values(interruptions=self.run.c.interruptions + 1)

    def explain_waiting(self, run_id: RunId, reason: str | None) -> Executable:
        """Write down why a worker left the run to others."""
        return update(self.run).where(self.run.c.id == run_id).values(waiting_reason=reason)

    def weaken(self, run_id: RunId) -> Executable:
        """Write down that a run cannot keep what it promises, and what it can."""
        run = self.run.c
        return update(self.run).where(run.id == run_id, run.delivery == EXACTLY_ONCE).values(delivery=AT_LEAST_ONCE)

    def count_retry(self, run_id: RunId, reason: str) -> Executable:
        """Count a chunk that is tried again."""
        return (
            update(self.run).where(self.run.c.id == run_id).values(retries=self.run.c.retries + 1, retry_reason=reason)
        )
