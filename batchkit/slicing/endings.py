"""Giving a partition back: after its last item, for a while, or for good."""

from __future__ import annotations

import logging

from batchkit.describing import describe, safe_text
from batchkit.errors import LeaseLost
from batchkit.model import Standing
from batchkit.pacing import HeldBack
from batchkit.slicing.course import Course
from batchkit.slicing.outcome import Declined, Ending, Outcome

_logger = logging.getLogger("batchkit")

_DECLINE_SECONDS = 30.0
_EMPTY_SLICE_DELAY_SECONDS = 1.0


def exhaust(course: Course) -> Outcome:
    """Give the partition back for good: nothing is left in it."""
    course.around.store.leases.release(course.lease, is_exhausted=True, reason="every item is done")
    return course.outcome(Ending.EXHAUSTED)


def interrupt(course: Course, reason: str) -> Outcome:
    """Give it back to go on by itself."""
    # One that did no chunk would come back at once, and again, if whatever stopped it still does.
    delay = 0.0 if course.chunks else _EMPTY_SLICE_DELAY_SECONDS
    course.around.store.leases.release(course.lease, reason=f"interrupted: {reason}", delay=delay)
    return course.outcome(Ending.INTERRUPTED)


def yield_to(course: Course, standing: Standing) -> Outcome:
    """Give it back since the run was asked to pause or end, or has ended elsewhere."""
    reason = f"{standing.requested} requested" if standing.requested else f"the run is {standing.state}"
    course.around.store.leases.release(course.lease, reason=reason, is_interrupt=False)
    return course.outcome(Ending.REQUESTED)


def hold(course: Course, held: HeldBack) -> Outcome:
    """Give it back for as long as its throttle says."""
    course.around.store.leases.release(
        course.lease, reason=held.reason, delay=held.seconds, is_interrupt=False, is_waiting=True
    )
    _logger.info("a run is held", extra={"run_id": course.lease.run_id, "reason": held.reason})
    return course.outcome(Ending.HELD)


def decline(course: Course, declined: Declined) -> Outcome:
    """Leave it to a worker whose code fits, and say why."""
    reason, run_id = safe_text(declined.error), course.lease.run_id
    course.around.store.leases.release(
        course.lease, reason="left to a worker whose code fits", delay=_DECLINE_SECONDS, is_interrupt=False
    )
    course.around.store.runs.explain_waiting(run_id, reason)
    _logger.warning("a run does not fit this worker's code", extra={"run_id": run_id, "reason": reason})
    return course.outcome(Ending.DECLINED, declined.error)


def fail(course: Course, error: Exception) -> Outcome:
    """Give it back and make the run failed."""
    lease = course.lease
    described = describe(error, partition=lease.number, cursor=lease.cursor, item=course.failing_item)
    course.around.store.leases.fail(lease, described, worker=course.around.worker)
    _logger.error("a run failed", extra={"run_id": lease.run_id, "job": course.job.name}, exc_info=error)
    return course.outcome(Ending.FAILED, error)


def lose(course: Course, error: LeaseLost) -> Outcome:
    """Leave it to whoever has it now, and see that the next lease lasts where this one did not."""
    lease, store = course.lease, course.around.store
    _logger.warning("a lease was lost", extra={"run_id": lease.run_id, "fence": lease.fence})
    course.quietly(lambda: course.caution.is_alive_after_all(lease))
    if course.timer.is_stuck:
        reason = (
            f"a chunk behind the cursor {lease.cursor} took longer than chunk_timeout "
            f"({course.job.options.chunk_timeout:g} s), so its lease ran out and its work was undone; "
            f"make chunks smaller (chunk_size) or give them more time (chunk_timeout)"
        )
        course.quietly(lambda: store.runs.explain_waiting(lease.run_id, reason))
    elif course.was_working:
        # It was kept from renewing by its own code.
        course.quietly(lambda: store.leases.lengthen(lease))
    return course.outcome(Ending.LOST, error)


def give_back(course: Course, error: BaseException) -> None:
    """Give it back after an error that was raised into the slice from outside."""
    course.held.discard()
    what = course.around.stop.reason or type(error).__name__
    reason = f"interrupted: {what}, the chunk was rolled back"
    course.quietly(lambda: course.around.store.leases.release(course.lease, reason=reason))
