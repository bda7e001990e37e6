"""How a worker learns that it should stop."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing_extensions import Self

#: A platform that signals every process of a group and a parent that hands its signal on reach a worker twice.
_ONE_SIGNAL_SECONDS = 1.0
_LOOK_SECONDS = 0.05
_STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """
    A request to stop, made once and seen by everybody who asks.

    It may be made in a signal handler: that writes a byte into a pipe and takes no lock, since the main thread may
    hold any lock at that moment.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._pid = os.getpid()
        self.reason: str | None = None

    @property
    def requested(self) -> bool:
        """Whether the worker should stop."""
        return self.reason is not None

    def request(self, reason: str) -> None:
        """Ask for a stop; only the first reason is kept."""
        if self.reason is None:
            self.reason = reason
            try:
                os.write(self._writer, b"!")
            except OSError:  # closed already: whoever waited has left
                return

    def wait(self, seconds: float) -> bool:
        """Wait for *seconds* or until a stop is requested; say whether one is."""
        if not self.requested and seconds > 0:
            select.select([self._reader], [], [], seconds)
        return self.requested

    def is_interruption(self, error: BaseException) -> bool:  # noqa: ARG002  nobody raises errors into these slices
        """Say whether *error* was raised into the slice to cut it short, and is no error of the job."""
        return False

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self._reader)
        os.close(self._writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def stopped_by_signals(stop: Stop) -> Iterator[Stop]:
    """
    Turn SIGTERM and SIGINT into a request to stop for the length of the block.

    A second signal ends the chunk in flight, which is rolled back; a SIGTERM within a second of the first is the same
    one. Outside the main thread nothing is installed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    first_at = 0.0

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal first_at
        if not stop.requested:
            first_at = time.monotonic()
            stop.request(signal.Signals(number).name)
        elif number != signal.SIGTERM or time.monotonic() - first_at > _ONE_SIGNAL_SECONDS:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in _STOPPING_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopping(Protocol):
    """What a slice asks to learn whether it should stop."""

    @property
    def requested(self) -> bool:
        """Whether it should."""
        ...

    @property
    def reason(self) -> str | None:
        """Why."""
        ...

    def wait(self, seconds: float) -> bool:
        """Wait for *seconds* or until it should stop; say whether it should."""
        ...

    def is_interruption(self, error: BaseException) -> bool:
        """Say whether *error* was raised into the slice to cut it short, and is no error of the job."""
        ...


class PolledStop:
    """A request to stop that may also be found elsewhere, in a place that has to be looked at."""

    def __init__(self) -> None:
        self._reason: str | None = None

    def look(self) -> str | None:
        """Look whether there is a reason to stop that nobody has told this process."""
        return None

    def is_interruption(self, error: BaseException) -> bool:  # noqa: ARG002  those who raise errors into slices say so
        """Say whether *error* was raised into the slice to cut it short, and is no error of the job."""
        return False

    @property
    def requested(self) -> bool:
        """Whether the slice should stop."""
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """Why it should."""
        if self._reason is None:
            self._reason = self.look()
        return self._reason

    def request(self, reason: str) -> None:
        """Ask for a stop; only the first reason is kept. It takes no lock, so that a signal handler may call it."""
        self._reason = self._reason or reason

    def wait(self, seconds: float) -> bool:
        """Wait for *seconds* or until the slice should stop; say whether it should."""
        until = time.monotonic() + seconds
        while not self.requested and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_SECONDS))
        return self.requested


class Deadline:
    """A moment of this process's monotonic clock."""

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + seconds

    @property
    def has_passed(self) -> bool:
        """Whether it lies behind."""
        return self._at is not None and time.monotonic() >= self._at
