"""How a worker stands, by what its slices tell; it reads no clock, so that it can be tried out."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchkit.busy import is_interruptible, remaining_seconds
from batchkit.hooks import WorkerState


@dataclass(slots=True)
class SliceSeen:
    """What a slice has told of itself. Moments are those of a monotonic clock."""

    #: whether it is about to be claimed, once the platform has protected the worker
    is_asking: bool = False
    #: whether that was not refused
    is_granted: bool = False
    has_begun: bool = False
    is_protected: bool = False
    expected: float | None = None
    working: float | None = None
    moved_at: float = 0.0

    def remaining(self, now: float) -> float | None:
        """Say how long it takes yet to its next checkpoint."""
        return remaining_seconds(self.expected, now - self.moved_at)

    def must_stay(self, now: float) -> bool:
        """Tell whether the worker must not be stopped for its sake."""
        if not self.has_begun:
            return self.is_asking
        return not is_interruptible(is_protected=self.is_protected, remaining=self.remaining(now), working=self.working)


@dataclass(slots=True)
class _Lingering:
    """Something that is seen at once when it begins, and for a moment after it has ended."""

    seconds: float
    _until: float | None = None

    def shown(self, count: int, now: float) -> int:
        """Give the count that is shown."""
        if count:
            self._until = now + self.seconds
            return count
        return 1 if self._until is not None and now < self._until else 0


@dataclass(slots=True)
class Standing:
    """Sums up what the slices of a worker tell."""

    worker: str
    instance: str
    #: for how long a worker is shown as busy, or protected, after it was so: the next slice may begin right away
    linger: float
    slices: dict[int, SliceSeen] = field(default_factory=dict)
    _sequence: int = 0
    _protected: _Lingering = field(init=False)
    _busy: _Lingering = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing to linger."""
        self._protected = _Lingering(self.linger)
        self._busy = _Lingering(self.linger)

    def hear(self, slice_: SliceSeen, message: dict[str, object], now: float) -> bool:
        """Take in what a slice tells; say whether it has moved on."""
        expected, working = message.get("expected"), message.get("working")
        has_moved = slice_.has_begun and "expected" in message and "begins" not in message
        if "asks" in message:
            slice_.is_asking = True
        if "begins" in message:
            slice_.has_begun, slice_.is_asking = True, False
            slice_.working = float(working) if isinstance(working, int | float) else None
        if "expected" in message:
            slice_.expected = float(expected) if isinstance(expected, int | float) else None
            slice_.moved_at = now
        if "is_protected" in message:
            slice_.is_protected = bool(message["is_protected"])
        return has_moved

    def state(self, now: float, *, is_draining: bool, is_stopping: bool = False) -> WorkerState:
        """Give the state as it is shown now."""
        begun = [each for each in self.slices.values() if each.has_begun]
        stay = [each for each in self.slices.values() if each.must_stay(now)]
        protected = len(stay)
        # What was asked for and refused leaves nothing behind.
        lasting = sum(each.has_begun or each.is_granted for each in stay)
        remaining = [each.remaining(now) for each in begun]
        known = [each for each in remaining if each is not None]
        is_draining = is_draining or is_stopping
        if is_draining:
            # Whoever waits for the end of the work does not wait for what may come.
            busy, shown = len(begun), protected
        else:
            busy = self._busy.shown(len(begun), now)
            shown = max(protected, self._protected.shown(lasting, now))
        self._sequence += 1
        return WorkerState(
            worker=self.worker,
            instance=self.instance,
            protected=shown,
            interruptible=max(0, busy - shown),
            remaining=max(known) if known and len(known) == len(remaining) else None,
            is_draining=is_draining,
            sequence=self._sequence,
            is_stopping=is_stopping,
        )


def is_edge(before: WorkerState | None, after: WorkerState) -> bool:
    """Tell whether hooks are to be told of a state at once."""
    if before is None:
        return True
    return (before.is_busy, before.is_protected, before.is_draining, before.is_stopping) != (
        after.is_busy,
        after.is_protected,
        after.is_draining,
        after.is_stopping,
    )
