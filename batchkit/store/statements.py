"""The SQL of runs and partitions: one function is one statement, with its guard visible."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import (
    Float,
    Integer,
    String,
    Text,
    and_,
    bindparam,
    case,
    exists,
    false,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.dml import Insert, Update
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Select

from batchkit.model import FailedItem, Lease, NewRun, Plan, Range, RunId, WakeUp
from batchkit.promises import AT_LEAST_ONCE, EXACTLY_ONCE
from batchkit.states import FINAL, WORKABLE, PartitionKind, PartitionState, Request, RunState
from batchkit.store.clock import Clock, Later, UtcTime
from batchkit.store.tables import Tables

V = TypeVar("V")

_SHORTEST_CARRY = "{}"

#: How long a message is given to reach a worker before it is sent again.
PATIENCE_SECONDS = 15.0


class Statements:
    """
    Builds the statements for the tables of one schema and one clock.

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

    # Starting and planning

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
            resend_at=self.clock.now() if is_shared else self._patience(),
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
            .where(self._is_held_by(lease))
            .values(cursor=bounds.after, until=bounds.until, state=state)
        )

    # Claiming and working

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
            self._is_free(),
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
            self._is_not_held_off(),
            self._has_room(),
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

    def reserved_until(self, run_id: RunId) -> Select[Any]:
        """Read until when the rate of a run is reserved, and the moment; under the run's lock."""
        return select(self.run.c.next_item_at, self.clock.now()).where(self.run.c.id == run_id)

    def reserve_until(self, run_id: RunId, ends: datetime) -> Executable:
        """Reserve the rate of a run until *ends*; under the run's lock."""
        return update(self.run).where(self.run.c.id == run_id).values(next_item_at=ends)

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
                self._is_free(),
                run.state.in_(WORKABLE),
                run.requested.is_(None),
                self._has_room(),
            )
            .order_by(case((self.is_overdue(), 0), else_=1), partition.due_at, partition.number)
            .limit(limit)
        )
        if not is_due:
            return statement
        return statement.where(partition.due_at <= self.clock.now(), self._is_not_held_off())

    def workers(self, run_id: RunId) -> Select[Any]:
        """Count the live leases on a run."""
        return select(func.count()).where(self.partition.c.run_id == run_id, self._is_live())

    def is_held_off(self, run_id: RunId) -> Select[Any]:
        """Tell whether a throttle holds all partitions of a run off."""
        return select(self.run.c.id).where(self.run.c.id == run_id, ~self._is_not_held_off())

    def hold_off(self, run_id: RunId, *, seconds: float) -> Executable:
        """Hold all partitions of a run off; those that are held by a worker ask its throttle themselves."""
        return (
            update(self.run).where(self.run.c.id == run_id).values(held_until=self.clock.after(literal(seconds, Float)))
        )

    def lock_run(self, run_id: RunId) -> Executable:
        """
        Lock the run by an UPDATE; what is then read in a new statement is what the last holder of the lock left.

        A SELECT ... FOR UPDATE would not do: under REPEATABLE READ two last partitions each saw the other unfinished.
        """
        return update(self.run).where(self.run.c.id == run_id).values(version=self.run.c.version + 1)

    def take_turn(self, run_id: RunId) -> Executable:
        """Write down that a worker has come for some of a run: other runs that wait go first after that."""
        return update(self.run).where(self.run.c.id == run_id).values(turn_at=self.clock.now())

    def read_run(self, run_id: RunId) -> Select[Any]:
        """Read a run's own row."""
        return select(self.run).where(self.run.c.id == run_id)

    def job_of(self, run_id: RunId) -> Select[Any]:
        """Read the name of a run's job."""
        return select(self.run.c.job).where(self.run.c.id == run_id)

    def read_partition(self, run_id: RunId, number: int) -> Select[Any]:
        """Read a partition and whether its lease is live."""
        return select(self.partition, self._is_live().label("is_live")).where(
            self.partition.c.run_id == run_id, self.partition.c.number == number
        )

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
            self._is_free(),
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
            self._is_free(),
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

    def protect(self, lease: Lease, *, is_protected: bool) -> Executable:
        """Write down whether the holder of a live lease must not be stopped."""
        return update(self.partition).where(self._is_held_by(lease), self._is_live()).values(is_protected=is_protected)

    def renew(self, lease: Lease) -> Executable:
        """Push the end of a live lease forward, never backwards."""
        return (
            update(self.partition)
            .where(self._is_held_by(lease), self._is_live())
            .values(lease_expires_at=self._renewed(literal(lease.seconds, Float)))
        )

    def lengthen(self, lease: Lease) -> Executable:
        """Make the partition's next leases twice as long: its worker lived but could not renew this one in time."""
        return (
            update(self.partition)
            .where(
                self.partition.c.run_id == lease.run_id,
                self.partition.c.number == lease.number,
                self.partition.c.lease_seconds <= lease.seconds,
            )
            .values(lease_seconds=lease.seconds * 2)
        )

    def checkpoint(self, *, one_writer: bool) -> Update:
        """
        Move a partition on, as the last statement of its chunk's transaction that locks anything.

        No row found means that the lease is over. With *one_writer* the lease must have been live when the transaction
        took the write lock: nobody can have claimed since, and nobody, we neither, could renew it.
        """
        partition = self.partition.c
        since = bindparam("locked_at", type_=String) if one_writer else self.clock.now()
        return (
            update(self.partition)
            .where(
                partition.run_id == bindparam("run_id", type_=String),
                partition.number == bindparam("number_", type_=Integer),
                partition.fence == bindparam("fence_", type_=Integer),
                partition.holder == bindparam("holder_", type_=String),
                partition.seq == bindparam("seq_", type_=Integer),
                partition.lease_expires_at > since,
            )
            .values(
                cursor=bindparam("cursor_", type_=Text),
                done=partition.done + bindparam("done_", type_=Integer),
                failed=partition.failed + bindparam("failed_", type_=Integer),
                seq=partition.seq + 1,
                carry=bindparam("carry_", type_=Text),
                chunk_size=bindparam("chunk_size_", type_=Integer),
                rate=bindparam("rate_", type_=Float),
                doubt=bindparam("doubt_", type_=Text),
                checkpointed_at=self.clock.now(),
                chunk_seconds=bindparam("chunk_seconds_", type_=Float),
                lease_expires_at=self._renewed(bindparam("lease_", type_=Float)),
            )
        )

    def checkpoint_with_standing(self, *, one_writer: bool) -> Executable:
        """Move a partition on, and bring back how the run stands: no row means that the lease is over."""
        run, this_run = self.run.c, bindparam("run_id", type_=String)
        return self.checkpoint(one_writer=one_writer).returning(
            select(run.state).where(run.id == this_run).scalar_subquery(),
            select(run.requested).where(run.id == this_run).scalar_subquery(),
        )

    def standing(self) -> Select[Any]:
        """Read how a run stands, where the checkpoint cannot bring it back; as it is committed, and without a lock."""
        return select(self.run.c.state, self.run.c.requested).where(self.run.c.id == bindparam("run_id", type_=String))

    def release(self, lease: Lease, *, state: PartitionState, delay: float) -> Executable:
        """
        Give a partition back: it is due after *delay* seconds, behind those that wait already.

        Who gives it back without a delay wakes the next worker up; else the sweep does, when it is due. Of several
        partitions, those are woken for that have waited longest.
        """
        is_left = delay > 0 or lease.partitions > 1
        return (
            update(self.partition)
            .where(self._is_held_by(lease))
            .values(
                holder=None,
                worker=None,
                lease_expires_at=None,
                state=state,
                due_at=self.clock.after(literal(delay, Float)),
                resend_at=self.clock.after(literal(delay, Float)) if is_left else self._patience(),
            )
        )

    # Suspecting

    def ended(self, run_id: RunId) -> Select[Any]:
        """Read the partitions of a run whose holders' leases have run out."""
        partition = self.partition.c
        return select(self.partition).where(partition.run_id == run_id, partition.holder.is_not(None), self._is_free())

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

    def suspect_held(self, lease: Lease, suspicion: str | None) -> Executable:
        """Write down what a partition is suspected of, where it is still its holder's."""
        return update(self.partition).where(self._is_held_by(lease)).values(suspicion=suspicion)

    # Settling

    def evict(self, run_id: RunId) -> Executable:
        """End for good the leases of a run that have run out: a holder that wakes up later is stale."""
        partition = self.partition.c
        return (
            update(self.partition)
            .where(partition.run_id == run_id, partition.holder.is_not(None), self._is_free())
            .values(
                fence=partition.fence + 1,
                holder=None,
                worker=None,
                lease_expires_at=None,
                due_at=self.clock.now(),
                resend_at=self.clock.now(),
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
            .where(partition.run_id == run_id, unindexed(partition.worker) == worker, self._is_live())
            .values(lease_expires_at=self.clock.now())
        )

    def tally(self, run_id: RunId) -> Select[Any]:
        """Count a run's open partitions of items, those of any kind not final, live leases, and doubts left."""
        partition = self.partition.c
        counts: list[ColumnElement[Any]] = [
            _count_if(and_(partition.kind == PartitionKind.ITEMS, partition.state == PartitionState.OPEN)),
            _count_if(partition.state != PartitionState.FINAL),
            _count_if(self._is_live()),
            _count_if(and_(partition.doubt.is_not(None), partition.holder.is_(None))),
        ]
        return select(*counts).where(partition.run_id == run_id)

    def open_finish(self, run_id: RunId, *, is_shared: bool) -> Executable:
        """Let workers claim the run's `finish`."""
        partition = self.partition.c
        return (
            update(self.partition)
            .where(partition.run_id == run_id, partition.state == PartitionState.WAITING)
            .values(
                state=PartitionState.OPEN,
                due_at=self.clock.now(),
                resend_at=self.clock.now() if is_shared else self._patience(),
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
                resend_at=self.clock.now() if is_shared else self._patience(),
                patience_seconds=None,
            )
        )

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

    def count_interruption(self, run_id: RunId) -> Executable:
        """Count that a run was interrupted without leaving its state."""
        return update(self.run).where(self.run.c.id == run_id).values(interruptions=self.run.c.interruptions + 1)

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

    def unattended(self, limit: int, run_id: RunId | None = None) -> Select[Any]:
        """Find runs, or the one asked for, that are running though nobody holds a lease on them."""
        run, partition = self.run.c, self.partition.c
        attended = exists().where(partition.run_id == run.id, self._is_live())
        found = select(run.id).where(run.state == RunState.RUNNING, ~attended).order_by(run.id).limit(limit)
        return found if run_id is None else found.where(run.id == run_id)

    # Waking up

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
                self._is_not_held_off(),
                partition.state == PartitionState.OPEN,
                self._is_free(),
                partition.due_at <= self.clock.now(),
            )
            .order_by(partition.due_at, partition.run_id, partition.number)
        )

    def is_overdue(self) -> ColumnElement[bool]:
        """Say that a wake-up is not known to be under way, or has been for too long."""
        return or_(self.partition.c.resend_at.is_(None), self.partition.c.resend_at <= self.clock.now())

    def shares(self, run_id: RunId) -> Select[Any]:
        """Count the wake-ups of a run that are under way, and its live leases; give how many of these it may have."""
        run, partition = self.run.c, self.partition.c
        is_under_way = and_(
            partition.state == PartitionState.OPEN,
            self._is_free(),
            partition.due_at <= self.clock.now(),
            ~self.is_overdue(),
        )
        counts: list[ColumnElement[Any]] = [_count_if(is_under_way), _count_if(self._is_live())]
        return (
            select(*counts, run.max_workers)
            .join(self.run, run.id == partition.run_id)
            .where(partition.run_id == run_id)
            .group_by(run.max_workers)
        )

    def short_of_workers(self, limit: int) -> Select[Any]:
        """Find runs with several partitions of which some wait, and no wake-up of theirs is under way."""
        waiting = self.wake_ups().where(self.is_overdue(), self.run.c.partitions > 1, self._has_room()).order_by(None)
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
                self._is_free(),
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
                self._is_free(),
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
            .where(since <= self._ago(waited), or_(self.run.c.partitions == 1, ~attended))
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
        late = case((each.c.send <= self._ago(unswept), 1))
        return select(func.count(each.c.since), func.min(each.c.since), func.max(each.c.asked_at), func.count(late))

    def chunk_seconds(self, *, within: float) -> Select[Any]:
        """Give the longest last chunk, by job, of the runs that have not ended longer ago than *within*."""
        run, partition = self.run.c, self.partition.c
        return (
            select(run.job, func.max(partition.chunk_size / partition.rate))
            .join(self.partition, partition.run_id == run.id)
            .where(
                partition.rate > 0,
                partition.chunk_size.is_not(None),
                or_(run.finished_at.is_(None), run.finished_at > self._ago(within)),
            )
            .group_by(run.job)
        )

    # Failures

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

    def failures(self, run_id: RunId, *, after: int, limit: int) -> Select[Any]:
        """Read the failures of a run, and those that it tried again for another, oldest first."""
        failure = self.failure
        return (
            select(failure)
            .where(or_(failure.c.run_id == run_id, failure.c.retried_by == run_id), failure.c.id > after)
            .order_by(failure.c.id)
            .limit(limit)
        )

    def item_tally(self, run_id: RunId) -> Select[Any]:
        """Count a run's items that were done, and those that failed."""
        partition = self.partition.c
        return select(func.coalesce(func.sum(partition.done), 0), func.coalesce(func.sum(partition.failed), 0)).where(
            partition.run_id == run_id
        )

    # Announcing

    def announcement_due(self) -> ColumnElement[datetime | None]:
        """Say when the message of a run that has ended is to be sent again; never where no message started it."""
        return case((self.run.c.message.is_not(None), self._patience()), else_=None)

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

    # Reading

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

    def read_records(self) -> Select[Any]:
        """Read runs with their progress, in this one statement, so that the counters belong together."""
        partition = self.partition.c
        return select(
            self.run,
            self._of_items(func.coalesce(func.sum(partition.done), 0)).label("done"),
            self._of_items(func.coalesce(func.sum(partition.failed), 0)).label("failed"),
            self._of_items(func.coalesce(func.sum(partition.in_doubt), 0)).label("in_doubt"),
            self._of_items(_count_if(self._is_live())).label("workers"),
            self._of_items(func.sum(case((self._is_live(), partition.rate)))).label("rate"),
            self._of_items(func.max(partition.chunk_size)).label("chunk_size"),
            self.clock.now().label("read_at"),
        )

    def read_partitions(self, run_id: RunId) -> Select[Any]:
        """Read a run's partitions and whether each has a live lease."""
        return (
            select(self.partition, self._is_live().label("is_live"))
            .where(self.partition.c.run_id == run_id)
            .order_by(self.partition.c.number)
        )

    def read_carries(self, run_id: RunId) -> Select[Any]:
        """Read what the partitions of a run's items carry, and their counters."""
        partition = self.partition.c
        return (
            select(partition.carry, partition.done, partition.failed, partition.in_doubt)
            .where(partition.run_id == run_id, partition.kind == PartitionKind.ITEMS)
            .order_by(partition.number)
        )

    def read_history(self, run_id: RunId) -> Select[Any]:
        """Read a run's changes of state, oldest first."""
        return select(self.transition).where(self.transition.c.run_id == run_id).order_by(self.transition.c.id)

    def read_transition(self, number: int) -> Select[Any]:
        """Read one change of a run's state."""
        return select(self.transition).where(self.transition.c.id == number)

    def _is_open(self, run_id: RunId, *, in_doubt: bool) -> list[ColumnElement[bool]]:
        failure = self.failure.c
        known: list[ColumnElement[bool]] = [] if in_doubt else [failure.in_doubt.is_(false())]
        return [failure.run_id == run_id, failure.resolved_at.is_(None), *known]

    def _of_items(self, value: ColumnElement[Any]) -> ColumnElement[Any]:
        of_run = (self.partition.c.run_id == self.run.c.id, self.partition.c.kind == PartitionKind.ITEMS)
        return select(value).where(*of_run).correlate(self.run).scalar_subquery()

    def _is_held_by(self, lease: Lease) -> ColumnElement[bool]:
        partition = self.partition.c
        return and_(
            partition.run_id == lease.run_id,
            partition.number == lease.number,
            partition.fence == lease.fence,
            partition.holder == lease.holder,
        )

    def _is_free(self) -> ColumnElement[bool]:
        partition = self.partition.c
        return or_(partition.lease_expires_at.is_(None), partition.lease_expires_at <= self.clock.now())

    def _is_live(self) -> ColumnElement[bool]:
        return self.partition.c.lease_expires_at > self.clock.now()

    def _is_not_held_off(self) -> ColumnElement[bool]:
        return or_(self.run.c.held_until.is_(None), self.run.c.held_until <= self.clock.now())

    def _has_room(self) -> ColumnElement[bool]:
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

    def _ago(self, seconds: float) -> ColumnElement[datetime]:
        return self.clock.after(literal(-seconds, Float))

    def _patience(self) -> ColumnElement[datetime]:
        return self.clock.after(literal(PATIENCE_SECONDS, Float))

    def _renewed(self, seconds: ColumnElement[float]) -> Later:
        return Later(self.partition.c.lease_expires_at, self.clock.after(seconds))


def _count_if(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.count(case((condition, 1)))


def unindexed(column: ColumnElement[V]) -> ColumnElement[V]:
    """
    Give a column in a form that no index can find.

    For the guard of an UPDATE of one row: in a small table MySQL may look a row up by the guard's index and not by its
    id, and then locks the entry in that index before the row, and deadlocks with whoever locks the row first.
    """
    return func.coalesce(column, null(), type_=column.type)
