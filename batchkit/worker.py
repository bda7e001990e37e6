"""A worker: claims partitions and works slices of them."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from batchkit.instance import worker_name
from batchkit.job import Options, Registry
from batchkit.model import Lease, RunId
from batchkit.slicing import Ending, Outcome, Surroundings, work_slice
from batchkit.states import RunState
from batchkit.stopping import Stopping
from batchkit.store import Sessions, Store
from batchkit.tracking import Breaks, Duty, Tie, tied_to_main

_logger = logging.getLogger("batchkit")
_POLL_SECONDS = 0.2
#: How often a worker tries to claim another partition where others were quicker, and of how many it takes one. Those
#: are as many as workers may come at the same moment: among twenty, a thousand would refuse each other nearly always.
_TRIES = 5
_CHOICE = 1000
#: How long a worker leaves a run with several partitions alone whose code it does not have.
_DECLINED_SECONDS = 30.0
#: How long it leaves one alone that it is not to take, since the platform does not protect this worker now.
_LEFT_SECONDS = 5.0
#: After these another partition of the run can be worked.
_GOES_ON = frozenset({Ending.EXHAUSTED, Ending.LOST})
_LEFT = Outcome(Ending.LEFT, chunks=0, items=0)


def _watch_nothing(_: Lease) -> None:
    pass


def _share_with_nobody(_: RunId) -> None:
    pass


@dataclass(frozen=True)
class Worker:
    """Works the runs of the jobs that this process knows."""

    store: Store
    sessions: Sessions
    jobs: Registry
    #: seconds between the signal to stop and the kill, where that is known
    grace: float | None = None
    #: when it may claim, and go on
    duty: Duty = field(default_factory=Duty)
    #: until when what this worker cannot take is left to others
    _passed_over: dict[RunId, float] = field(default_factory=dict)

    def work_next(self, *, queues: Collection[str] | None, stop: Stopping) -> Outcome | None:
        """Work one slice of whatever has waited longest; None when nothing could be claimed."""
        for run_id, number in self.store.leases.claimable(
            jobs=list(self.jobs), queues=queues, besides=self._left_to_others()
        ):
            outcome = self.work_partition(run_id, number, stop=stop) or self.work_another(run_id, stop=stop)
            if outcome is not None:
                self._remember(run_id, outcome)
            if outcome is not None and outcome.ending is not Ending.LEFT:
                return outcome
        return None

    def _left_to_others(self) -> list[RunId]:
        now = time.monotonic()
        for run_id in [run_id for run_id, until in self._passed_over.items() if until <= now]:
            del self._passed_over[run_id]
        return list(self._passed_over)

    def _remember(self, run_id: RunId, outcome: Outcome) -> None:
        """
        Look no further for a while at a run that this worker cannot take, so that others behind it have their turn.

        One whose code does not fit may have a thousand other partitions. A worker that is being drained passes nothing
        over: it could take all of it once that is called off.
        """
        if outcome.ending is Ending.DECLINED and self.store.wake_ups.is_shared(run_id):
            self._passed_over[run_id] = time.monotonic() + _DECLINED_SECONDS
        elif outcome.ending is Ending.LEFT and not self.duty.notice.is_there:
            self._passed_over[run_id] = time.monotonic() + _LEFT_SECONDS

    def work_another(
        self,
        run_id: RunId,
        *,
        stop: Stopping,
        watch: Callable[[Lease], None] = _watch_nothing,
        share: Callable[[RunId], object] = _share_with_nobody,
    ) -> Outcome | None:
        """Work one slice of whatever partition of a run is due; None when nothing of it could be claimed."""
        for _ in range(_TRIES):
            numbers = self.store.leases.claimable_in(run_id, is_due=True, limit=_CHOICE)
            if not numbers:
                return None
            # By chance, since others who come at the same moment see the same partitions.
            outcome = self.work_partition(run_id, random.choice(numbers), stop=stop, watch=watch, share=share)  # noqa: S311
            if outcome is not None:
                return outcome
        return None

    def work_partition(
        self,
        run_id: RunId,
        number: int,
        *,
        stop: Stopping,
        watch: Callable[[Lease], None] = _watch_nothing,
        is_sliced: bool = True,
        wake_no: int | None = None,
        share: Callable[[RunId], object] = _share_with_nobody,
    ) -> Outcome | None:
        """
        Claim a partition and work it.

        None when somebody else was quicker, or *wake_no* is not its newest wake-up. It is LEFT where this worker is not
        to take it now: it is drained, or the work must not be stopped, and the platform refuses to leave the worker
        alone, or all are to be free to be stopped for a while.

        *share* is called when others can work the other partitions of its run, and must wake them up.

        Raises:
            JobNotFound: the job of the run is not registered in this process.
        """
        options = self.jobs[self.store.records.job_of(run_id)].options
        if is_sliced and self.duty.notice.is_there:
            return _LEFT
        with tied_to_main() as tie:
            if is_sliced and self._must_not_be_stopped(run_id, number, options, tie):
                if self.duty.breaks.are_now:
                    self.store.leases.postpone(run_id, number, wake_no=wake_no, seconds=self.duty.breaks.seconds_left)
                    return _LEFT
                if tie.ask() is False:
                    return _LEFT
            return self._claim_and_work(
                run_id,
                number,
                options,
                tie,
                stop=stop,
                watch=watch,
                is_sliced=is_sliced,
                wake_no=wake_no,
                share=share,
            )

    def _must_not_be_stopped(self, run_id: RunId, number: int, options: Options, tie: Tie) -> bool:
        """Tell whether this worker must not be stopped once it has claimed, where anybody wants to know."""
        if self.duty.breaks.max_protect is None and not tie.is_open:
            return False
        expected = self.store.leases.chunk_seconds(run_id, number) if options.interruptible else None
        return self.duty.is_protected(may_interrupt=options.interruptible, expected=expected)

    def _claim_and_work(
        self,
        run_id: RunId,
        number: int,
        options: Options,
        tie: Tie,
        *,
        stop: Stopping,
        watch: Callable[[Lease], None],
        is_sliced: bool,
        wake_no: int | None,
        share: Callable[[RunId], object],
    ) -> Outcome | None:
        name = worker_name()
        with self.store.database.changes.deferred() as claimed:
            lease = self.store.leases.claim(
                run_id,
                number,
                worker=name,
                seconds=options.lease,
                wake_no=wake_no,
                working_seconds=self.duty.working,
                is_protected=not options.interruptible,
            )
        if lease is None:
            return None
        tie.begins(is_protected=not options.interruptible, expected=lease.chunk_seconds, working=self.duty.working)
        around = Surroundings(
            store=self.store,
            sessions=self.sessions,
            worker=name,
            stop=self.duty.drained(stop) if is_sliced else stop,
            grace_begins=stop,
            watch=watch,
            grace=self.grace,
            begun=claimed.tell,
            tie=tie,
            breaks=self.duty.breaks if is_sliced else Breaks(None),
            working=self.duty.working,
            share=share,
        )
        return work_slice(
            lease,
            job=self.jobs[lease.job],
            around=around,
            slice_time=options.slice_time if is_sliced else None,
        )

    def work_run(
        self,
        run_id: RunId,
        *,
        stop: Stopping,
        watch: Callable[[Lease], None] = _watch_nothing,
        waits_for_others: bool = True,
    ) -> Outcome | None:
        """
        Work one run in this process until it ends, is paused, or has to stop; give the last slice's outcome.

        While others hold what is left of it, wait for them, and take over from those that die; without
        *waits_for_others*, leave it to them.

        Raises:
            JobNotFound: the job of the run is not registered in this process.
        """
        outcome = None
        while not stop.requested:
            # What was held back is held until it is due; what waits for another reason is taken at once.
            is_held = outcome is not None and outcome.ending is Ending.HELD
            numbers = self.store.leases.claimable_in(run_id, is_due=is_held)
            for number in numbers:
                worked = self.work_partition(run_id, number, stop=stop, watch=watch, is_sliced=False)
                outcome = worked or outcome
                if worked is not None and worked.ending is Ending.DECLINED:
                    return worked
                if worked is not None and worked.ending not in _GOES_ON:
                    # What stopped it stops the others as well.
                    break
            if numbers:
                continue
            state = self.store.records.load(run_id).state
            waits = waits_for_others or (is_held and state is RunState.QUEUED)
            if state not in {RunState.QUEUED, RunState.RUNNING} or not waits:
                return outcome
            if run_id in self.store.runs.unattended(limit=1, run_id=run_id):
                self.store.runs.settle_unattended(run_id)
                continue
            stop.wait(_POLL_SECONDS)
        return outcome and replace(outcome, ending=Ending.INTERRUPTED)
