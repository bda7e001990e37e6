"""Keeping a slice to the throttle of its job: in front of a chunk, or of a step, nothing of which is begun."""

from __future__ import annotations

from batchkit.pacing import Pace
from batchkit.slicing.course import Course
from batchkit.slicing.outcome import Stopped
from batchkit.slicing.trials import Trials


class Throttling:
    """Lets the chunks of one slice begin when they may; where the job has no throttle, at once."""

    def __init__(self, course: Course, trials: Trials) -> None:
        self._course = course
        self._trials = trials
        throttle = course.job.options.throttle
        self._pace = None if throttle is None else Pace(throttle, course.around.store)

    def wait(self, items: int) -> None:
        """
        Ask the holds and wait for the rate of so many *items*, before anything of them is counted or locked.

        Raises:
            HeldBack: the partition is to be given back for a while.
            InvalidHold: a hold cannot be asked in this database.
            Stopped: the worker should stop.
        """
        if self._pace is None:
            return
        course = self._course
        # A hold that hangs is a chunk that hangs: its lease is not renewed for ever, and the grace cuts it short.
        course.begin_chunk()
        try:
            self._pace.ask(is_to_raise=self._is_no_fault_of_holds)
        finally:
            course.cutter.chunk_ends()
        waits = self._pace.reserve(course.lease.run_id, items)
        course.has_waited(waits)
        if waits and course.rest(waits):
            raise Stopped

    def _is_no_fault_of_holds(self, error: Exception) -> bool:
        return self._trials.is_interruption(error) or self._trials.is_away(error)
