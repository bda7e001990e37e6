"""Who is busy, and who may be stopped: the values, and the one rule that tells protected work from interruptible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from batchkit.model import RunId

#: A chunk that takes so many times as long as expected, and a second more, is one of which nothing is known.
OVERRUN = 2.0
OVERRUN_SECONDS = 1.0


def remaining_seconds(expected: float | None, elapsed: float) -> float | None:
    """
    Say how long a chunk takes yet, which has taken *elapsed* seconds of the *expected* ones.

    None where it is not known: no chunk was measured yet, or this one has taken far longer than any before it.
    """
    if expected is None or elapsed > expected * OVERRUN + OVERRUN_SECONDS:
        return None
    return max(0.0, expected - elapsed)


def is_interruptible(*, is_protected: bool, remaining: float | None, working: float | None) -> bool:
    """
    Tell whether a slice reaches its next checkpoint within the *working* seconds that its worker has after a signal.

    What is not known counts as protected: how long the chunk takes, or how long the platform waits.
    """
    return not is_protected and remaining is not None and working is not None and remaining <= working


@dataclass(frozen=True, slots=True)
class BusySlice:
    """A partition that a worker holds by a live lease."""

    run_id: RunId
    job: str
    queue: str
    partition: int
    #: the process that works it, and what a platform starts and stops with it: a dyno, a pod, a machine
    worker: str
    instance: str
    #: when it was claimed, and when its last checkpoint was committed, by the database's clock
    since: datetime
    checkpointed_at: datetime
    #: the estimated seconds to its next checkpoint; None where nothing is known of it
    remaining: float | None
    #: whether it can stop within the grace
    is_interruptible: bool


@dataclass(frozen=True, slots=True)
class PresentWorker:
    """A worker that has said lately that it is there, whether it is busy or not."""

    #: its main process, which is the one that a platform signals
    name: str
    instance: str
    #: what kind of queue it works for: celery, rq or local
    kind: str
    #: the names of its queues; None for all
    queues: tuple[str, ...] | None
    #: how many slices it can work at the same time
    slots: int
    started_at: datetime
    seen_at: datetime
    #: whether it was asked to take nothing more
    is_draining: bool

    def works(self, queue: str) -> bool:
        """Tell whether it takes work from *queue*."""
        return self.queues is None or queue in self.queues


@dataclass(frozen=True, slots=True)
class QueueBusy:
    """One queue: what is worked, and what waits."""

    queue: str
    #: workers that take from it, idle ones too where they say that they are there
    workers: int
    #: slices that can stop within the grace, and those that cannot, or of which it is not known
    interruptible: int
    protected: int
    #: partitions that wait for a worker, and how long the one that has waited longest has done so
    ready: int
    oldest_waiting: timedelta | None

    @property
    def busy(self) -> int:
        """How many slices are worked."""
        return self.interruptible + self.protected

    @property
    def wanted(self) -> int:
        """How many workers could work at once: never the ready ones alone, or a fleet is scaled in while it works."""
        return self.ready + self.busy


@dataclass(frozen=True, slots=True)
class Busy:
    """The whole fleet, as one reading of the store shows it."""

    read_at: datetime
    queues: tuple[QueueBusy, ...]
    slices: tuple[BusySlice, ...]
    workers: tuple[PresentWorker, ...]

    def queue(self, name: str) -> QueueBusy:
        """Give what is known of one queue; of one that nothing is in, that it is empty."""
        found = [each for each in self.queues if each.queue == name]
        present = sum(each.works(name) for each in self.workers)
        return found[0] if found else QueueBusy(name, present, 0, 0, 0, None)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in one queue."""

    queue: str
    ready: int
    since: datetime | None


def summed_up(
    read_at: datetime,
    *,
    queues: Iterable[str],
    waiting: Sequence[Waiting],
    slices: Sequence[BusySlice],
    workers: Sequence[PresentWorker],
) -> Busy:
    """Sum up what is worked and what waits by queue; *queues* are shown though they be empty."""
    named = {each for worker in workers for each in worker.queues or ()}
    names = {*queues, *named, *(each.queue for each in waiting), *(each.queue for each in slices)}
    waits = {each.queue: each for each in waiting}
    return Busy(
        read_at=read_at,
        queues=tuple(_of_queue(name, read_at, waits.get(name), slices, workers) for name in sorted(names)),
        slices=tuple(slices),
        workers=tuple(workers),
    )


def busy_facts(busy: Busy) -> dict[str, object]:
    """Give all of it as JSON values; programs depend on the names. Durations are in seconds, moments in ISO 8601."""
    return {
        "read_at": busy.read_at.isoformat(),
        "queues": {each.queue: queue_facts(each) for each in busy.queues},
        "slices": [
            {
                "run_id": each.run_id,
                "job": each.job,
                "queue": each.queue,
                "partition": each.partition,
                "worker": each.worker,
                "instance": each.instance,
                "since": each.since.isoformat(),
                "checkpointed_at": each.checkpointed_at.isoformat(),
                "remaining": each.remaining,
                "interruptible": each.is_interruptible,
            }
            for each in busy.slices
        ],
        "workers": [
            {
                "name": each.name,
                "instance": each.instance,
                "kind": each.kind,
                "queues": None if each.queues is None else list(each.queues),
                "slots": each.slots,
                "started_at": each.started_at.isoformat(),
                "seen_at": each.seen_at.isoformat(),
                "draining": each.is_draining,
            }
            for each in busy.workers
        ],
    }


def queue_facts(queue: QueueBusy) -> dict[str, object]:
    """Give one queue as JSON values."""
    waiting = queue.oldest_waiting
    return {
        "workers": queue.workers,
        "busy": queue.busy,
        "interruptible": queue.interruptible,
        "protected": queue.protected,
        "ready": queue.ready,
        "wanted": queue.wanted,
        "oldest_waiting": None if waiting is None else waiting.total_seconds(),
    }


def _of_queue(
    name: str,
    read_at: datetime,
    waits: Waiting | None,
    slices: Sequence[BusySlice],
    workers: Sequence[PresentWorker],
) -> QueueBusy:
    worked = [each for each in slices if each.queue == name]
    interruptible = sum(each.is_interruptible for each in worked)
    present = {each.instance for each in workers}
    # Those that work but say nothing of themselves: the processes of each instance are one worker.
    silent = {each.instance for each in worked if each.instance not in present}
    return QueueBusy(
        queue=name,
        workers=sum(each.works(name) for each in workers) + len(silent),
        interruptible=interruptible,
        protected=len(worked) - interruptible,
        ready=0 if waits is None else waits.ready,
        oldest_waiting=None if waits is None or waits.since is None else max(timedelta(0), read_at - waits.since),
    )
