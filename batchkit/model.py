"""The frozen values that travel between the store, the slice and the user."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NewType

from batchkit.promises import Delivery
from batchkit.states import PartitionKind, PartitionState, Request, RunState
from batchkit.suspicion import Suspicion

RunId = NewType("RunId", str)

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


def new_run_id() -> RunId:
    """
    Make a run id: 26 lower-case letters and digits that sort by the time of making.

    The client makes it, so that a repeated request is recognised. The layout is that of a ULID
    (github.com/ulid/spec): 48 bits of milliseconds, 80 random bits, Crockford's base 32.
    """
    number = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    return RunId(_encoded(number))


def run_id_at(moment: float) -> RunId:
    """Give the id in front of all that were made at *moment*, in seconds since the epoch, or later."""
    return RunId(_encoded(int(max(0.0, moment) * 1000) << 80))


def _encoded(number: int) -> str:
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


@dataclass(frozen=True, slots=True)
class Progress:
    """
    How far a run is, read in one statement. `done` is the number of committed items, never more.

    `total` and `percent` are None while the total is unknown, `rate` (items per second) and `eta` while nobody works.
    """

    done: int
    failed: int
    total: int | None
    total_is_estimate: bool
    rate: float | None
    elapsed: timedelta
    workers: int
    interruptions: int
    chunk_size: int | None
    #: items that were begun, at most once, and of which a crash has left nobody knowing what became
    in_doubt: int = 0

    @property
    def passed(self) -> int:
        """The number of items that lie behind: done, failed or in doubt."""
        return self.done + self.failed + self.in_doubt

    @property
    def percent(self) -> float | None:
        """The share of items that are done, failed or in doubt, 0 to 100."""
        if self.total is None:
            return None
        return min(100.0, 100.0 * self.passed / self.total) if self.total else 100.0

    @property
    def eta(self) -> timedelta | None:
        """The time until the last item at the present rate."""
        if self.total is None or not self.rate:
            return None
        left = max(0, self.total - self.passed)
        return timedelta(seconds=left / self.rate)


@dataclass(frozen=True, slots=True)
class RunError:
    """What made a run, or an item, fail. `cursor` is the last committed one, as JSON text; the error came behind it."""

    type: str
    message: str
    traceback: str
    partition: int
    cursor: str | None
    #: what the item looked like, where the error is that of one item
    item: str | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


@dataclass(frozen=True, slots=True)
class Failure:
    """
    An item that could not be processed, as `Run.failures` shows it.

    `cursor` is the item's own, `after` that of the item before it (None: it is the first), both as JSON text. `item`
    is what the item looked like. `attempts` counts the tries at this very item.
    """

    id: int
    run_id: RunId
    partition: int
    after: str | None
    cursor: str
    item: str
    error_type: str
    message: str
    traceback: str
    attempts: int
    failed_at: datetime
    #: the run that tried it again last
    retried_by: RunId | None = None
    #: when that succeeded
    resolved_at: datetime | None = None
    #: whether nobody knows if it failed: its worker ended in the middle of it, and it is tried at most once
    in_doubt: bool = False


@dataclass(frozen=True, slots=True)
class FailedItem:
    """What is recorded of an item that failed, before it has an id."""

    after: str | None
    cursor: str
    item: str
    error: RunError
    attempts: int
    #: the recorded failure that it is, where failures are tried again
    failure_id: int | None = None
    #: whether nobody knows if it failed
    in_doubt: bool = False


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it was read from the store."""

    id: RunId
    job: str
    params: str
    queue: str
    state: RunState
    requested: Request | None
    delivery: Delivery
    result: str | None
    error: RunError | None
    waiting_reason: str | None
    rerun_of: RunId | None
    failures_of: RunId | None
    unique_key: str | None
    after: str | None
    limit: int | None
    is_dry_run: bool
    #: whether the failures that it tries again are those in doubt, too
    retries_in_doubt: bool
    #: into how many partitions it was to be cut
    partitions: int
    #: how many workers it may have at a time; None for any number
    max_workers: int | None
    retries: int
    retry_reason: str | None
    #: the queue's message that started it and waits to tell of its end, as the queue wrote it down
    message: str | None
    #: whether nothing is left to be told of its end; so too while it has not ended
    is_announced: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    #: when its history and its failures were removed
    purged_at: datetime | None
    progress: Progress


@dataclass(frozen=True, slots=True)
class Partition:
    """One range of a run's items, as `Run.partitions` shows it."""

    number: int
    kind: PartitionKind
    state: PartitionState
    cursor: object
    done: int
    failed: int
    fence: int
    worker: str | None
    lease_expires_at: datetime | None
    is_held: bool
    in_doubt: int = 0
    #: the cursor of its last item; None where it goes on to the end
    until: object = None
    #: the number of the partition whose range it was cut from while that was worked
    cut_from: int | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of a run's state, as `Run.history` shows it."""

    at: datetime
    before: RunState | None
    after: RunState
    reason: str
    worker: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What the first slice finds out about a run: the ranges of its partitions and how many items there are.

    Cursors are JSON text. No range at all means that the source is empty.
    """

    ranges: tuple[Range, ...]
    total: int | None
    total_is_estimate: bool = False
    identity: str | None = None
    fingerprint: str | None = None
    has_finish: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """The items behind the cursor `after` (None: from the first) up to and including `until` (None: to the last)."""

    after: str | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work one partition, with all that a slice needs to know of it and of its run."""

    run_id: RunId
    number: int
    kind: PartitionKind
    fence: int
    holder: str
    seconds: float
    job: str
    params: str
    delivery: Delivery
    is_planned: bool
    identity: str | None
    fingerprint: str | None
    total: int | None
    #: the run whose failures are the items
    failures_of: RunId | None
    #: how many items the run works at most
    limit: int | None
    is_dry_run: bool
    retries_in_doubt: bool
    #: into how many partitions the run is to be cut
    partitions: int
    cursor: str | None
    until: str | None
    seq: int
    done: int
    failed: int
    carry: str
    #: how many items the last chunk took
    chunk_size: int | None
    #: the items that the function is called for, at most once, as `batchkit.doubts` writes them down
    doubt: str | None
    in_doubt: int
    #: what is known of a place that workers died at
    suspicion: Suspicion | None = None
    #: how long a chunk is expected to take; None where none was measured
    chunk_seconds: float | None = None

    @property
    def left(self) -> int | None:
        """How many items more the run's limit allows; None where it has none."""
        return None if self.limit is None else self.limit - self.done - self.failed - self.in_doubt

    def moved(self, checkpoint: Checkpoint) -> Lease:
        """Give the same lease once it has moved on by *checkpoint*."""
        return replace(
            self,
            cursor=checkpoint.cursor,
            seq=self.seq + 1,
            done=self.done + checkpoint.done,
            failed=self.failed + checkpoint.failed,
            carry=checkpoint.carry,
            doubt=checkpoint.doubt,
            chunk_seconds=checkpoint.chunk_seconds,
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a chunk moves on: the cursor behind its last item, how many items it did, and the rest that is kept."""

    cursor: str
    done: int
    failed: int
    carry: str
    chunk_size: int
    rate: float
    #: the items in front of the cursor that the function is going to be called for, at most once
    doubt: str | None = None
    #: how long the next chunk is expected to take
    chunk_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What the checkpoint brings back about the run, so that a pause or a cancel is seen without asking for it."""

    state: RunState
    requested: Request | None
    #: into how many ranges more the partition is to be cut, for workers that find nothing else of the run
    cuts_wanted: int = 0

    @property
    def goes_on(self) -> bool:
        """Whether the slice may work another chunk."""
        return self.state is RunState.RUNNING and self.requested is None


@dataclass(frozen=True, slots=True)
class Position:
    """Who holds a partition and how far it is: what decides whether a commit whose reply was lost happened."""

    fence: int
    holder: str | None
    seq: int
    cursor: str | None
    done: int
    failed: int
    carry: str
    doubt: str | None
    in_doubt: int
    is_live: bool


@dataclass(frozen=True, slots=True)
class NewRun:
    """What starting a run writes."""

    job: str
    params: str
    queue: str
    delivery: Delivery
    rerun_of: RunId | None = None
    #: the run whose failures are the items
    failures_of: RunId | None = None
    #: names the start, so that a copy of the message that makes it, or a start with the same key, joins the run
    start_key: str | None = None
    #: the message that makes it, as its queue writes it down
    message: str | None = None
    #: what the user calls the start, for people; it is part of the start key
    key: str | None = None
    #: no other unfinished run has it
    unique_key: str | None = None
    #: the cursor behind which it begins, as JSON text
    after: str | None = None
    #: how many items it works at most
    limit: int | None = None
    #: whether every chunk is rolled back
    is_dry_run: bool = False
    #: whether the failures that it tries again are those in doubt, too
    retries_in_doubt: bool = False
    #: into how many partitions it is to be cut
    partitions: int = 1
    #: how many workers it may have at a time; None for any number
    max_workers: int | None = None
    id: RunId = field(default_factory=new_run_id)

    @property
    def has_keys(self) -> bool:
        """Whether another run may have been started in its stead."""
        return self.start_key is not None or self.unique_key is not None


@dataclass(frozen=True, slots=True)
class WakeUp:
    """What a queue's message says: a partition of a run waits for a worker."""

    run_id: RunId
    partition: int
    #: only the partition's newest wake-up lets a worker claim, and only once
    number: int
    job: str
    params: str
    queue: str
    #: the message that started the run, as its queue wrote it down; None where `start()` did
    message: str | None
    #: since when it waits, and the moment of asking, by the database's clock
    due_at: datetime
    asked_at: datetime
    #: whether it is sent as that message; else as one of its own, to the same workers
    is_by_message: bool = True
    #: whether its run has ended, and all that is left is to tell of that
    is_announcement: bool = False
    #: of several partitions: how many seconds it was given to reach a worker when it was sent last
    patience: float | None = None
