"""Telling the store of worker processes that have died, so that what they worked need not wait for their leases."""

from __future__ import annotations

import logging
import queue
import threading
import time

from batchkit.app import BatchKit
from batchkit.instance import worker_name
from batchkit.suspicion import Death

_logger = logging.getLogger("batchkit")

#: What kills every process of a group takes a moment for it: who lives longer than that was not killed as well.
_OUTLIVED_SECONDS = 0.5
_AGAIN_SECONDS = 2.0
_TRIES = 5


class Deaths:
    """
    Ends the leases of dead children, in a thread: the database may be slow or away, and signals must not wait for it.

    That only the child has died is told of those that this process has outlived for a moment, without a signal to stop.
    """

    def __init__(self, kit: BatchKit) -> None:
        self._kit = kit
        self._todo: queue.SimpleQueue[tuple[float, int]] = queue.SimpleQueue()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="batchkit-deaths", daemon=True)

    def report(self, pid: int) -> None:
        """Take note of a death."""
        self._todo.put((time.monotonic(), pid))
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        """Take note that the children are being stopped: from now on a death says nothing of the work."""
        self._is_stopping = True

    def _run(self) -> None:
        while True:
            died_at, pid = self._todo.get()
            time.sleep(max(0.0, died_at + _OUTLIVED_SECONDS - time.monotonic()))
            self._tell(pid)

    def _tell(self, pid: int) -> None:
        for _ in range(_TRIES):
            try:
                self._kit.end_leases_of(worker_name(pid), death=Death.SHUTDOWN if self._is_stopping else Death.CHILD)
            except Exception:
                _logger.warning("the leases of a dead worker could not be ended", extra={"pid": pid}, exc_info=True)
                time.sleep(_AGAIN_SECONDS)
            else:
                return
