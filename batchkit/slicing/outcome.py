"""How a slice ends, and what it is told by its worker."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from batchkit.errors import BatchkitError
from batchkit.model import Lease, RunId
from batchkit.stopping import Stopping
from batchkit.store import Sessions, Store
from batchkit.tracking import FREE, Breaks, Tie


class Ending(enum.Enum):
    """How a slice ended."""

    #: nothing is left in the partition
    EXHAUSTED = "exhausted"
    #: infrastructure stopped it, or its time was up; the run goes on by itself
    INTERRUPTED = "interrupted"
    #: the run was paused, cancelled, or failed in another partition
    REQUESTED = "requested"
    #: an error stopped the run
    FAILED = "failed"
    #: the lease was over; what was not committed was rolled back
    LOST = "lost"
    #: its throttle held it back; the run goes on by itself
    HELD = "held"
    #: this worker's code does not fit the run; it was left to others
    DECLINED = "declined"
    #: nothing was claimed: this worker is being drained, or its platform does not promise to leave it alone
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a slice."""

    ending: Ending
    chunks: int
    items: int
    error: BaseException | None = None


def _nothing(_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all slices of a worker share."""

    store: Store
    sessions: Sessions
    worker: str
    stop: Stopping
    #: called after each commit with the lease as it is then
    watch: Callable[[Lease], None]
    #: seconds between the signal to stop and the kill, where that is known
    grace: float | None = None
    #: called when the slice has begun, so that the lease is renewed meanwhile, with what says of an error that it
    #: interrupts the slice
    begun: Callable[[Callable[[BaseException], bool]], None] = _nothing
    #: says when the grace has begun, where *stop* asks for a stop for other reasons as well
    grace_begins: Stopping | None = None
    #: tells the worker's main process of the slice
    tie: Tie = FREE
    #: when no worker may be protected
    breaks: Breaks = field(default_factory=lambda: Breaks(None))
    #: how long the worker may go on after a signal to stop
    working: float | None = None
    #: called with the run's id once others can work its other partitions
    share: Callable[[RunId], object] = _nothing


class Stopped(Exception):
    """The worker should stop: nothing is wrong, and nothing is open. Without a *reason*, the one of the stop counts."""

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason


class Declined(Exception):
    """This worker's code does not fit the run, as *error* says."""

    def __init__(self, error: BatchkitError) -> None:
        self.error = error
