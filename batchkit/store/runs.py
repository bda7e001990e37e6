"""The states of runs, and what changes them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, RowMapping
from sqlalchemy.exc import IntegrityError

from batchkit.errors import (
    RunActive,
    RunNotFound,
    RunPurged,
)
from batchkit.hooks import Happening, happened
from batchkit.model import RunError, RunId
from batchkit.states import (
    FINAL,
    Request,
    RunState,
    check_transition,
    illegal_transition,
    settled,
)
from batchkit.store.changes import Change
from batchkit.store.database import Database
from batchkit.store.doubts import Doubts
from batchkit.store.statements import Statements
from batchkit.store.suspects import Suspects
from batchkit.suspicion import Death


class Runs:
    """The runs in a database. Each change of state is made under the run's lock and recorded with its reason."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = Statements(database.tables, database.clock)
        self.doubts = Doubts(database)
        self._suspects = Suspects(database)

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
                job = tx.execute(self._statements.job_of(run_id)).scalar_one()
            if rival is None:
                # It has ended meanwhile.
                return self._resume(run_id, accept=accept, skip=skip)
            raise RunActive(rival, job=job, resumed=run_id) from None

    def _resume(self, run_id: RunId, *, accept: bool, skip: bool) -> RunState:
        with self._database.transaction() as tx:
            run = self._lock_existing(tx, run_id)
            if run["purged_at"] is not None:
                raise RunPurged(run_id)
            self.keep_origin(tx, run["failures_of"], retry=run_id)
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

    def keep_origin(self, tx: Connection, origin: RunId | None, *, retry: RunId) -> None:
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

    # Reading

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


def _reason(after: RunState, reason: str) -> str:
    if after is RunState.SUCCEEDED:
        return "every item is done"
    return {RunState.PAUSED: "pause requested", RunState.CANCELLED: "cancel requested"}.get(after, reason)
