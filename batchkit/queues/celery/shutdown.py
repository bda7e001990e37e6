"""
How a slice in a Celery worker learns that the worker is stopping.

Celery tells its children nothing of a warm shutdown, and its handlers for SIGTERM end a child in the middle of a task.
So the main process writes into a byte that all its children see, and a child turns SIGTERM and SIGQUIT into a flag
while it works a slice.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from billiard.process import current_process
from celery import signals
from celery.concurrency.solo import TaskPool as SoloPool
from celery.exceptions import SoftTimeLimitExceeded

from batchkit.stopping import PolledStop

_logger = logging.getLogger("batchkit")
#: Where a child that was not forked but started anew finds the byte.
_VARIABLE = "BATCHKIT_CELERY_STOP_FILE"
_MAIN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_CHILD_SIGNALS = (signal.SIGTERM, signal.SIGQUIT)


class _Byte:
    """One byte that a worker's main process and its children share."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._path: str | None = None
        self._has_warned = False

    def make(self) -> None:
        """Make it; children that are started from now on see it."""
        number, self._path = tempfile.mkstemp(prefix="batchkit-stop-")
        os.write(number, b"\0")
        os.environ[_VARIABLE] = self._path
        self._map(number)

    def find(self) -> None:
        """Find it in a child that was started anew; a forked one has it."""
        path = os.environ.get(_VARIABLE)
        if self._memory is None and path is not None:
            with suppress(FileNotFoundError):
                self._map(os.open(path, os.O_RDWR))

    def warn_if_missing(self) -> None:
        """Say once that this child does not see the byte."""
        if self._memory is None and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "batchkit was imported after this Celery worker had started, so a slice learns of a shutdown only by a "
                "signal of its own, and nobody sweeps; build the kit where the worker imports its app"
            )

    def remove(self) -> None:
        """Remove its file; those who have it keep it."""
        if self._path is not None:
            Path(self._path).unlink(missing_ok=True)

    @property
    def is_set(self) -> bool:
        """Whether the worker is stopping."""
        return self._memory is not None and self._memory[0] == 1

    def set(self) -> None:
        """Say that the worker is stopping."""
        if self._memory is not None:
            self._memory[0] = 1

    def _map(self, number: int) -> None:
        try:
            self._memory = mmap.mmap(number, 1)
        finally:
            os.close(number)


_byte = _Byte()
_parent: int | None = None


def is_stopping() -> bool:
    """Tell whether this worker was asked to stop."""
    return _byte.is_set


class WorkerStop(PolledStop):
    """Whether the worker that runs this slice is stopping, and why."""

    def look(self) -> str | None:
        """Look at the byte, and whether the main process is still there."""
        if _byte.is_set:
            return "the Celery worker is stopping"
        if _parent is not None and os.getppid() != _parent:
            return "the Celery worker is gone"
        return None

    def is_interruption(self, error: BaseException) -> bool:
        """Say whether *error* was raised into the slice to cut it short, and is no error of the job."""
        return isinstance(error, SoftTimeLimitExceeded)


@contextmanager
def stopping(task_id: str) -> Iterator[WorkerStop]:
    """
    Turn the signals that would end this child into a request to stop, until Celery is done with the task *task_id*.

    That is later than the end of the block: callbacks are sent and a result is stored in between, which a signal must
    not cut short. The flag is of this task alone: a child that lives on after its signal would else give back all that
    it takes. In a worker's main process (pools threads, gevent, solo) the shared byte tells, and Celery's own handlers
    stay.
    """
    global _slice_of  # noqa: PLW0603  one main thread works one task
    stop = WorkerStop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    _slice_of = task_id
    if _is_main_process():
        _deferred.begin()
        yield stop
        return
    _byte.warn_if_missing()

    def on_signal(number: int, _: FrameType | None) -> None:
        stop.request(signal.Signals(number).name)

    # Celery ignores SIGTERM in children where REMAP_SIGTERM is set; then main decides, and it must stay so.
    taken = [number for number in _CHILD_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    _before.update({number: signal.signal(number, on_signal) for number in taken})
    yield stop


#: The handlers that a slice has replaced in this child.
_before: dict[signal.Signals, Any] = {}
#: The task whose slice has replaced them.
_slice_of: str | None = None


def _restore_handlers(task_id: str, **_: Any) -> None:  # noqa: ANN401
    global _slice_of  # noqa: PLW0603  one main thread works one task
    # A task that is applied inside a chunk ends before its chunk does.
    if task_id != _slice_of or threading.current_thread() is not threading.main_thread():
        return
    _slice_of = None
    while _before:
        number, handler = _before.popitem()
        signal.signal(number, handler)
    _deferred.end()


class _Deferred:
    """
    Celery's handler for the first signal in the middle of a slice, called when Celery is done with the task.

    In the pool solo the main process works the slice itself, and Celery's handler for a cold shutdown raises an error
    in the middle of whatever that does. A second signal goes to Celery at once.
    """

    def __init__(self) -> None:
        #: whether this worker's pool is solo
        self.is_wanted = False
        self._is_in_slice = False
        self._call: Callable[[], object] | None = None

    def take(self, call: Callable[[], object]) -> bool:
        """Keep a handler's call for the end of the task, if one is being worked and no call is kept yet."""
        if not self._is_in_slice or self._call is not None:
            return False
        self._call = call
        return True

    def begin(self) -> None:
        """Keep a call from now on."""
        self._is_in_slice = self.is_wanted

    def end(self) -> None:
        """Make the call that was kept."""
        self._is_in_slice = False
        call, self._call = self._call, None
        if call is not None:
            call()


_deferred = _Deferred()


class _Apart:
    """
    Celery's handlers in a gevent worker, called in a greenlet of their own.

    A handler is called in the middle of whatever the process does, in any of its greenlets. Celery's for a cold
    shutdown talks to the result backend, and where a greenlet was just about to connect to it, that waits for ever for
    a lock which is held by the greenlet that it interrupts. A signal that comes while the last one waits for its turn
    goes to Celery at once: nothing else would get through to a worker whose greenlets do not take turns.
    """

    def __init__(self) -> None:
        #: whether this worker's pool is gevent
        self.is_wanted = False
        self._is_waiting = False

    def take(self, call: Callable[[], object]) -> bool:
        """Have a handler's call made in its turn, if it can be, and no other waits for that."""
        if not self.is_wanted or self._is_waiting:
            return False
        import gevent  # noqa: PLC0415  where it is the pool it is there

        self._is_waiting = True
        gevent.spawn(self._make, call)
        return True

    def _make(self, call: Callable[[], object]) -> None:
        self._is_waiting = False
        call()


_apart = _Apart()


def _is_gevent(pool: object) -> bool:
    # Celery's module of that pool imports gevent wherever it is installed.
    return any(each.__module__ == "celery.concurrency.gevent" for each in type(pool).__mro__)


def _is_main_process() -> bool:
    return bool(current_process().name == "MainProcess")


def _make_byte(**_: Any) -> None:  # noqa: ANN401
    _byte.make()


def _begin_child(**_: Any) -> None:  # noqa: ANN401
    # No handlers here: billiard replaces them right after.
    global _parent  # noqa: PLW0603  one child has one parent
    _byte.find()
    if not _is_main_process():
        _parent = os.getppid()


def _tell(**_: Any) -> None:  # noqa: ANN401
    _byte.set()


def _wrap_handlers(sender: Any, **_: Any) -> None:  # noqa: ANN401
    """
    Have the byte set at the very signal: a cold or soft shutdown tells of itself only when the tasks are gone.

    Celery has installed its handlers by now. They are called as before.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _deferred.is_wanted = isinstance(sender.pool, SoloPool)
    _apart.is_wanted = _is_gevent(sender.pool)
    for number in _MAIN_SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler) and not getattr(handler, "is_of_batchkit", False) and _ends_worker(number, handler):
            signal.signal(number, _telling(handler))


def _ends_worker(number: signal.Signals, handler: Any) -> bool:  # noqa: ANN401  a signal handler
    """Tell whether the worker ends by the signal: a SIGHUP handler of the app's own may reload something."""
    return number is not signal.SIGHUP or str(getattr(handler, "__module__", "")).startswith("celery.")


def _telling(handler: Any) -> Any:  # noqa: ANN401  a signal handler
    main = os.getpid()

    def tell(number: int, frame: FrameType | None) -> Any:  # noqa: ANN401
        if os.getpid() == main:  # a child inherits this until it has handlers of its own
            _byte.set()
            call = partial(handler, number, frame)
            if _deferred.take(call) or _apart.take(call):
                return None
        return handler(number, frame)

    tell.is_of_batchkit = True  # type: ignore[attr-defined]
    tell.__name__ = getattr(handler, "__name__", "tell")
    return tell


def _remove_byte(**_: Any) -> None:  # noqa: ANN401
    _byte.remove()


# When this module is imported, which is with the app's module: before the worker has started.
signals.worker_init.connect(_make_byte, weak=False)
signals.worker_process_init.connect(_begin_child, weak=False)
signals.task_postrun.connect(_restore_handlers, weak=False)
signals.worker_shutting_down.connect(_tell, weak=False)
signals.worker_ready.connect(_wrap_handlers, weak=False)
signals.worker_shutdown.connect(_remove_byte, weak=False)
