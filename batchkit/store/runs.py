"""Runs: starting them, changing their state, and reading them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, RowMapping, Select
from sqlalchemy.exc import IntegrityError

from batchkit.errors import (
    NotSerializable,
    RunActive,
    RunNotFound,
    RunPurged,
)
from batchkit.hooks import Happening, happened
from batchkit.model import NewRun, Partition, Progress, Range, RunError, RunId, RunRecord, Transition, WakeUp
from batchkit.states import (
    FINAL,
    PartitionKind,
    PartitionState,
    Request,
    RunState,
    check_transition,
    illegal_transition,
    settled,
)
from batchkit.store.changes import Change
from batchkit.store.database import Database
from batchkit.store.doubts import Doubts
from batchkit.store.statements import PATIENCE_SECONDS, Statements
from batchkit.store.suspects import Suspects
from batchkit.suspicion import Death
from batchkit.values import loads

R = TypeVar("R")

#: How often a key is tried for that others take and give back at the same time.
_ATTEMPTS = 10
_LONGEST_PATIENCE_SECONDS = 900.0
#: How long telling of the end of a run may take before another message may try.
_ANNOUNCING_SECONDS = 20.0


class Runs:
    """The runs in a database. Each change of state is made under the run's lock and recorded with its reason."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = Statements(database.tables, database.clock)
        self.doubts = Doubts(database)
        self._suspects = Suspects(database)

    def create(self, new: NewRun) -> None:
        """
        Write a queued run with its first partition.

        Raises:
            RunPurged: the run whose failures it is to try again was purged.
        """
        with self._database.transaction() as tx:
            self._create(tx, new)

    def join(self, new: NewRun) -> RunId:
        """
        Write a queued run unless its start key has one already; give the id of the run that has it.

        Raises:
            RunActive: another unfinished run has its unique key.
        """
        if not new.has_keys:
            self.create(new)
            return new.id

        def attempt() -> RunId:
            with self._database.reading() as tx:
                existing = self._existing(tx, new)
            if existing is None:
                self.create(new)
            return existing or new.id

        return _against_others(attempt)

    def join_in(self, tx: Connection, new: NewRun) -> RunId:
        """
        Do what `join` does as part of *tx*, a transaction of the user's.

        Raises:
            RunActive: another unfinished run has its unique key.
        """
        if not new.has_keys:
            self._create(tx, new)
            return new.id

        def attempt() -> RunId:
            # What others have committed since may be hidden from *tx*, and what *tx* has written is hidden from others.
            with self._database.reading() as other:
                existing = self._existing(tx, new) or self._existing(other, new)
            if existing is None:
                with self._database.dialect.attempting(tx):
                    self._create(tx, new)
            return existing or new.id

        return _against_others(attempt)

    def retire_key(self, run_id: RunId, start_key: str) -> None:
        """Let a start key begin another run; where another has taken it from this one already, do nothing."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.retire_key(run_id, start_key, retired=f"{start_key}:{run_id}"))

    def change_message(self, run_id: RunId, message: str) -> None:
        """Have another message tell of the end of a run."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.change_message(run_id, message))

    def find(self, *, start_key: str | None) -> RunId | None:
        """Find the run that a message has started; None where there is none, or no key."""
        if start_key is None:
            return None
        with self._database.reading() as tx:
            return self._find(tx, start_key)

    # What people do

    def pause(self, run_id: RunId) -> RunState:
        """
        Pause a run at once where nobody holds a lease on it, else have its workers do so at their next boundary.

        Raises:
            RunNotFound, IllegalTransition
        """
        return self._ask(run_id, Request.PAUSE, RunState.PAUSED)

    def cancel(self, run_id: RunId) -> RunState:
        """
        Cancel a run at once where nobody holds a lease on it, else have its workers do so at their next boundary.

        Raises:
            RunNotFound, IllegalTransition
        """
        return self._ask(run_id, Request.CANCEL, RunState.CANCELLED)

    def resume(self, run_id: RunId, *, accept: bool = False, skip: bool = False) -> RunState:
        """
        Queue a paused or failed run again, or take back a pause that its workers have not seen yet.

        With *accept* it goes on with whatever its job gives now, also one that is queued. With *skip* the item that has
        killed its workers is recorded as a failure, untried; without it such an item is tried as if it never had.

        Raises:
            RunNotFound, IllegalTransition
            NothingToSkip: no item is known to have killed its workers.
            RunActive: another unfinished run has its unique key.
            RunPurged: it was purged, or the run whose failures it tries again was.
        """
        try:
            return self._resume(run_id, accept=accept, skip=skip)
        except IntegrityError:
            with self._database.reading() as tx:
                rival = tx.execute(self._statements.active_rival(run_id)).scalar_one_or_none()
            if rival is None:
                # It has ended meanwhile.
                return self._resume(run_id, accept=accept, skip=skip)
            raise RunActive(rival, job=self.load(run_id).job, resumed=run_id) from None

    def _resume(self, run_id: RunId, *, accept: bool, skip: bool) -> RunState:
        with self._database.transaction() as tx:
            run = self._lock_existing(tx, run_id)
            if run["purged_at"] is not None:
                raise RunPurged(run_id)
            self._keep_origin(tx, run["failures_of"], retry=run_id)
            if run["state"] is RunState.RUNNING and run["requested"] is Request.PAUSE and not (accept or skip):
                tx.execute(self._statements.request(run_id, None))
                return RunState.RUNNING
            if run["state"] is RunState.RUNNING:
                # It has a way to queued, but that is an interruption, which is the workers' to make.
                raise illegal_transition(run_id, RunState.RUNNING, RunState.QUEUED)
            if run["state"] is not RunState.QUEUED or not accept:
                self._queue_again(tx, run_id, run["state"], reason="resumed, as it is now" if accept else "resumed")
            tx.execute(self._statements.make_due(run_id, is_shared=run["partitions"] > 1))
            self._suspects.let_go_on(tx, run_id, skip=skip)
            if accept:
                tx.execute(self._statements.forget_meaning(run_id))
                tx.execute(self._statements.explain_waiting(run_id, None))
            return RunState.QUEUED

    def _keep_origin(self, tx: Connection, origin: RunId | None, *, retry: RunId) -> None:
        """
        Keep the run whose failures another is to try again from being purged until the end of *tx*.

        Raises:
            RunPurged: that was too late.
        """
        if origin is not None:
            run = self.lock(tx, origin)
            if run is None or run["purged_at"] is not None:
                raise RunPurged(origin, retry=retry)

    def _queue_again(self, tx: Connection, run_id: RunId, state: RunState, *, reason: str) -> None:
        self.change_state(
            tx,
            run_id,
            state,
            RunState.QUEUED,
            reason=reason,
            error=None,
            waiting_reason=None,
            held_until=None,
            finished_at=None,
            announce_at=None,
            announcing_until=None,
        )

    # What workers do

    def lock(self, tx: Connection, run_id: RunId) -> RowMapping | None:
        """Lock a run's row as part of *tx* and read it in a statement of its own; None when there is none."""
        if tx.execute(self._statements.lock_run(run_id)).rowcount != 1:
            return None
        return tx.execute(self._statements.read_run(run_id)).mappings().one()

    def settle(
        self,
        tx: Connection,
        run_id: RunId,
        *,
        reason: str,
        worker: str | None,
        is_interrupt: bool,
        dead: str | None = None,
        death: Death = Death.UNSEEN,
    ) -> RunState:
        """
        Take the run, locked by *tx*, to the state that its partitions ask for; give that state.

        *death* is what is known of the end of the worker *dead*. Where an item may have killed its workers, and nobody
        saw it, a person must say what is to become of it: that is a pause.
        """
        for_person = self._suspects.book(tx, run_id, worker=dead, death=death)
        run = tx.execute(self._statements.read_run(run_id)).mappings().one()
        if for_person is not None and run["requested"] is not Request.CANCEL and run["state"] is RunState.RUNNING:
            tx.execute(self._statements.request(run_id, Request.PAUSE))
            tx.execute(self._statements.explain_waiting(run_id, for_person))
            run = tx.execute(self._statements.read_run(run_id)).mappings().one()
        evicted = tx.execute(self._statements.evict(run_id)).rowcount
        items_open, unfinished, held, doubtful = tx.execute(self._statements.tally(run_id)).one()
        if doubtful:
            self.doubts.settle(tx, run_id)
        if not items_open and unfinished:
            tx.execute(self._statements.open_finish(run_id, is_shared=run["partitions"] > 1))
        state: RunState = run["state"]
        after = settled(state, run["requested"], unfinished=unfinished, held=held)
        if after is not state:
            self.change_state(
                tx,
                run_id,
                state,
                after,
                reason=for_person if for_person and after is RunState.PAUSED else _reason(after, reason),
                worker=worker,
                interruptions=int((is_interrupt or bool(evicted)) and after is RunState.QUEUED),
                **self._ending(after),
            )
        return after

    def fail(self, tx: Connection, run_id: RunId, error: RunError, *, worker: str) -> RunState:
        """
        Make the run, locked by *tx*, failed, unless it is not running any more; give its state.

        One that a person has cancelled is cancelled; the error is kept all the same.
        """
        run = tx.execute(self._statements.read_run(run_id)).mappings().one()
        state: RunState = run["state"]
        if state is not RunState.RUNNING:
            return state
        ending = RunState.CANCELLED if run["requested"] is Request.CANCEL else RunState.FAILED
        self.change_state(
            tx,
            run_id,
            state,
            ending,
            reason=str(error)
            if ending is RunState.FAILED
            else f"cancel requested; the chunk in flight failed: {error}",
            worker=worker,
            error=json.dumps(asdict(error)),
            **self._ending(ending),
        )
        return ending

    def succeed(self, tx: Connection, run_id: RunId, *, result: str, worker: str) -> None:
        """Make the run, locked by *tx*, succeeded with what its `finish` returned."""
        self.change_state(
            tx,
            run_id,
            RunState.RUNNING,
            RunState.SUCCEEDED,
            reason="finish returned",
            worker=worker,
            result=result,
            **self._ending(RunState.SUCCEEDED),
        )

    def change_state(
        self,
        tx: Connection,
        run_id: RunId,
        before: RunState,
        after: RunState,
        *,
        reason: str,
        worker: str | None = None,
        interruptions: int = 0,
        is_first: bool = False,
        **values: object,
    ) -> None:
        """Change the state of a run that *tx* has locked, and record why."""
        check_transition(run_id, before, after)
        changed = tx.execute(
            self._statements.change_state(run_id, before, after, interruptions=interruptions, **values)
        )
        if changed.rowcount != 1:
            message = f"run {run_id} was not {before} though its row was locked"
            raise RuntimeError(message)
        happening = happened(before, after, is_interruption=bool(interruptions), is_first=is_first)
        self._record(tx, run_id, before, after, reason=reason, worker=worker, happening=happening)

    def record_takeover(self, tx: Connection, run_id: RunId, *, reason: str, worker: str) -> None:
        """Record that a running run went on under another worker."""
        running = RunState.RUNNING
        tx.execute(self._statements.count_interruption(run_id))
        happening = Happening.INTERRUPTED
        self._record(tx, run_id, running, running, reason=reason, worker=worker, happening=happening)

    def transition(self, number: int) -> Transition:
        """Read a recorded change of state."""
        with self._database.reading() as tx:
            return _transition(tx.execute(self._statements.read_transition(number)).mappings().one())

    def _record(
        self,
        tx: Connection,
        run_id: RunId,
        before: RunState,
        after: RunState,
        *,
        reason: str,
        worker: str | None,
        happening: Happening | None,
    ) -> None:
        """Record a change of state as part of *tx*, to be told of once that is committed."""
        recorded = tx.execute(
            self._statements.insert_transition(run_id, before, after, reason=reason, worker=worker)
        ).inserted_primary_key
        if happening is not None and recorded is not None:
            self._database.changes.note(tx, Change(run_id, recorded[0], happening))

    def explain_waiting(self, run_id: RunId, reason: str) -> None:
        """Write down why a worker left the run to others."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.explain_waiting(run_id, reason))

    def weaken(self, run_id: RunId) -> None:
        """Let a run that says `exactly-once` say `at-least-once`, since its chunks are committed in two databases."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.weaken(run_id))

    def count_retry(self, run_id: RunId, reason: str) -> None:
        """Write down that a chunk is tried again, and why."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.count_retry(run_id, reason))

    def held_by(self, worker: str) -> list[RunId]:
        """Find the runs that a worker holds leases on."""
        with self._database.reading() as tx:
            return [RunId(found) for found in tx.execute(self._statements.held_by(worker)).scalars()]

    # What sweeps do

    def unattended(self, *, limit: int, run_id: RunId | None = None) -> list[RunId]:
        """Find running runs, or the one asked for, that nobody holds a lease on."""
        with self._database.reading() as tx:
            return [RunId(found) for found in tx.execute(self._statements.unattended(limit, run_id)).scalars()]

    def settle_unattended(self, run_id: RunId) -> RunState:
        """Take a run that nobody holds a lease on to where it belongs; one that is held again stays as it is."""
        with self._database.transaction() as tx:
            if self.lock(tx, run_id) is None:
                raise RunNotFound(run_id)
            return self.settle(tx, run_id, reason="the lease of its worker ran out", worker=None, is_interrupt=True)

    def waiting(self, run_id: RunId, *, partition: int | None = None, limit: int | None = None) -> list[WakeUp]:
        """Find what of a run waits for a worker now."""
        columns = self._database.tables.partition.c
        statement = self._statements.wake_ups().where(columns.run_id == run_id).limit(limit)
        return self._wake_ups(statement if partition is None else statement.where(columns.number == partition))

    def overdue(self, *, limit: int) -> list[WakeUp]:
        """Find what waits for a worker though its message should have reached one: runs of one partition."""
        run, statements = self._database.tables.run.c, self._statements
        return self._wake_ups(statements.wake_ups().where(run.partitions == 1, statements.is_overdue()).limit(limit))

    def is_shared(self, run_id: RunId) -> bool:
        """Tell whether a run is to have several partitions."""
        with self._database.reading() as tx:
            run = tx.execute(self._statements.read_run(run_id)).mappings().one_or_none()
        return run is not None and run["partitions"] > 1

    def short_of_workers(self, *, limit: int) -> list[RunId]:
        """Find runs with several partitions that could have another worker."""
        with self._database.reading() as tx:
            return [RunId(found) for found in tx.execute(self._statements.short_of_workers(limit)).scalars()]

    def take_shares(self, run_id: RunId, *, window: int) -> list[WakeUp]:
        """
        Win the right to send wake-ups of a run: as many as are missing to *window* that are under way.

        Those whose message was lost are among them. A wake-up that is sent for the first time since a worker has come
        for its partition is given PATIENCE_SECONDS, however old the run is, and each time that nobody comes twice that.
        """
        with self._database.reading() as tx:
            found = tx.execute(self._statements.shares(run_id)).one_or_none()
        if found is None:
            return []
        under_way, workers, allowed = found
        missing = window - under_way if allowed is None else min(window, allowed - workers) - under_way
        if missing <= 0:
            return []
        columns = self._database.tables.partition.c
        statement = self._statements.wake_ups().where(columns.run_id == run_id, self._statements.is_overdue())
        overdue = self._wake_ups(statement.limit(missing))
        return [wake_up for wake_up in overdue if self._take_resend(wake_up, patience=_next_patience(wake_up))]

    def all_waiting(self, *, limit: int) -> list[WakeUp]:
        """Find what waits for a worker now."""
        return self._wake_ups(self._statements.wake_ups().limit(limit))

    def take_resend(self, wake_up: WakeUp) -> bool:
        """
        Win the right to send a wake-up of a run with one partition again.

        False when another sweep has it, or a worker has claimed meanwhile. The next time comes after as long as it has
        waited by then, within limits: a lost message at most doubles the wait, and a long backlog gets few copies.
        """
        return self._take_resend(wake_up, patience=_patience(wake_up))

    def give_resend_back(self, wake_up: WakeUp) -> None:
        """Give back the right to send a wake-up, which could not be sent: the next sweep may."""
        with self._database.transaction() as tx:
            tx.execute(
                self._statements.send_anew(wake_up.run_id, wake_up.partition, wake_up.number, patience=wake_up.patience)
            )

    def send_soon(self, wake_up: WakeUp) -> None:
        """Have a wake-up sent again by a sweep soon: it has reached none but workers that cannot take it."""
        with self._database.transaction() as tx:
            tx.execute(
                self._statements.send_anew(wake_up.run_id, wake_up.partition, wake_up.number, seconds=PATIENCE_SECONDS)
            )

    def unannounced(self, *, limit: int) -> list[WakeUp]:
        """Find ended runs whose message has not told of their end in time."""
        return self._wake_ups(self._statements.unannounced().where(self._statements.is_announcement_due()).limit(limit))

    def announcement(self, run_id: RunId) -> list[WakeUp]:
        """Give the message that is to tell of the end of a run, where it has not yet."""
        columns = self._database.tables.run.c
        return self._wake_ups(
            self._statements.unannounced().where(columns.id == run_id, columns.announce_at.is_not(None))
        )

    def take_announcement_resend(self, wake_up: WakeUp) -> bool:
        """Win the right to send the message of an ended run again; False when another sweep has it."""
        statement = self._statements.take_announcement_resend(wake_up.run_id, patience=_patience(wake_up))
        with self._database.transaction() as tx:
            return tx.execute(statement).rowcount == 1

    def begin_announcing(self, run_id: RunId) -> bool:
        """Win the right to tell of the end of a run; False where nothing is to be told, or somebody is at it."""
        with self._database.transaction() as tx:
            begun = tx.execute(self._statements.begin_announcing(run_id, seconds=_ANNOUNCING_SECONDS))
            return begun.rowcount == 1

    def keep_announcing(self, run_id: RunId) -> None:
        """Keep the right to tell of the end of a run that `begin_announcing` has won."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.keep_announcing(run_id, seconds=_ANNOUNCING_SECONDS))

    def announced(self, run_id: RunId) -> None:
        """Write down that the end of a run was told."""
        with self._database.transaction() as tx:
            tx.execute(self._statements.announced(run_id))

    def _take_resend(self, wake_up: WakeUp, *, patience: float) -> bool:
        with self._database.transaction() as tx:
            return tx.execute(self._statements.take_resend(wake_up, patience=patience)).rowcount == 1

    def _wake_ups(self, statement: Select[Any]) -> list[WakeUp]:
        with self._database.reading() as tx:
            return [WakeUp(**row) for row in tx.execute(statement).mappings()]

    # Reading

    def job_of(self, run_id: RunId) -> str:
        """
        Read the name of a run's job, and nothing of its partitions.

        Raises:
            RunNotFound: there is no such run.
        """
        with self._database.reading() as tx:
            job: str | None = tx.execute(self._statements.job_of(run_id)).scalar_one_or_none()
        if job is None:
            raise RunNotFound(run_id)
        return job

    def load(self, run_id: RunId) -> RunRecord:
        """
        Read a run.

        Raises:
            RunNotFound: there is none with this id.
        """
        with self._database.reading() as tx:
            record = self.load_in(tx, run_id)
        if record is None:
            raise RunNotFound(run_id)
        return record

    def load_in(self, tx: Connection, run_id: RunId) -> RunRecord | None:
        """Read a run as *tx* sees it; None where it sees none."""
        statement = self._statements.read_records().where(self._database.tables.run.c.id == run_id)
        row = tx.execute(statement).mappings().one_or_none()
        return None if row is None else _record(row)

    def meaning(self, run_id: RunId) -> tuple[str | None, str | None]:
        """
        Read the identity and the fingerprint of the source that a run was planned with.

        Raises:
            RunNotFound: there is none with this id.
        """
        with self._database.reading() as tx:
            run = tx.execute(self._statements.read_run(run_id)).mappings().one_or_none()
        if run is None:
            raise RunNotFound(run_id)
        return run["identity"], run["fingerprint"]

    def newest(
        self, *, job: str | None = None, states: Collection[RunState] | None = None, limit: int
    ) -> list[RunRecord]:
        """Read the newest runs."""
        run = self._database.tables.run.c
        statement = self._statements.read_records().order_by(run.id.desc()).limit(limit)
        if job is not None:
            statement = statement.where(run.job == job)
        if states is not None:
            statement = statement.where(run.state.in_(states))
        with self._database.reading() as tx:
            return [_record(row) for row in tx.execute(statement).mappings()]

    def partitions(self, run_id: RunId) -> list[Partition]:
        """Read a run's partitions."""
        with self._database.reading() as tx:
            rows = tx.execute(self._statements.read_partitions(run_id)).mappings().all()
        return [
            Partition(
                number=row["number"],
                kind=row["kind"],
                state=row["state"],
                cursor=_cursor(row["cursor"]),
                done=row["done"],
                failed=row["failed"],
                fence=row["fence"],
                worker=row["worker"],
                lease_expires_at=row["lease_expires_at"],
                is_held=bool(row["is_live"]),
                in_doubt=row["in_doubt"],
                until=_cursor(row["until"]),
            )
            for row in rows
        ]

    def history(self, run_id: RunId) -> list[Transition]:
        """Read a run's changes of state, oldest first."""
        with self._database.reading() as tx:
            rows = tx.execute(self._statements.read_history(run_id)).mappings().all()
        return [_transition(row) for row in rows]

    def _ask(self, run_id: RunId, wanted: Request, ending: RunState) -> RunState:
        with self._database.transaction() as tx:
            run = self._lock_existing(tx, run_id)
            state: RunState = run["state"]
            check_transition(run_id, state, ending)
            if state is not RunState.RUNNING:
                self.change_state(
                    tx,
                    run_id,
                    state,
                    ending,
                    reason=f"{wanted} requested",
                    waiting_reason=None,
                    **self._ending(ending),
                )
                return ending
            if run["requested"] is Request.CANCEL:
                return state
            tx.execute(self._statements.request(run_id, wanted))
            return self.settle(tx, run_id, reason=f"{wanted} requested", worker=None, is_interrupt=False)

    def _lock_existing(self, tx: Connection, run_id: RunId) -> RowMapping:
        run = self.lock(tx, run_id)
        if run is None:
            raise RunNotFound(run_id)
        return run

    def _ending(self, state: RunState) -> dict[str, Any]:
        if state not in FINAL:
            return {}
        return {
            "finished_at": self._database.clock.now(),
            "announce_at": self._statements.announcement_due(),
        }

    def _create(self, tx: Connection, new: NewRun) -> None:
        self._keep_origin(tx, new.failures_of, retry=new.rerun_of or new.id)
        # First, so that where its keys are taken nothing is written.
        tx.execute(self._statements.insert_run(new))
        first = Range(after=new.after)
        tx.execute(
            self._statements.insert_partition(
                new.id,
                0,
                first,
                kind=PartitionKind.ITEMS,
                state=PartitionState.OPEN,
                is_shared=new.partitions > 1,
            )
        )
        reason = _reason_to_start(new)
        tx.execute(self._statements.insert_transition(new.id, None, RunState.QUEUED, reason=reason, worker=None))

    def _existing(self, tx: Connection, new: NewRun) -> RunId | None:
        """Find the run that has the start key of *new*; one that only has its unique key is in the way."""
        active = None
        if new.unique_key is not None:
            active = tx.execute(self._statements.active_run(new.unique_key)).scalar_one_or_none()
        # After that: a start with the same key that commits between the two is found here.
        existing = None if new.start_key is None else self._find(tx, new.start_key)
        if existing is None and active is not None:
            raise RunActive(active, job=new.job)
        return existing

    def _find(self, tx: Connection, start_key: str) -> RunId | None:
        found = tx.execute(self._statements.run_with_key(start_key)).scalar_one_or_none()
        return None if found is None else RunId(found)


def _against_others(attempt: Callable[[], R]) -> R:
    """Do *attempt*, which looks for a key and takes it; again where another was quicker, or has given it back since."""
    for _ in range(_ATTEMPTS):
        with suppress(IntegrityError):
            return attempt()
    return attempt()


def _reason_to_start(new: NewRun) -> str:
    if new.failures_of is not None:
        return f"started to try the failures of {new.failures_of} again"
    if new.rerun_of is not None:
        return f"started as a rerun of {new.rerun_of}"
    # repr: a key may hold what a database's text cannot.
    return "started" if new.key is None else f"started with the key {new.key!a:.200}"


def _patience(wake_up: WakeUp) -> float:
    waited = (wake_up.asked_at - wake_up.due_at).total_seconds()
    return min(max(waited, PATIENCE_SECONDS), _LONGEST_PATIENCE_SECONDS)


def _next_patience(wake_up: WakeUp) -> float:
    return PATIENCE_SECONDS if wake_up.patience is None else min(wake_up.patience * 2, _LONGEST_PATIENCE_SECONDS)


def _reason(after: RunState, reason: str) -> str:
    if after is RunState.SUCCEEDED:
        return "every item is done"
    return {RunState.PAUSED: "pause requested", RunState.CANCELLED: "cancel requested"}.get(after, reason)


def _cursor(text: str | None) -> object:
    try:
        return None if text is None else loads(text)
    except NotSerializable:
        # A value of a type that this process has not imported; people still want to see where the partition is.
        return text


def _transition(row: RowMapping) -> Transition:
    return Transition(
        at=row["at"], before=row["before"], after=row["after"], reason=row["reason"], worker=row["worker"]
    )


def _record(row: RowMapping) -> RunRecord:
    until: datetime = row["finished_at"] or row["read_at"]
    began: datetime = row["started_at"] or until
    return RunRecord(
        id=RunId(row["id"]),
        job=row["job"],
        params=row["params"],
        queue=row["queue"],
        state=row["state"],
        requested=row["requested"],
        delivery=row["delivery"],
        result=row["result"],
        error=None if row["error"] is None else RunError(**json.loads(row["error"])),
        waiting_reason=row["waiting_reason"],
        rerun_of=row["rerun_of"],
        failures_of=row["failures_of"],
        unique_key=row["unique_key"],
        after=row["start_after"],
        limit=row["item_limit"],
        is_dry_run=bool(row["is_dry_run"]),
        retries_in_doubt=bool(row["retries_in_doubt"]),
        partitions=row["partitions"],
        max_workers=row["max_workers"],
        retries=row["retries"],
        retry_reason=row["retry_reason"],
        message=row["message"],
        is_announced=row["announce_at"] is None,
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        purged_at=row["purged_at"],
        progress=Progress(
            done=int(row["done"]),
            failed=int(row["failed"]),
            total=row["total"],
            total_is_estimate=bool(row["total_is_estimate"]),
            rate=row["rate"],
            elapsed=until - began,
            workers=row["workers"],
            interruptions=row["interruptions"],
            chunk_size=row["chunk_size"],
            in_doubt=int(row["in_doubt"]),
        ),
    )
