"""Cutting a chunk short that would outlive the grace: better rolled back and released than killed with its lease."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from batchkit.grace import working_seconds
from batchkit.stopping import Stopping

if TYPE_CHECKING:
    from typing_extensions import Self

_logger = logging.getLogger("batchkit")

#: Ignored by whoever has no handler for it, so that one which comes late hurts nobody.
_SIGNAL = signal.SIGURG
_POLL_SECONDS = 0.2


class ChunkCut(BaseException):
    """Raised in the middle of a chunk when the grace is nearly over; no `except Exception` may take it for its own."""


class Cutter:
    """
    Raises `ChunkCut` in the chunk that is being worked once the grace after a request to stop is nearly over.

    Only where the slice is worked in the main thread, since Python raises nothing in another; and only between two
    steps of Python code, so that a long call into C delays it.
    """

    def __init__(self, stop: Stopping, *, grace: float | None) -> None:
        self._stop = stop
        self._grace = grace
        self._is_in_chunk = False
        self._protected = 0
        #: whether the time to cut came while the chunk was protected
        self._is_due = False
        #: until when the chunk in flight may be worked, once a stop is requested
        self._until: float | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._grace is not None and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(_SIGNAL, self._on_signal)
            self._main = threading.get_ident()
            self._thread = threading.Thread(target=self._watch, name="batchkit-grace", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_in_chunk = False
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            signal.signal(_SIGNAL, self._before)

    def chunk_begins(self) -> None:
        """Let the chunk be cut short from now on."""
        self._is_in_chunk = True

    def chunk_ends(self) -> None:
        """Let nothing be cut short any more: what comes now is the checkpoint and its commit."""
        self._is_in_chunk = False

    @contextmanager
    def protected(self, longest: float | None = None) -> Iterator[None]:
        """
        Let nothing be cut short for the length of the block; what became due meanwhile is cut at its end.

        Where the grace has begun, and what is left of it is less than the *longest* of such blocks took, the chunk is
        cut before this one begins.
        """
        if self._until is not None and longest is not None and time.monotonic() + longest > self._until:
            self._cut()
        self._protected += 1
        try:
            yield
        finally:
            self._protected -= 1
        if self._is_due:
            self._cut()

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        self._is_due = True
        self._cut()

    def _cut(self) -> None:
        if self._is_in_chunk and not self._protected:
            # Once: what is raised now is on its way to be rolled back.
            self._is_in_chunk = False
            self._is_due = False
            raise ChunkCut

    def _watch(self) -> None:
        while not self._stop.requested:
            if self._ended.wait(_POLL_SECONDS):
                return
        working = working_seconds(self._grace or 0.0)
        self._until = time.monotonic() + working
        if self._ended.wait(working):
            return
        _logger.warning("the grace is nearly over; the chunk in flight is rolled back")
        signal.pthread_kill(self._main, _SIGNAL)
