"""Work stealing, seen from a slice: wanting others' ranges cut, and cutting its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from batchkit.errors import LeaseLost
from batchkit.planning import bounded
from batchkit.remainders import can_be_cut_again, cuts, remainder, weight
from batchkit.slicing.course import Course
from batchkit.slicing.items import Reading
from batchkit.slicing.outcome import Stopped
from batchkit.slicing.trials import Trials
from batchkit.sources.base import Source
from batchkit.store import ChunkTransaction, Worked
from batchkit.store.dialects import Fault

R = TypeVar("R")

_logger = logging.getLogger("batchkit")

#: How long a range must take for its own claim to be worth it.
_LEAST_SECONDS = 0.25
#: Items per second, where nobody has done any.
_UNKNOWN_RATE = 1.0
#: Of how many partitions that are worked the largest is looked for: each costs some statements.
_LOOKED_AT = 16


class Stealing:
    """
    Keeps one range of a run waiting for workers that are free, as long as enough is left.

    What is wanted of others is advice: nothing depends on it, and what goes wrong with it is logged and no more.
    """

    def __init__(self, course: Course, trials: Trials, reading: Reading) -> None:
        self._course = course
        self._trials = trials
        #: what the chunks are read from, up to where the partition ends now
        self.reading = reading
        lease = course.lease
        self._may = lease.failures_of is None and lease.limit is None and can_be_cut_again(reading.whole)

    def want_cuts(self) -> None:
        """Want the largest range of the run cut that somebody works, where none waits and workers may come."""
        if not self._may or self._course.around.stop.requested:
            return
        self._unless_it_fails(self._want_cuts, what="no range was wanted cut")

    def cut(self, cuts_wanted: int) -> bool:
        """
        Cut what is left of the range into so many parts more; True where it ends earlier than before.

        It is called between two chunks. Where what is left is too little, or cannot be cut, it stays whole.

        Raises:
            Stopped: it may have been cut, or not; whoever claims it next learns it.
            LeaseLost: the lease is over.
        """
        course, store = self._course, self._course.around.store
        if not self._may or course.around.stop.requested:
            return False
        found = self._unless_it_fails(lambda: self._cuts(cuts_wanted), what="a range could not be cut")
        if not found:
            self._unless_it_fails(lambda: store.stealing.leave_whole(course.lease), what="a range is still wanted cut")
            return False
        try:
            shorter = store.stealing.cut(course.lease, found)
        except LeaseLost:
            raise
        except Exception as error:
            if self._trials.is_interruption(error):
                raise
            if self._trials.fault(error) is Fault.TRANSIENT:
                # The run's row was locked for too long, by others who give back or claim: it stays wanted.
                return False
            # A commit whose reply was lost may still land. Giving back waits for it, and so does the next claim.
            raise Stopped("whether its range was cut is not known") from error
        if shorter.until == course.lease.until:
            return False
        course.goes_by(shorter)
        self.reading = replace(self.reading, source=bounded(self.reading.whole, shorter))
        course.quietly(lambda: course.around.share(shorter.run_id))
        return True

    def _want_cuts(self) -> None:
        run_id, stealing = self._course.lease.run_id, self._course.around.store.stealing
        missing = stealing.missing(run_id)
        if not missing:
            return
        worked = stealing.worked(run_id, limit=_LOOKED_AT)
        left = self._in_transaction(lambda tx: [self._items_left(each, tx) for each in worked])
        rates = [each.rate for each in worked if each.rate]
        # Of one that has done nothing yet it is taken to be that of the others; where there is none, its holder says.
        typical = sum(rates) / len(rates) if rates else _UNKNOWN_RATE
        seconds = [items / (each.rate or typical) for items, each in zip(left, worked, strict=True)]
        most = max(seconds, default=0.0)
        if most >= 2 * _LEAST_SECONDS:
            stealing.want_cuts(run_id, worked[seconds.index(most)], cuts=missing)

    def _items_left(self, victim: Worked, transaction: ChunkTransaction) -> int:
        """Say how many items are left behind the chunk in flight; one alone cannot be cut."""
        left = remainder(self.reading.whole, after=victim.cursor, until=victim.until)
        items = _items(left, transaction, done=victim.done) - (victim.chunk_size or 0)
        return items if items > 1 else 0

    def _cuts(self, cuts_wanted: int) -> list[str]:
        lease, rate = self._course.lease, max(self._course.rate, 1e-6)

        def found(transaction: ChunkTransaction) -> list[str]:
            left = remainder(self.reading.whole, after=lease.cursor, until=lease.until)
            items = _items(left, transaction, done=lease.done)
            parts = min(1 + cuts_wanted, items, int(items / rate / _LEAST_SECONDS))
            return cuts(left, parts, transaction.session, after=lease.cursor) if parts > 1 else []

        return [cut for cut in self._in_transaction(found) if cut not in (lease.cursor, lease.until)]

    def _in_transaction(self, step: Callable[[ChunkTransaction], R]) -> R:
        """Do *step* with a session that reads what the job's items are, and changes nothing."""
        transaction = self._course.open()
        try:
            done = step(transaction)
        except BaseException as error:
            self._course.undo(transaction, error)
            raise
        transaction.rollback()
        return done

    def _unless_it_fails(self, step: Callable[[], R], *, what: str) -> R | None:
        try:
            return step()
        except Exception as error:
            if self._trials.is_interruption(error):
                raise
            if self._trials.is_away(error):
                self._course.held.discard()
            _logger.warning(what, extra={"run_id": self._course.lease.run_id}, exc_info=True)
            return None


def _items(left: Source[Any], transaction: ChunkTransaction, *, done: int) -> int:
    """Say how many items are left; where the source does not know, as many again as are done."""
    items = weight(left, transaction.session)
    return done if items is None else items
