"""systemd: a unit that says when it is ready, what it does, that it stops, and that it still makes progress."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from datetime import timedelta

from batchkit.hooks import BusyHook, HookContext, WorkerState

_logger = logging.getLogger("batchkit")

_MICROSECONDS = 1_000_000
_SEND_SECONDS = 1.0
#: After so many repetitions that did not come, nobody knows how the worker stands.
_MISSED_REPETITIONS = 3


class Notify(BusyHook):
    """
    Tells systemd how the worker stands, for units of `Type=notify`.

    READY=1 at the beginning, STATUS= with what is worked, STOPPING=1 once the worker really stops. While it stops,
    each checkpoint asks for more time, so that only a worker which gets on is waited for. Where the unit has
    `WatchdogSec=`, it is told that the worker is alive: always while it is idle, and while it is busy only until
    *longest_chunk* after the last checkpoint, so that one which hangs is started anew.

    Args:
        address: where systemd listens; by default what NOTIFY_SOCKET says. Without either nothing is done.
        longest_chunk: a worker without a checkpoint for so long hangs.
        extend: for how long a checkpoint extends the stop.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        longest_chunk: timedelta | float = 600,
        extend: timedelta | float = 30,
    ) -> None:
        self._address = address or os.environ.get("NOTIFY_SOCKET")
        self._longest_chunk = _seconds(longest_chunk, name="longest_chunk")
        self._extend = _seconds(extend, name="extend")
        self._newest = 0
        self._repeat_seconds = 0.0
        self._is_busy = False
        self._is_stopping = False
        self._has_warned = False
        self._status = ""
        #: when it last made progress, or was idle; and when the state was last told
        self._moved_at = self._told_at = 0.0
        self._ends = threading.Event()

    def begin(self, context: HookContext) -> None:
        """Say that the unit is ready, and begin to keep its watchdog quiet."""
        if self._address is None:
            _logger.warning("NOTIFY_SOCKET is not set, so this is no unit of Type=notify, and systemd is told nothing")
            return
        self._repeat_seconds = context.repeat_seconds
        self._moved_at = self._told_at = time.monotonic()
        self._send("READY=1", "STATUS=idle")
        every = _watchdog_seconds()
        if every is not None:
            watch = threading.Thread(target=self._watch, args=[every / 2], name="batchkit-watchdog", daemon=True)
            watch.start()

    def changed(self, state: WorkerState) -> None:
        """Show the state, and say once that the worker stops."""
        if state.sequence < self._newest:
            return
        now = time.monotonic()
        self._newest, self._told_at = state.sequence, now
        if not state.is_busy or not self._is_busy:
            self._moved_at = now
        self._is_busy = state.is_busy
        if state.is_stopping:
            self._stops()
        status = _status(state)
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def checkpointed(self, state: WorkerState) -> None:
        """Take note of the progress; while the worker stops, ask for more time."""
        self._moved_at = time.monotonic()
        if state.is_stopping and state.is_busy:
            self._stops()
            self._send(f"EXTEND_TIMEOUT_USEC={int(self._extend * _MICROSECONDS)}")

    def end(self) -> None:
        """Say that the worker stops, if that was not said."""
        self._ends.set()
        self._stops()

    def _stops(self) -> None:
        if not self._is_stopping:
            # Told again with the next state where it could not be told.
            self._is_stopping = self._send("STOPPING=1")

    def _watch(self, every: float) -> None:
        while True:
            if self._is_alive:
                self._send("WATCHDOG=1")
            if self._ends.wait(every):
                return

    @property
    def _is_alive(self) -> bool:
        now = time.monotonic()
        if now - self._told_at > _MISSED_REPETITIONS * self._repeat_seconds:
            return False
        return not self._is_busy or now - self._moved_at <= self._longest_chunk

    def _send(self, *lines: str) -> bool:
        """Send; say whether systemd has got it."""
        if self._address is None:
            return False
        # systemd names an abstract socket by an @ in front.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                # The socket holds a few messages only: where it is full, systemd is about to read them.
                sender.settimeout(_SEND_SECONDS)
                sender.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                _logger.warning("systemd cannot be told at %s: %s", self._address, error)
            return False
        return True


def _status(state: WorkerState) -> str:
    stands = "stopping, " if state.is_stopping else "draining, " if state.is_draining else ""
    if not state.is_busy:
        return f"{stands}idle"
    remaining = "" if state.remaining is None else f", next checkpoint in {state.remaining:.0f} s"
    protected = f", {state.protected} protected" if state.protected else ""
    count = state.protected + state.interruptible
    return f"{stands}{count} slice{'' if count == 1 else 's'}{protected}{remaining}"


def _watchdog_seconds() -> float | None:
    """Give how often systemd wants to hear of this process; None where it does not."""
    named, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not named.isdigit() or int(named) == 0 or pid not in {None, str(os.getpid())}:
        return None
    return int(named) / _MICROSECONDS


def _seconds(duration: timedelta | float, *, name: str) -> float:
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    if not 0 < seconds < float("inf"):
        message = f"{name} is a timedelta or a number of seconds, such as {name}=30: got {duration!r}"
        raise ValueError(message)
    return seconds
