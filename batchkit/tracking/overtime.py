"""For how long a worker may refuse to be stopped; it reads no clock, so that it can be tried out."""

from __future__ import annotations

from batchkit.tracking.duty import Breaks


class Overtime:
    """
    Says when a worker that was protected for `max_protect` is to begin nothing protected any more.

    The breaks of the whole fleet see to that where chunks are short. A chunk that is longer than a break outlasts it,
    and the next one would begin while the platform is still told of the last. So whoever was protected for too long
    finishes what it has begun, and then takes a break of its own.
    """

    def __init__(self, breaks: Breaks) -> None:
        self._max_protect = breaks.max_protect
        self._free_seconds = breaks.length
        self._since: float | None = None
        self._free_until: float | None = None

    def note(self, now: float, *, is_protected: bool) -> None:
        """Take note of what the platform is told."""
        if is_protected:
            self._since = now if self._since is None else self._since
        elif self._since is not None:
            if self.is_over(now):
                self._free_until = now + self._free_seconds
            self._since = None

    def is_over(self, now: float) -> bool:
        """Tell whether nothing protected is to begin."""
        if self._max_protect is None:
            return False
        if self._free_until is not None and now < self._free_until:
            return True
        return self._since is not None and now - self._since >= self._max_protect
