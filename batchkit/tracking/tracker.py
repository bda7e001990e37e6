"""The main process of a worker: it listens to its slices, tells hooks, and says that the worker is there."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence

from batchkit.busy import Busy
from batchkit.forking import ForkGuard
from batchkit.hooks import BusyHook, HookContext
from batchkit.instance import instance_name, worker_name
from batchkit.store import ATTEND_EVERY_SECONDS, Fleet
from batchkit.tracking.attendance import SUPERVISOR, Attendance, WorkerKind
from batchkit.tracking.callers import Caller
from batchkit.tracking.duty import Breaks
from batchkit.tracking.hearing import Hearing
from batchkit.tracking.listening import ListeningSocket
from batchkit.tracking.overtime import Overtime
from batchkit.tracking.standing import Standing
from batchkit.tracking.tie import VARIABLE

_logger = logging.getLogger("batchkit")

#: How long a worker stays busy, or protected, to the outside when it is no longer.
LINGER_SECONDS = 5.0
_STOP_SECONDS = 2.0


class Tracker:
    """
    Tracks one worker, in its main process.

    `listen` comes before the worker starts its children, which find the socket in their environment; `start` after
    that. Nothing here changes what becomes of a run.
    """

    def __init__(
        self,
        fleet: Fleet,
        hooks: Sequence[BusyHook],
        *,
        busy: Callable[[], Busy] | None = None,
        max_protect: float | None = None,
        linger: float = LINGER_SECONDS,
        repeat: float = ATTEND_EVERY_SECONDS,
    ) -> None:
        self._fleet = fleet
        self._hooks = hooks
        self._busy = busy or fleet.busy
        self._max_protect = max_protect
        self._linger = linger
        self._repeat = repeat
        self._socket: ListeningSocket | None = None
        self._ends = threading.Event()
        self._threads: list[threading.Thread] = []

    def listen(self) -> None:
        """Let slices find this process, if there is anybody to tell of them."""
        if not self._hooks or self._socket is not None:
            return
        try:
            self._socket = ListeningSocket()
        except OSError as error:
            # Nothing may fail for that, neither sweeps nor work.
            _logger.warning(
                "busy hooks are not called: slices cannot find this process (%s); "
                "set TMPDIR to a folder that can be written to, and whose name is short",
                error,
            )
            return
        os.environ[VARIABLE] = str(self._socket.path)

    def start(self, kind: WorkerKind, *, is_stopping: Callable[[], bool]) -> None:
        """Begin to track a worker; *is_stopping* tells whether it was asked to stop, and costs next to nothing."""
        name, instance = worker_name(), instance_name()
        if kind is not SUPERVISOR:
            attendance = Attendance(self._fleet, kind, name=name, instance=instance, ends=self._ends)
            self._threads.append(threading.Thread(target=attendance.run, name="batchkit-attendance", daemon=True))
        self.listen()
        if self._socket is not None:
            context = HookContext(
                worker=name,
                instance=instance,
                kind=kind.name,
                busy=_unforked(self._busy),
                max_protect=self._max_protect,
                repeat_seconds=self._repeat,
            )
            callers = [Caller(hook) for hook in self._hooks]
            for caller in callers:
                caller.start(context)
            loop = Hearing(
                self._socket,
                callers,
                Standing(name, instance, self._linger),
                is_stopping=is_stopping,
                overtime=Overtime(Breaks(self._max_protect)),
                repeat=self._repeat,
                ends=self._ends,
            )
            self._threads.append(threading.Thread(target=loop.run, name="batchkit-tracker", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End: tell hooks, and say in the store that the worker is gone."""
        self._ends.set()
        if self._socket is not None:
            self._socket.wake()
        for thread in self._threads:
            thread.join(timeout=_STOP_SECONDS)
        if self._socket is not None:
            self._socket.close()
            if os.environ.get(VARIABLE) == str(self._socket.path):
                del os.environ[VARIABLE]
            self._socket = None


def _unforked(busy: Callable[[], Busy]) -> Callable[[], Busy]:
    """Let no child be forked while a hook reads: the child would inherit the locks that reading takes."""
    guard = ForkGuard()

    def read() -> Busy:
        with guard.at_work():
            return busy()

    return read
