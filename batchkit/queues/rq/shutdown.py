"""
How a slice in an RQ worker learns that the worker is stopping.

A work horse gets no signal where only its worker does, and dies of SIGTERM where both do. The worker writes down that
it was asked to stop, in Redis, and a horse can read that.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from redis.exceptions import RedisError
from rq.exceptions import ShutDownImminentException
from rq.job import Job
from rq.timeouts import JobTimeoutException

from batchkit.stopping import PolledStop

_ASK_EVERY_SECONDS = 0.3


class WorkerStop(PolledStop):
    """Whether the worker that runs this slice is stopping, and why."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job
        self._parent = os.getppid()
        self._asks_at = 0.0

    def look(self) -> str | None:
        """Look whether the worker is still there, and now and then into Redis."""
        if os.getppid() != self._parent:
            return "the RQ worker is gone"
        now = time.monotonic()
        if now < self._asks_at:
            return None
        self._asks_at = now + _ASK_EVERY_SECONDS
        key = f"{os.environ.get('RQ_KEY_PREFIX', 'rq')}:worker:{self._job.worker_name}"
        try:
            asked = self._job.connection.hget(key, "shutdown_requested_date")
        except RedisError:
            # No reason to stop: the store is the truth.
            return None
        return "the RQ worker is stopping" if asked else None

    def is_interruption(self, error: BaseException) -> bool:
        """Say whether *error* was raised into the slice to cut it short, and is no error of the job."""
        if isinstance(error, SystemExit):
            # What a SimpleWorker's second signal raises
            return self.requested
        return isinstance(error, ShutDownImminentException | JobTimeoutException)


@contextmanager
def stopping(job: Job) -> Iterator[WorkerStop]:
    """
    Turn SIGTERM into a request to stop, for the length of the block; in a work horse until its end, which is near.

    In a SimpleWorker, which is the worker itself, RQ's own handler is called as well, so that the worker stops too.
    """
    stop = WorkerStop(job)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGTERM)

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.request(signal.Signals(number).name)
        if callable(before):
            before(number, frame)

    if before == signal.SIG_IGN:
        # A HerokuWorker's horse; what it should do is in Redis.
        yield stop
        return
    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield stop
    finally:
        # RQ may have put a handler of its own in the place of ours: it is called for the second signal. In a horse ours
        # stays, so that a signal does not cut short what RQ does with the job's end.
        if callable(before) and signal.getsignal(signal.SIGTERM) is on_signal:
            signal.signal(signal.SIGTERM, before)
