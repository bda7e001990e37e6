"""Keeping a slice to the throttle of its job."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from batchkit.describing import safe_text
from batchkit.durations import seconds
from batchkit.errors import InvalidHold
from batchkit.model import RunId
from batchkit.store import Store
from batchkit.throttle import AskedHold, HoldOff, Throttle

_logger = logging.getLogger("batchkit")

#: A wait for the rate that is not longer is spent in the slice: to hand a run on takes about as long.
WAITED_IN_SLICE_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 3600.0


class HeldBack(Exception):
    """The partition is to be given back for so many *seconds*, for this *reason*."""

    def __init__(self, held_for: float, reason: str) -> None:
        self.seconds = held_for
        self.reason = f"held for {held_for:.3g} s: {reason}"


class Pace:
    """
    Asks the holds of a job, and waits for its rate, in front of the chunks of one slice.

    A hold that cannot be asked slows a run down and does not stop it: the first time in a slice the run goes on until
    the holds are asked again, after `every`; then it is held for as long.
    """

    def __init__(self, throttle: Throttle, store: Store) -> None:
        self._throttle = throttle
        self._store = store
        self._asked_at: float | None = None
        self._has_failed = False

    def ask(self, *, is_to_raise: Callable[[Exception], bool]) -> None:
        """
        Ask the holds, unless that was done a moment ago; what *is_to_raise* is no failure of theirs.

        Raises:
            HeldBack: one of them holds the run off.
            InvalidHold: one of them cannot be asked in this database.
        """
        if not self._throttle.holds:
            return
        if self._asked_at is not None and time.monotonic() - self._asked_at < self._throttle.every_seconds:
            return
        failed: HeldBack | None = None
        for hold in self._throttle.holds:
            try:
                off = self._holding(hold)
            except InvalidHold:
                raise
            except Exception as error:  # the function is the user's
                if is_to_raise(error):
                    raise
                _logger.warning("a hold could not be asked", extra={"hold": hold.name}, exc_info=True)
                text = f"{hold.name} could not be asked: {type(error).__name__}: {safe_text(error)}"
                failed = failed or HeldBack(max(1.0, self._throttle.every_seconds), text)
                continue
            if off is not None:
                held_for = seconds(off.seconds, name="seconds")
                raise HeldBack(held_for, f"{hold.name}: {off.reason}" if off.reason else hold.name)
        self._asked_at = time.monotonic()
        if failed is not None and self._has_failed:
            raise failed
        self._has_failed = failed is not None

    def reserve(self, run_id: RunId, items: int) -> float:
        """
        Reserve the time of the next *items* at the rate of a run, and give the seconds to wait for it.

        Raises:
            HeldBack: it is too long to wait for in the slice, and nothing was reserved.
        """
        rate = self._throttle.rate
        if rate is None:
            return 0.0
        reserved = self._store.rates.reserve(run_id, items=items, rate=rate, within=WAITED_IN_SLICE_SECONDS)
        if not reserved.was_reserved:
            raise HeldBack(min(reserved.seconds, _LONGEST_WAIT_SECONDS), f"its rate is {rate:g} items/s")
        return reserved.seconds

    def _holding(self, hold: AskedHold) -> HoldOff | None:
        if not hold.takes_connection:
            return hold.holding(hold.function())
        with self._store.database.reading() as connection:
            return hold.holding(hold.function(connection))
