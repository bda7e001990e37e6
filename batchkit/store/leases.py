"""Claiming partitions, moving them on and giving them back."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import Connection, RowMapping

from batchkit.errors import LeaseLost
from batchkit.model import Checkpoint, Lease, Plan, Position, Range, RunError, RunId, Standing
from batchkit.states import WORKABLE, PartitionKind, PartitionState, Request, RunState
from batchkit.store.database import Database
from batchkit.store.held import Ahead, HeldConnection, Rendered
from batchkit.store.ordering import in_order
from batchkit.store.pipelining import Numbered
from batchkit.store.runs import Runs
from batchkit.store.statements import Statements
from batchkit.store.suspects import Suspects
from batchkit.suspicion import Death, Suspicion

#: How long a living worker's lost lease may make the next ones, in seconds.
_LONGEST_LEASE = 3600.0
#: How many runs of a job, and partitions of each, say how long its chunks take.
_RUNS_LOOKED_AT = 3
_PARTITIONS_LOOKED_AT = 20


class Leases:
    """
    The right to work partitions.

    The order of locks is: the run's row, then the partition's. The checkpoint locks its partition only.
    """

    def __init__(self, database: Database, runs: Runs) -> None:
        self._database = database
        self._runs = runs
        self._statements = Statements(database.tables, database.clock)
        self._suspects = Suspects(database)
        dialect, statements = database.dialect, self._statements
        self._checkpoint = Rendered(
            statements.checkpoint_with_standing(one_writer=dialect.has_one_writer)
            if dialect.has_returning
            else statements.checkpoint(one_writer=dialect.has_one_writer),
            database.engine,
        )
        self._standing = Rendered(statements.standing(), database.engine)
        self._checkpoint_or_error = (
            Numbered(statements.checkpoint_or_error(), database.engine) if dialect.can_pipeline else None
        )

    def claimable(
        self,
        *,
        jobs: Collection[str],
        queues: Collection[str] | None,
        besides: Collection[RunId] = (),
        limit: int = 10,
    ) -> list[tuple[RunId, int]]:
        """Find a partition of each run of *jobs*, *besides* some, that can be claimed now; runs take turns."""
        if not jobs:
            return []
        statement = self._statements.claimable(jobs=jobs, queues=queues, besides=besides, limit=limit)
        with self._database.reading() as tx:
            return [(RunId(run_id), number) for run_id, number in tx.execute(statement)]

    def claimable_in(self, run_id: RunId, *, is_due: bool = False, limit: int = 100) -> list[int]:
        """Find partitions of one run that can be claimed now; with *is_due*, those only that are due."""
        statement = self._statements.claimable_in(run_id, is_due=is_due, limit=limit)
        with self._database.reading() as tx:
            return list(tx.execute(statement).scalars())

    def claim(
        self,
        run_id: RunId,
        number: int,
        *,
        worker: str,
        seconds: float,
        wake_no: int | None = None,
        working_seconds: float | None = None,
        is_protected: bool = False,
    ) -> Lease | None:
        """
        Take a partition for *seconds*, under a new fence; None when somebody else holds it or it is not workable.

        *worker* is shown to people; what decides is a random token made here. With *wake_no*, also None unless that is
        the number of the partition's newest wake-up, and nobody has claimed with it; where the run has no room for
        another worker, or is held off, that wake-up is sent again. *working_seconds* is how long the worker may go on
        after a signal to stop, *is_protected* that it must not be stopped.
        """
        with self._database.transaction() as tx:
            run = self._runs.lock(tx, run_id)
            if run is None or run["state"] not in WORKABLE:
                return None
            if not self._may_come(tx, run, is_woken=wake_no is not None):
                if wake_no is not None:
                    self._send_anew(tx, run, number, wake_no)
                return None
            before = tx.execute(self._statements.read_partition(run_id, number)).mappings().one_or_none()
            is_takeover = before is not None and before["holder"] is not None and not before["is_live"]
            if before is not None and is_takeover and self._suspects.book_end(tx, before) is not None:
                self._runs.settle(tx, run_id, reason="an item kills its workers", worker=None, is_interrupt=True)
                return None
            token = secrets.token_hex(16)
            claimed = tx.execute(
                self._statements.claim(
                    run_id,
                    number,
                    holder=token,
                    worker=worker,
                    seconds=seconds,
                    wake_no=wake_no,
                    chunk_seconds=self._chunk_seconds(tx, run["job"], before),
                    working_seconds=working_seconds,
                    is_protected=is_protected,
                )
            )
            if before is None or claimed.rowcount != 1:
                return None
            tx.execute(self._statements.take_turn(run_id))
            self._record_claim(tx, run, taken_from=before["worker"] if before["holder"] else None, worker=worker)
            lease = _lease(run, tx.execute(self._statements.read_partition(run_id, number)).mappings().one())
            return lease if lease.doubt is None else self._left_in_doubt(tx, lease)

    def postpone(self, run_id: RunId, number: int, *, wake_no: int | None, seconds: float) -> None:
        """Have nobody woken up for a partition for *seconds*; with *wake_no*, only if that is its newest wake-up."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.postpone(run_id, number, wake_no=wake_no, seconds=seconds))

    def chunk_seconds(self, run_id: RunId, number: int) -> float | None:
        """Say how long the next chunk of a partition is expected to take; None where nothing is known."""
        with self._database.reading() as tx:
            job = tx.execute(self._statements.job_of(run_id)).scalar_one_or_none()
            before = tx.execute(self._statements.read_partition(run_id, number)).mappings().one_or_none()
            return None if job is None else self._chunk_seconds(tx, job, before)

    def protect(self, lease: Lease, *, is_protected: bool) -> bool:
        """Write down whether the lease's holder must not be stopped; False when the lease is over."""
        with self._database.transaction() as tx:
            return tx.execute(self._statements.protect(lease, is_protected=is_protected)).rowcount == 1

    def plan(self, lease: Lease, plan: Plan) -> Lease:
        """
        Write down a run's ranges, total and identity, once, and go on with the first range.

        Raises:
            LeaseLost: another worker has claimed the partition since, and plans the run.
        """
        with self._database.transaction() as tx:
            self._runs.lock(tx, lease.run_id)
            first = plan.ranges[0] if plan.ranges else None
            planned = tx.execute(self._statements.plan_run(lease, plan))
            moved = tx.execute(self._statements.plan_first_partition(lease, first))
            if planned.rowcount != 1 or moved.rowcount != 1:
                raise _lost(lease)
            self._insert_rest(tx, lease, plan)
        bounds = first or Range()
        return replace(
            lease,
            is_planned=True,
            total=plan.total,
            identity=plan.identity,
            fingerprint=plan.fingerprint,
            cursor=bounds.after,
            until=bounds.until,
        )

    def accept(self, lease: Lease, *, identity: str, fingerprint: str | None) -> Lease:
        """Write down what a run goes on with, after a person has accepted that; give what is written down now."""
        with self._database.transaction() as tx:
            self._runs.lock(tx, lease.run_id)
            tx.execute(self._statements.accept(lease, identity=identity, fingerprint=fingerprint))
            run = tx.execute(self._statements.read_run(lease.run_id)).mappings().one()
            return replace(lease, identity=run["identity"], fingerprint=run["fingerprint"])

    def checkpoint(
        self, held: HeldConnection, lease: Lease, checkpoint: Checkpoint, *, ahead: Ahead | None = None
    ) -> tuple[Lease, Standing]:
        """
        Move the partition on as part of the transaction that is open on *held*, and say how its run stands.

        Nothing comes between it and the commit, so that the row is locked for a moment only. With *ahead*, the COMMIT
        is sent in the same round trip where the database can do that; `HeldConnection.commit` says what came of it.

        Raises:
            LeaseLost: the lease is over; the transaction must be rolled back.
        """
        row = self._move_on(
            held,
            ahead,
            {
                "run_id": lease.run_id,
                "number_": lease.number,
                "fence_": lease.fence,
                "holder_": lease.holder,
                "seq_": lease.seq,
                "locked_at": self._locked_at(held),
                "cursor_": checkpoint.cursor,
                "done_": checkpoint.done,
                "failed_": checkpoint.failed,
                "carry_": checkpoint.carry,
                "chunk_size_": checkpoint.chunk_size,
                "rate_": checkpoint.rate,
                "doubt_": checkpoint.doubt,
                "chunk_seconds_": checkpoint.chunk_seconds,
                "lease_": lease.seconds,
            },
        )
        if row is None:
            raise _lost(lease)
        state, requested, cuts_wanted = row[:3]
        standing = Standing(RunState(state), None if requested is None else Request(requested), int(cuts_wanted))
        return lease.moved(checkpoint), standing

    def _move_on(self, held: HeldConnection, ahead: Ahead | None, values: dict[str, object]) -> Any:  # noqa: ANN401  a row of the driver's
        if ahead is not None and self._checkpoint_or_error is not None and held.commits_ahead:
            return held.execute_and_commit(self._checkpoint_or_error, values, ahead)
        if self._database.dialect.has_returning:
            return held.execute(self._checkpoint, values)
        if held.update(self._checkpoint, values) != 1:
            return None
        return held.execute(self._standing, {"run_id": values["run_id"], "number_": values["number_"]})

    def _locked_at(self, held: HeldConnection) -> str | None:
        if not self._database.dialect.has_one_writer:
            return None
        return _sqlite_moment(held.began_at_epoch)

    def position(self, lease: Lease) -> Position:
        """Read who holds the partition and how far it is, to learn whether a commit whose reply was lost happened."""
        with self._database.reading() as tx:
            row = tx.execute(self._statements.read_partition(lease.run_id, lease.number)).mappings().one()
        return Position(
            fence=row["fence"],
            holder=row["holder"],
            seq=row["seq"],
            cursor=row["cursor"],
            done=row["done"],
            failed=row["failed"],
            carry=row["carry"],
            doubt=row["doubt"],
            in_doubt=row["in_doubt"],
            is_live=bool(row["is_live"]),
        )

    def renew(self, lease: Lease) -> bool:
        """Push the lease's end forward; False when the lease is over."""
        with self._database.transaction() as tx:
            return tx.execute(self._statements.renew(lease)).rowcount == 1

    def lengthen(self, lease: Lease) -> None:
        """Make the partition's next leases longer, since this worker was alive when it lost this one."""
        if lease.seconds * 2 <= _LONGEST_LEASE:
            with self._database.transaction() as tx:
                tx.execute(self._statements.lengthen(lease))

    def leave_in_doubt(self, lease: Lease) -> Lease:
        """
        Record as in doubt what the function was called for.

        Raises:
            LeaseLost: the lease is over, or the partition has moved on; nothing was changed.
        """
        with self._database.transaction() as tx:
            self._runs.lock(tx, lease.run_id)
            return self._left_in_doubt(tx, lease)

    def release(
        self,
        lease: Lease,
        *,
        is_exhausted: bool = False,
        reason: str,
        delay: float = 0.0,
        is_interrupt: bool = True,
        is_waiting: bool = False,
    ) -> RunState:
        """
        Give a partition back and settle its run if this was its last live lease; give the run's state.

        With *is_waiting*, the reason is shown as what the run waits for, where all of it waits.

        Raises:
            LeaseLost: the lease is over already, and nothing was changed.
        """
        with self._database.transaction() as tx:
            self._runs.lock(tx, lease.run_id)
            self._give_back(tx, lease, is_final=is_exhausted, delay=delay)
            state = self._runs.settle(
                tx, lease.run_id, reason=reason, worker=None, is_interrupt=is_interrupt and not is_exhausted
            )
            if is_waiting and lease.partitions > 1:
                tx.execute(self._statements.hold_off(lease.run_id, seconds=delay))
            if is_waiting and state is RunState.QUEUED:
                tx.execute(self._statements.explain_waiting(lease.run_id, reason))
            return state

    def end_leases_of(self, worker: str, run_id: RunId, *, death: Death = Death.UNSEEN) -> RunState:
        """End the leases of a worker that is known to be gone, and how, on a run at once; give the run's state."""
        with self._database.transaction() as tx:
            self._runs.lock(tx, run_id)
            tx.execute(self._statements.expire(worker, run_id))
            return self._runs.settle(
                tx, run_id, reason=f"{worker} is gone", worker=None, is_interrupt=True, dead=worker, death=death
            )

    def fail(self, lease: Lease, error: RunError, *, worker: str) -> RunState:
        """
        Give a partition back and make its run failed, unless it has ended in another way meanwhile.

        Raises:
            LeaseLost: the lease is over already, and nothing was changed.
        """
        with self._database.transaction() as tx:
            self._runs.lock(tx, lease.run_id)
            self._give_back(tx, lease, is_final=False, delay=0.0)
            self._runs.doubts.settle(tx, lease.run_id)
            return self._runs.fail(tx, lease.run_id, error, worker=worker)

    def finish(self, tx: Connection, lease: Lease, *, result: str, worker: str) -> Standing | None:
        """
        Make the run succeeded as part of *tx*, which carries what its `finish` function wrote; None when that was done.

        A run that was cancelled, or is not running any more, is left as it is: how it stands is given, and *tx* must
        be rolled back. A pause comes too late.

        Raises:
            LeaseLost: the lease is over; *tx* must be rolled back.
        """
        run = self._runs.lock(tx, lease.run_id)
        if run is None:
            raise _lost(lease)
        standing = Standing(run["state"], run["requested"])
        if standing.state is not RunState.RUNNING or standing.requested is Request.CANCEL:
            return standing
        self._give_back(tx, lease, is_final=True, delay=0.0)
        self._runs.succeed(tx, lease.run_id, result=result, worker=worker)
        return None

    def carries(self, tx: Connection, lease: Lease) -> list[tuple[str, int, int, int]]:
        """
        Read what each partition of items carries, and how many items were done, failed and left in doubt.

        They come in the order of their items.
        """
        rows = tx.execute(self._statements.read_carries(lease.run_id)).mappings().all()
        return [
            (row["carry"], row["done"], row["failed"], row["in_doubt"])
            for row in in_order(rows, place=lambda row: (row["number"], row["cut_from"]))
        ]

    def _chunk_seconds(self, tx: Connection, job: str, before: RowMapping | None) -> float | None:
        if before is not None and before["chunk_seconds"] is not None:
            known: float = before["chunk_seconds"]
            return known
        # The first chunk of a run: what is known is how long those of the runs before it took.
        seconds: float | None = tx.execute(
            self._statements.chunk_seconds_of(job, runs=_RUNS_LOOKED_AT, partitions=_PARTITIONS_LOOKED_AT)
        ).scalar_one()
        return seconds

    def _may_come(self, tx: Connection, run: RowMapping, *, is_woken: bool) -> bool:
        """Tell, under the run's lock, whether another worker may come for it; one *is_woken* not while it is held."""
        is_held = is_woken and self._is_held_off(tx, run)
        return run["requested"] is None and not is_held and self._has_room(tx, run)

    def _send_anew(self, tx: Connection, run: RowMapping, number: int, wake_no: int) -> None:
        """Let a good wake-up that came too early be sent again: it took a place among those that are under way."""
        tx.execute(self._statements.send_anew(run["id"], number, wake_no, not_before=run["held_until"]))

    def _has_room(self, tx: Connection, run: RowMapping) -> bool:
        """Tell, under the run's lock, whether it may have another worker."""
        if run["max_workers"] is None:
            return True
        return bool(tx.execute(self._statements.workers(run["id"])).scalar_one() < run["max_workers"])

    def _is_held_off(self, tx: Connection, run: RowMapping) -> bool:
        # Nearly always there is nothing to ask.
        return (
            run["held_until"] is not None
            and tx.execute(self._statements.is_held_off(run["id"])).scalar_one_or_none() is not None
        )

    def _left_in_doubt(self, tx: Connection, lease: Lease) -> Lease:
        if lease.doubt is None:
            return lease
        doubts = self._runs.doubts
        if not doubts.record(tx, lease.run_id, lease.number, fence=lease.fence, seq=lease.seq, doubt=lease.doubt):
            raise _lost(lease)
        row = tx.execute(self._statements.read_partition(lease.run_id, lease.number)).mappings().one()
        return replace(lease, seq=row["seq"], doubt=row["doubt"], in_doubt=row["in_doubt"])

    def _give_back(self, tx: Connection, lease: Lease, *, is_final: bool, delay: float) -> None:
        state = PartitionState.FINAL if is_final else PartitionState.OPEN
        if tx.execute(self._statements.release(lease, state=state, delay=delay)).rowcount != 1:
            raise _lost(lease)

    def _record_claim(self, tx: Connection, run: RowMapping, *, taken_from: str | None, worker: str) -> None:
        reason = "claimed" if taken_from is None else f"taken over: the lease of {taken_from} ran out"
        if run["state"] is RunState.QUEUED:
            self._runs.change_state(
                tx,
                run["id"],
                RunState.QUEUED,
                RunState.RUNNING,
                reason=reason,
                worker=worker,
                is_first=run["started_at"] is None,
                waiting_reason=None,
                started_at=run["started_at"] or self._database.clock.now(),
            )
        elif taken_from is not None:
            self._runs.record_takeover(tx, run["id"], reason=reason, worker=worker)

    def _insert_rest(self, tx: Connection, lease: Lease, plan: Plan) -> None:
        rest = [
            {"run_id": lease.run_id, "number": number, "cursor": range_.after, "until": range_.until}
            for number, range_ in enumerate(plan.ranges[1:], start=1)
        ]
        if rest:
            inserted = self._statements.insert_partitions(
                kind=PartitionKind.ITEMS, state=PartitionState.OPEN, is_shared=True
            )
            tx.execute(inserted, rest)
        if plan.has_finish:
            tx.execute(
                self._statements.insert_partition(
                    lease.run_id,
                    max(1, len(plan.ranges)),
                    Range(),
                    kind=PartitionKind.FINISH,
                    state=PartitionState.WAITING,
                )
            )


def _lease(run: RowMapping, row: RowMapping) -> Lease:
    suspicion = Suspicion.read(row["suspicion"])
    return Lease(
        run_id=RunId(run["id"]),
        number=row["number"],
        kind=row["kind"],
        fence=row["fence"],
        holder=row["holder"],
        seconds=row["lease_seconds"],
        job=run["job"],
        params=run["params"],
        delivery=run["delivery"],
        is_planned=run["planned_at"] is not None,
        identity=run["identity"],
        fingerprint=run["fingerprint"],
        total=run["total"],
        failures_of=run["failures_of"],
        limit=run["item_limit"],
        is_dry_run=bool(run["is_dry_run"]),
        retries_in_doubt=bool(run["retries_in_doubt"]),
        partitions=run["partitions"],
        cursor=row["cursor"],
        until=row["until"],
        seq=row["seq"],
        done=row["done"],
        failed=row["failed"],
        carry=row["carry"],
        doubt=row["doubt"],
        in_doubt=row["in_doubt"],
        # What is taken one at a time says nothing of the size.
        chunk_size=row["chunk_size"] if suspicion is None else suspicion.size or row["chunk_size"],
        suspicion=suspicion,
        chunk_seconds=row["chunk_seconds"],
    )


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(lease.run_id, partition=lease.number, fence=lease.fence)


def _sqlite_moment(epoch: float) -> str:
    # SQLite's clock is this machine's, so the moment of taking its write lock can be told without asking it.
    moment = datetime.fromtimestamp(epoch, tz=timezone.utc).replace(tzinfo=None)
    return moment.isoformat(sep=" ", timespec="microseconds")
