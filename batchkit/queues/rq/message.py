"""An RQ job, seen from inside the function that it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rq.job import Job, Retry

from batchkit.job import Definition
from batchkit.model import Progress, RunId, WakeUp
from batchkit.queues.rq.shutdown import WorkerStop, stopping

#: What a wake-up keeps in the job's meta.
RUN, PARTITION, WAKE, HOPS = "batchkit_run", "batchkit_partition", "batchkit_wake", "batchkit_hops"
PROGRESS = "progress"

#: More than a job ever needs. RQ counts each slice as a retry.
_ENDLESS = 1_000_000_000
#: How long a parked job stays scheduled. A wake-up comes first; where a scheduler is quicker, the job parks again.
_PARKED_SECONDS = 7 * 24 * 3600


class RQMessage:
    """
    The RQ job that this process works.

    A job that wakes a worker up for a run that a program started is ours: it ends with the slice. A job that somebody
    enqueued has dependents and callbacks that wait for the real end: between slices it is retried.
    """

    is_eager = False
    #: parking and coming again are what the function returns
    ends: tuple[type[Exception], ...] = ()

    def __init__(self, job: Job, of: Definition, *, send: Callable[[WakeUp, int], None]) -> None:
        self._job = job
        self._send = send
        self._is_woken = False
        self.key = key_of(job.id)
        self.is_of_the_job = job.func_name == path_of(of)
        meta: dict[str, Any] = job.meta
        self.run_id: RunId | None = meta.get(RUN)
        self.partition: int = meta.get(PARTITION, 0)
        self.wake_no: int = meta.get(WAKE, 0)
        self.hops: int = meta.get(HOPS, 0)

    @property
    def is_ours(self) -> bool:
        """Whether it wakes a worker up, and nobody waits for its end."""
        return self.run_id is not None

    @property
    def shows_progress(self) -> bool:
        """Whether somebody may look at the job's meta."""
        return True

    def written_down(self) -> str:
        """Give what it takes to find it again, as JSON; and never let RQ take a killed horse for its end."""
        if not self._job.retries_left:
            self._job.retries_left = _ENDLESS
            self._job.connection.hset(self._job.key, "retries_left", _ENDLESS)
        return json.dumps({"rq": 1, "id": self._job.id, "queue": self._job.origin})

    def stopping(self) -> AbstractContextManager[WorkerStop]:
        """Learn of the worker's shutdown while the job is worked."""
        return stopping(self._job)

    def show(self, progress: Progress) -> None:
        """Keep the progress in the job's meta, in the shape that celery-progress reads."""
        self._job.meta[PROGRESS] = {
            "pending": False,
            "current": progress.done + progress.failed,
            "total": progress.total,
            "percent": progress.percent or 0,
            "description": "",
        }
        self._job.save_meta()

    def wake_itself(self, wake_up: WakeUp) -> None:
        """Be the message of *wake_up* when it is retried, at the end of this slice."""
        self._job.meta.update({PARTITION: wake_up.partition, WAKE: wake_up.number})
        self._job.save_meta()
        self._is_woken = True

    def hand_on(self, wake_up: WakeUp) -> None:
        """Send *wake_up* as a copy of it that has hopped once more."""
        self._send(wake_up, self.hops + 1)

    def parked(self) -> Retry | None:
        """End this slice: a job of ours is done, another is retried at once or waits for its wake-up."""
        if self.is_ours:
            return None
        return Retry(max=_ENDLESS, interval=0 if self._is_woken else _PARKED_SECONDS)

    def again(self, seconds: float) -> Retry | None:
        """Have RQ run the same job again; it knows no delays without a scheduler, so wait here."""
        with self.stopping() as stop:
            stop.wait(seconds)
        return None if self.is_ours else Retry(max=_ENDLESS)

    def when_told(self, done: Callable[[], None]) -> None:
        """RQ tells of the end when the function has returned; a sweep looks at the job then."""

    def fails(self) -> None:
        """Let the error that is about to be raised be the job's end: RQ would retry it."""
        self._job.retries_left = 0


def key_of(job_id: str) -> str:
    """Name the RQ job with this id."""
    return f"rq:{job_id}"


def path_of(job: Definition) -> str:
    """Give the path by which workers import the job."""
    return f"{job.function.__module__}.{job.function.__qualname__}"
