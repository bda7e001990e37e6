"""How many items a chunk takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from batchkit.durations import Duration, seconds
from batchkit.errors import InvalidJob

#: A chunk takes at most so many times as many items as the one before it,
_GROWTH = 2
#: or so many while chunks take less than this share of the target: there is room for a wrong guess.
_FAST_GROWTH = 8
_FAST_SHARE = 1 / 16
#: How much the last chunk counts where it was cheaper than those before it; a dearer one counts at once.
_WEIGHT = 0.5
_FIRST_SIZE = 10


@dataclass(frozen=True, slots=True)
class Adaptive:
    """
    Let each chunk take about *target* seconds: as many items as the ones before it say.

    No chunk is planned to take longer than a third of the lease, or of the grace where that is known; on SQLite, which
    has one writer, than 0.2 s. After a deadlock or a lock timeout a chunk takes half as many items.
    """

    target: Duration = field(default=timedelta(seconds=1))
    minimum: int = 1
    maximum: int = 10_000

    def __post_init__(self) -> None:
        try:
            seconds(self.target, name="target")
        except (TypeError, ValueError) as error:
            raise InvalidJob(f"Adaptive: {error}") from None
        for name, value in (("minimum", self.minimum), ("maximum", self.maximum)):
            if type(value) is not int or value < 1:
                raise InvalidJob(f"Adaptive: {name} is a number of items, 1 or more: got {value!r}")
        if self.minimum > self.maximum:
            raise InvalidJob(f"Adaptive: minimum={self.minimum} is more than maximum={self.maximum}")

    def __str__(self) -> str:
        return f"as many as take {seconds(self.target, name='target'):g} s"


class Sizing(Protocol):
    """Says how many items the next chunk takes."""

    @property
    def size(self) -> int:
        """How many it takes."""
        ...

    def took(self, items: int, seconds: float) -> None:
        """Take note that a chunk of *items* was committed after *seconds*."""
        ...

    def shrink(self, size: int) -> None:
        """Take *size* items, and more again by and by."""
        ...


class FixedSizing:
    """Always the same number; after a shrinking it doubles until it is there again."""

    def __init__(self, size: int) -> None:
        self._full = size
        self.size = size

    def took(self, items: int, seconds: float) -> None:  # noqa: ARG002  the same for all sizings
        """Come back to the full size."""
        self.size = min(self._full, self.size * _GROWTH)

    def shrink(self, size: int) -> None:
        """Take *size* items for now."""
        self.size = max(1, size)


class AdaptiveSizing:
    """
    Aims at a time: what the items have cost says how many the next chunk takes.

    A dearer chunk counts at once, so that one that took too long is followed by one that does not; a cheaper one counts
    half, and the number grows to the double at most, or eightfold while there is much room.
    """

    def __init__(self, adaptive: Adaptive, *, longest: float, first: int | None) -> None:
        self._target = min(seconds(adaptive.target, name="target"), longest)
        self._minimum = adaptive.minimum
        self._maximum = adaptive.maximum
        self._per_item: float | None = None
        self.size = self._clamped(first or _FIRST_SIZE)

    def took(self, items: int, seconds: float) -> None:
        """Learn what the items have cost."""
        cost = max(seconds, 1e-6) / items
        before = self._per_item
        self._per_item = cost if before is None or cost > before else before + _WEIGHT * (cost - before)
        growth = _FAST_GROWTH if seconds < self._target * _FAST_SHARE else _GROWTH
        self.size = self._clamped(min(self._target / self._per_item, items * growth))

    def shrink(self, size: int) -> None:
        """Take *size* items for now."""
        self.size = self._clamped(size)

    def _clamped(self, size: float) -> int:
        return max(self._minimum, min(self._maximum, int(size)))
