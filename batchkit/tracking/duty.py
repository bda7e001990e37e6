"""Whether a worker may claim, and may go on: drains, and the breaks in which nobody is protected."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from batchkit.busy import is_interruptible
from batchkit.draining import DrainNotice
from batchkit.stopping import Stopping

#: How long workers stay free of protected work once `max_protect` is over: time for a report, and for who reads it.
_LONGEST_BREAK_SECONDS = 20.0
_BREAK_SHARE = 0.25
_LOOK_SECONDS = 0.2


class Breaks:
    """
    The breaks in which no worker begins, or goes on with, what must not be stopped.

    A platform that looks at a whole fleet finds nobody protected only where all of them are free at the same moment. So
    they are the same everywhere: they begin at each multiple of *max_protect* since the epoch.
    """

    def __init__(self, max_protect: float | None) -> None:
        self.max_protect = max_protect
        self._length = 0.0 if max_protect is None else min(_LONGEST_BREAK_SECONDS, max_protect * _BREAK_SHARE)

    @property
    def are_now(self) -> bool:
        """Whether it is one of them."""
        return self.seconds_left > 0

    @property
    def seconds_left(self) -> float:
        """How long this one lasts yet; nothing outside of one."""
        return max(0.0, self._length - time.time() % self.max_protect) if self.max_protect is not None else 0.0

    def has_begun_since(self, began_at: float) -> bool:
        """Tell whether one has begun since *began_at*, a moment of `time.time()`."""
        return self.max_protect is not None and time.time() // self.max_protect > began_at // self.max_protect

    @property
    def length(self) -> float:
        """How many seconds each of them lasts."""
        return self._length


class _Undrained:
    """A request to stop, or the notice that the instance is being drained."""

    def __init__(self, stop: Stopping, notice: DrainNotice) -> None:
        self._stop = stop
        self._notice = notice

    @property
    def requested(self) -> bool:
        return self._stop.requested or self._notice.is_there

    @property
    def reason(self) -> str | None:
        return self._stop.reason or ("the instance is being drained" if self._notice.is_there else None)

    def wait(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self.requested and (left := until - time.monotonic()) > 0:
            self._stop.wait(min(left, _LOOK_SECONDS))
        return self.requested

    def is_interruption(self, error: BaseException) -> bool:
        return self._stop.is_interruption(error)


@dataclass(frozen=True, slots=True)
class Duty:
    """What all slices of a worker keep to."""

    #: how long the worker may go on after a signal to stop; None where nobody said
    working: float | None = None
    breaks: Breaks = field(default_factory=lambda: Breaks(None))
    notice: DrainNotice = field(default_factory=DrainNotice)

    def drained(self, stop: Stopping) -> Stopping:
        """Give *stop* as it is, where a drain asks for a stop as well."""
        return _Undrained(stop, self.notice)

    def is_protected(self, *, may_interrupt: bool, expected: float | None) -> bool:
        """Tell whether a slice whose chunks are expected to take so long must not be stopped."""
        return not is_interruptible(is_protected=not may_interrupt, remaining=expected, working=self.working)
