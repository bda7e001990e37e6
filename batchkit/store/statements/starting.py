"""The SQL of starting runs and planning them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    insert,
    select,
    update,
)
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.selectable import Select

from batchkit.model import Lease, NewRun, Plan, Range, RunId
from batchkit.states import PartitionKind, PartitionState, RunState
from batchkit.store.statements.terms import Terms

_SHORTEST_CARRY = "{}"


class Starting(Terms):
    """The SQL of starting runs and planning them."""

    def insert_run(self, new: NewRun) -> Executable:
        """Write a queued run."""
        return insert(self.run).values(
            id=new.id,
            job=new.job,
            params=new.params,
            queue=new.queue,
            state=RunState.QUEUED,
            version=0,
            delivery=new.delivery,
            total_is_estimate=False,
            interruptions=0,
            rerun_of=new.rerun_of,
            failures_of=new.failures_of,
            retries=0,
            start_key=new.start_key,
            message=new.message,
            unique_key=new.unique_key,
            active_key=new.unique_key,
            start_after=new.after,
            item_limit=new.limit,
            is_dry_run=new.is_dry_run,
            retries_in_doubt=new.retries_in_doubt,
            partitions=new.partitions,
            max_workers=new.max_workers,
            created_at=self.clock.now(),
        )

    def insert_partition(
        self,
        run_id: RunId,
        number: int,
        range_: Range,
        *,
        kind: PartitionKind,
        state: PartitionState,
        is_shared: bool = False,
    ) -> Executable:
        """Write a partition that nobody holds yet; its wake-up is sent at once, or, *is_shared*, as those of others."""
        return self.insert_partitions(kind=kind, state=state, is_shared=is_shared).values(
            run_id=run_id, number=number, cursor=range_.after, until=range_.until
        )

    def insert_partitions(self, *, kind: PartitionKind, state: PartitionState, is_shared: bool) -> Insert:
        """Write partitions that nobody holds yet; it is executed with their run, numbers and ranges."""
        return insert(self.partition).values(
            kind=kind,
            state=state,
            done=0,
            failed=0,
            in_doubt=0,
            seq=0,
            carry=_SHORTEST_CARRY,
            fence=0,
            claims=0,
            due_at=self.clock.now(),
            wake_no=0,
            resend_at=self.clock.now() if is_shared else self.patience(),
        )

    def plan_run(self, lease: Lease, plan: Plan) -> Executable:
        """Write down, once, what the first slice found out about the run."""
        return (
            update(self.run)
            .where(self.run.c.id == lease.run_id, self.run.c.planned_at.is_(None))
            .values(
                planned_at=self.clock.now(),
                total=plan.total,
                total_is_estimate=plan.total_is_estimate,
                identity=plan.identity,
                fingerprint=plan.fingerprint,
            )
        )

    def forget_meaning(self, run_id: RunId) -> Executable:
        """Forget what the cursors of a run that nobody works mean: the next slice writes down what they mean to it."""
        run = self.run.c
        return (
            update(self.run)
            .where(run.id == run_id, run.state == RunState.QUEUED)
            .values(identity=None, fingerprint=None)
        )

    def accept(self, lease: Lease, *, identity: str, fingerprint: str | None) -> Executable:
        """Write down what the cursors of a run mean, where that was forgotten."""
        run = self.run.c
        return (
            update(self.run)
            .where(run.id == lease.run_id, run.planned_at.is_not(None), run.identity.is_(None))
            .values(identity=identity, fingerprint=fingerprint)
        )

    def plan_first_partition(self, lease: Lease, range_: Range | None) -> Executable:
        """Give the partition that the run was started with its range; it is final where the source is empty."""
        state = PartitionState.FINAL if range_ is None else PartitionState.OPEN
        bounds = range_ or Range()
        return (
            update(self.partition)
            .where(self.is_held_by(lease))
            .values(cursor=bounds.after, until=bounds.until, state=state)
        )

    def retire_key(self, run_id: RunId, start_key: str, *, retired: str) -> Executable:
        """Take a start key from a run that has ended."""
        run = self.run.c
        return update(self.run).where(run.id == run_id, run.start_key == start_key).values(start_key=retired)

    def change_message(self, run_id: RunId, message: str) -> Executable:
        """Write another message down for a run that has not ended."""
        run = self.run.c
        return update(self.run).where(run.id == run_id, run.finished_at.is_(None)).values(message=message)

    def run_with_key(self, start_key: str) -> Select[Any]:
        """Find the run that a start has made."""
        return select(self.run.c.id).where(self.run.c.start_key == start_key)

    def active_run(self, unique_key: str) -> Select[Any]:
        """Find the unfinished run that has a unique key."""
        return select(self.run.c.id).where(self.run.c.active_key == unique_key)

    def active_rival(self, run_id: RunId) -> Select[Any]:
        """Find the unfinished run that has the unique key of another, which has ended."""
        run, rival = self.run.c, self.run.alias("rival")
        return select(rival.c.id).join(self.run, run.unique_key == rival.c.active_key).where(run.id == run_id)
