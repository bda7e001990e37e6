"""One slice: working the chunks of a claimed partition until it ends or should stop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from typing import Protocol

from batchkit.caution import Caution
from batchkit.cutting import ChunkCut, Cutter
from batchkit.errors import LeaseLost
from batchkit.isolation import FetchFailed
from batchkit.job import Definition
from batchkit.lease_timer import LeaseTimer
from batchkit.model import Lease, Standing
from batchkit.pacing import HeldBack
from batchkit.promises import AT_MOST_ONCE
from batchkit.slicing import endings
from batchkit.slicing.chunks import ChunkWork
from batchkit.slicing.course import Course
from batchkit.slicing.finishing import finish
from batchkit.slicing.items import Items, Reading
from batchkit.slicing.once import OnceWork
from batchkit.slicing.outcome import Declined, Ending, Outcome, Stopped, Surroundings
from batchkit.slicing.preparing import Preparation
from batchkit.slicing.stealing import Stealing
from batchkit.slicing.steps import StepWork
from batchkit.slicing.trials import Trials
from batchkit.states import PartitionKind
from batchkit.store import HeldConnection
from batchkit.store.dialects import Fault

_logger = logging.getLogger("batchkit")

#: How often a partition is given back where each time its run's row is locked by others for too long.
_TRIES = 3


def work_slice(lease: Lease, *, job: Definition, around: Surroundings, slice_time: float | None) -> Outcome:
    """
    Work a claimed partition until it is exhausted or has to stop, and give it back.

    Whatever happens, a chunk is committed together with its checkpoint or not at all. Errors of the job make the run
    failed; a lost lease or database leaves it to whoever claims it next. Only what is no Exception passes through,
    after the lease was given back.
    """
    timer = LeaseTimer(around.store.leases, lease, chunk_timeout=job.options.chunk_timeout)
    # A drain asks for a stop, too, but nobody is killed for it: what is in flight may take its time.
    cutter = Cutter(around.grace_begins or around.stop, grace=around.grace if job.options.interruptible else None)
    held = HeldConnection(around.store.database, lease.run_id)
    with timer, cutter, Caution(around.store, around.stop) as caution, closing(held):
        course = Course(
            lease,
            job=job,
            around=around,
            timer=timer,
            cutter=cutter,
            caution=caution,
            held=held,
            slice_time=slice_time,
        )
        return _Slice(course).work()


class _Work(Protocol):
    """A way of working a partition."""

    def next(self) -> Standing | None:
        """Commit the next chunk; None where there is none."""
        ...

    def close(self) -> None:
        """Let go of what is kept from one chunk for the next; another `next` does without it."""
        ...


class _Slice:
    def __init__(self, course: Course) -> None:
        self._course = course
        self._trials = Trials(course)

    def work(self) -> Outcome:
        course = self._course
        try:
            return self._work()
        except LeaseLost as error:
            return endings.lose(course, error)
        except FetchFailed as failed:
            return self._end_after(failed.error)
        except ChunkCut as error:
            endings.give_back(course, error)
            return course.outcome(Ending.INTERRUPTED, error)
        except BaseException as error:  # the user's function may raise anything
            if isinstance(error, Exception) and not self._trials.is_interruption(error):
                return self._end_after(error)
            endings.give_back(course, error)
            raise

    def _work(self) -> Outcome:
        course, trials = self._course, self._trials
        course.around.begun(course.around.stop.is_interruption)
        if course.lease.kind is PartitionKind.FINISH:
            return trials.with_faults(lambda: finish(course))
        reading = Preparation(course, trials).prepare()
        if reading is None:
            return self._given_back(lambda: endings.exhaust(course))
        if course.job.is_resumable:
            return self._work_chunks(StepWork(course, trials, reading.params))
        if course.lease.partitions == 1:
            return self._work_chunks(self._way(reading))
        course.quietly(lambda: course.around.share(course.lease.run_id))
        stealing = Stealing(course, trials, reading)
        stealing.want_cuts()
        return self._work_chunks(self._way(reading), stealing)

    def _way(self, reading: Reading) -> _Work:
        items = Items(self._course, self._trials, reading)
        is_at_most_once = self._course.lease.delivery == AT_MOST_ONCE
        return (OnceWork if is_at_most_once else ChunkWork)(self._course, self._trials, items)

    def _work_chunks(self, work: _Work, stealing: Stealing | None = None) -> Outcome:
        try:
            while True:
                standing = work.next()
                if standing is None:
                    outcome = self._given_back(lambda: endings.exhaust(self._course))
                    if stealing is not None:
                        stealing.want_cuts()
                    return outcome
                if not standing.goes_on:
                    return self._yielded_to(standing)
                # Before the slice may end: where each chunk takes as long as a slice, there is no other moment.
                if stealing is not None and standing.cuts_wanted:
                    # What was read ahead may lie behind the cut.
                    work.close()
                    if stealing.cut(standing.cuts_wanted):
                        work = self._way(stealing.reading)
                if self._course.deadline.has_passed:
                    return self._given_back(lambda: endings.interrupt(self._course, "its slice time is over"))
        finally:
            work.close()

    def _yielded_to(self, standing: Standing) -> Outcome:
        return self._given_back(lambda: endings.yield_to(self._course, standing))

    def _given_back(self, ending: Callable[[], Outcome]) -> Outcome:
        """
        End the slice by *ending*; where the run's row is not to be had, leave the lease to run out.

        That is nothing wrong with the run: a thousand workers may give theirs back at once to a slow database.
        """
        course = self._course
        faults: list[Exception] = []
        while len(faults) < _TRIES:
            try:
                return ending()
            except Exception as error:
                if course.around.store.database.fault(error) is not Fault.TRANSIENT:
                    raise
                faults.append(error)
        _logger.warning("a lease was left to run out", extra={"run_id": course.lease.run_id}, exc_info=faults[-1])
        return course.outcome(Ending.INTERRUPTED, faults[-1])

    def _end_after(self, error: Exception) -> Outcome:
        """Give the partition back as *error* asks for; whatever goes wrong with that is for the lease to settle."""
        course = self._course
        try:
            return self._ended_by(error)
        except LeaseLost as lost:
            return endings.lose(course, lost)
        except Exception as failed:
            if course.around.store.database.fault(failed) is None:
                raise
            _logger.warning("a lease was left to run out", extra={"run_id": course.lease.run_id}, exc_info=True)
            return course.outcome(Ending.INTERRUPTED, error)

    def _ended_by(self, error: Exception) -> Outcome:
        course = self._course
        if isinstance(error, Declined):
            return endings.decline(course, error)
        if isinstance(error, HeldBack):
            return self._given_back(lambda: endings.hold(course, error))
        if isinstance(error, Stopped):
            reason = error.reason or str(course.around.stop.reason)
            return self._given_back(lambda: endings.interrupt(course, reason))
        if self._trials.is_away(error):
            course.held.discard()
            return endings.interrupt(course, "the database was away, or its lock was not to be had")
        return endings.fail(course, error)
