"""The tie of a slice to the main process of its worker: it lasts as long as the slice, and breaks with it."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_logger = logging.getLogger("batchkit")

#: Where the main process listens, for the processes that it starts.
VARIABLE = "BATCHKIT_MAIN_SOCKET"
#: How long a slice waits for an answer. A hook is given less than that.
ANSWER_SECONDS = 3.0
_CONNECT_SECONDS = 1.0
_TELL_EVERY_SECONDS = 0.5


class Tie:
    """
    Tells the main process of one slice. It never raises: where nobody listens any more, nothing is told.

    Each message is a line of JSON; only `ask` is answered.
    """

    def __init__(self, connection: socket.socket | None) -> None:
        self._connection = connection
        self._tells_at = 0.0
        self._is_protected = False
        self._questions = 0
        self._received = b""

    @property
    def is_open(self) -> bool:
        """Whether somebody listens."""
        return self._connection is not None

    def ask(self) -> bool | None:
        """Ask whether what must not be stopped may be begun; None where nobody knows."""
        self._questions += 1
        self._tell({"asks": self._questions})
        return self._answer(self._questions)

    def begins(self, *, is_protected: bool, expected: float | None, working: float | None) -> None:
        """Tell that the slice has begun, and how it stands to being stopped."""
        self._is_protected = is_protected
        self._tell({"begins": True, "is_protected": is_protected, "expected": expected, "working": working})

    def moved_on(self, expected: float | None) -> None:
        """Tell, now and then, that a checkpoint was committed."""
        now = time.monotonic()
        if self._connection is not None and now >= self._tells_at:
            self._tells_at = now + _TELL_EVERY_SECONDS
            self._tell({"expected": expected})

    def protects(self, *, is_protected: bool) -> None:
        """Tell that the slice must not be stopped from now on, or that it may be as before."""
        self._tell({"is_protected": is_protected or self._is_protected})

    def close(self) -> None:
        """Tell that the slice has ended."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError):
                # A process that the function has forked may have it as well, and must not keep the slice busy.
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _tell(self, message: dict[str, object]) -> None:
        if self._connection is None:
            return
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._has_broken()

    def _answer(self, question: int) -> bool | None:
        """Wait for the answer to a question; those to earlier ones, which came too late, are thrown away."""
        until = time.monotonic() + ANSWER_SECONDS
        while self._connection is not None and time.monotonic() < until:
            line, is_whole, rest = self._received.partition(b"\n")
            if not is_whole:
                self._receive(until - time.monotonic())
                continue
            self._received = rest
            answer = _read(line)
            if answer.get("asked") == question:
                granted = answer.get("granted")
                return granted if isinstance(granted, bool) else None
        return None

    def _receive(self, seconds: float) -> None:
        if self._connection is None:
            return
        try:
            self._connection.settimeout(max(0.01, seconds))
            part = self._connection.recv(4096)
            self._connection.settimeout(ANSWER_SECONDS)
        except TimeoutError:
            # The main process may be stopped or slow, and is told of the slice all the same.
            return
        except OSError:
            part = b""
        if not part:
            self._has_broken()
        self._received += part

    def _has_broken(self) -> None:
        _logger.info("the main process of this worker does not listen; it learns of this slice from the store")
        self.close()


def _read(line: bytes) -> dict[str, object]:
    """Read an answer; what is none is an answer to nothing."""
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


#: What slices have where nobody listens.
FREE = Tie(None)


@contextmanager
def tied_to_main() -> Iterator[Tie]:
    """Give the tie of a slice for the length of the block."""
    path = os.environ.get(VARIABLE)
    if path is None:
        yield FREE
        return
    tie = Tie(_connected(path))
    try:
        yield tie
    finally:
        tie.close()


def _connected(path: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT_SECONDS)
        connection.connect(path)
        connection.settimeout(ANSWER_SECONDS)
    except OSError:
        # It has ended, or this process was started by a slice of it and has outlived it.
        connection.close()
        return None
    return connection
