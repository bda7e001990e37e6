"""A queue that works a run at once in the process that starts it; for tests."""

from __future__ import annotations

from batchkit.model import WakeUp
from batchkit.stopping import Stop
from batchkit.worker import Worker


class InlineQueue:
    """
    Works each run where and when it is started, so that `start()` returns with the run at its end.

    `resume()` does the same. A run whose code does not fit stays queued, with `waiting_reason` set.
    """

    crosses_processes = False
    keeps_messages = False

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def attach(self, worker: Worker) -> None:
        """Work runs with *worker*; the kit does this."""
        self._worker = worker

    def wake(self, wake_up: WakeUp) -> None:
        """Work the run until it ends or somebody else holds what is left of it."""
        if self._worker is None:
            message = "give the queue to a kit first: BatchKit(..., queue=InlineQueue())"
            raise RuntimeError(message)
        with Stop() as stop:
            self._worker.work_run(wake_up.run_id, stop=stop, waits_for_others=False)
