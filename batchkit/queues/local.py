"""The built-in queue: worker processes on this machine that find their work in the database."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

from batchkit.model import WakeUp
from batchkit.stopping import Stop
from batchkit.worker import Worker

_logger = logging.getLogger("batchkit")

_POLL_SECONDS = 0.25
_SWEEP_EVERY_SECONDS = 5.0
_LONGEST_BACKOFF_SECONDS = 5.0


class LocalQueue:
    """
    No broker: workers look into the database for what is due. `batchkit work` runs them.

    Args:
        processes: how many of them `batchkit work` starts where it is not told.
    """

    crosses_processes = True
    keeps_messages = False

    def __init__(self, processes: int = 1) -> None:
        if type(processes) is not int or processes < 1:
            message = f"processes is the number of worker processes, 1 or more: got {processes!r}"
            raise ValueError(message)
        self.processes = processes

    def wake(self, wake_up: WakeUp) -> None:
        """Do nothing: the row in the database is the wake-up."""


def work_until_stopped(
    worker: Worker, *, queues: Collection[str] | None, stop: Stop, sweep: Callable[[], object]
) -> None:
    """
    Work whatever is due until a stop is requested, and *sweep* now and then.

    A database that is away is waited for; what was in flight goes on from its last checkpoint.
    """
    backoff = _POLL_SECONDS
    swept_at = 0.0
    while not stop.requested:
        try:
            if time.monotonic() - swept_at > _SWEEP_EVERY_SECONDS:
                # Before it: one that fails must not be all that is done from now on.
                swept_at = time.monotonic()
                sweep()
            if worker.work_next(queues=queues, stop=stop) is None:
                stop.wait(_POLL_SECONDS)
            backoff = _POLL_SECONDS
        except Exception:
            # Whatever it is, other runs must not wait for it to be mended: the lease of the one it hit runs out.
            _logger.exception("a worker could not work; trying again", extra={"seconds": backoff})
            stop.wait(backoff)
            backoff = min(backoff * 2, _LONGEST_BACKOFF_SECONDS)
