"""Sweeping inside the main process of a worker."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable

from batchkit.errors import BatchkitError
from batchkit.forking import ForkGuard

_logger = logging.getLogger("batchkit")
_EVERY_SECONDS = 5.0
_MOST_FAILED = 1000


class Sweeper:
    """
    Calls *sweep* every few seconds in a thread, and what else is to be done there.

    The thread is never in the middle of something when the worker forks a child, which would inherit the locks it
    holds, and nobody to release them.
    """

    def __init__(self, sweep: Callable[[], object]) -> None:
        self._sweep = sweep
        self._todo: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        #: steps that failed, to be tried again after the next sweep
        self._failed: list[Callable[[], object]] = []
        self._stopping = threading.Event()
        self._guard = ForkGuard()
        self._thread = threading.Thread(target=self._run, name="batchkit-sweeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after what is being done and what was to be done soon."""
        self._stopping.set()
        self._todo.put(None)
        self._thread.join(timeout=_EVERY_SECONDS)

    def do_soon(self, step: Callable[[], object]) -> None:
        """Have the thread do *step* next, and again after each sweep until it does not fail."""
        self._todo.put(step)

    def _run(self) -> None:
        sweep_at = time.monotonic()
        while True:
            step = self._next(until=sweep_at)
            if step is not None:
                self._do(step)
            elif self._stopping.is_set():
                return
            else:
                # Not in step with the other workers.
                sweep_at = time.monotonic() + random.uniform(0.8, 1.2) * _EVERY_SECONDS  # noqa: S311
                self._do_again()
                self._try(self._sweep)

    def _do(self, step: Callable[[], object]) -> None:
        if not self._try(step):
            self._failed.append(step)
            # Where nothing works for long, the leases and the sweeps of others are enough.
            del self._failed[:-_MOST_FAILED]

    def _do_again(self) -> None:
        failed, self._failed = self._failed, []
        for step in failed:
            self._do(step)

    def _try(self, step: Callable[[], object]) -> bool:
        with self._guard.at_work():
            try:
                step()
            except BatchkitError as error:
                _logger.warning("a sweep failed; another follows: %s", error)
                return False
            except Exception:
                _logger.warning("a sweep failed; another follows", exc_info=True)
                return False
        return True

    def _next(self, *, until: float) -> Callable[[], object] | None:
        try:
            return self._todo.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None
