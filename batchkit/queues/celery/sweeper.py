"""Sweeping inside a Celery worker's main process."""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable

from batchkit.errors import BatchkitError

_logger = logging.getLogger("batchkit")
_EVERY_SECONDS = 5.0
_FORK_WAITS_SECONDS = 2.0


class Sweeper:
    """
    Calls *sweep* every few seconds in a thread, and what else is to be done there.

    The thread is never in the middle of something when the worker forks a child, which would inherit the locks it
    holds, and nobody to release them.
    """

    def __init__(self, sweep: Callable[[], object]) -> None:
        self._sweep = sweep
        self._todo: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._at_work = threading.Lock()
        self._waits_for_fork = False
        self._thread = threading.Thread(target=self._run, name="batchkit-sweeper", daemon=True)
        os.register_at_fork(before=self._before_fork, after_in_parent=self._after_fork)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after what is being done."""
        self._stopping.set()
        self._todo.put(None)
        self._thread.join(timeout=_EVERY_SECONDS)

    def do_soon(self, step: Callable[[], object]) -> None:
        """Have the thread do *step* next."""
        self._todo.put(step)

    def _run(self) -> None:
        sweep_at = time.monotonic()
        while not self._stopping.is_set():
            step = self._next(until=sweep_at)
            if step is None:
                step = self._sweep
                # Not in step with the other workers.
                sweep_at = time.monotonic() + random.uniform(0.8, 1.2) * _EVERY_SECONDS  # noqa: S311
            if self._stopping.is_set():
                return
            with self._at_work:
                try:
                    step()
                except BatchkitError as error:
                    _logger.warning("a sweep failed; another follows: %s", error)
                except Exception:
                    _logger.warning("a sweep failed; another follows", exc_info=True)

    def _next(self, *, until: float) -> Callable[[], object] | None:
        try:
            return self._todo.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None

    def _before_fork(self) -> None:
        self._waits_for_fork = self._at_work.acquire(timeout=_FORK_WAITS_SECONDS)

    def _after_fork(self) -> None:
        if self._waits_for_fork:
            self._at_work.release()
