"""The parent of several worker processes: starts them, replaces those that die, and hands signals on."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from batchkit.cli.deaths import Deaths
from batchkit.cli.ending import DONE, INTERRUPTED
from batchkit.cli.parent import PARENT_VARIABLE
from batchkit.stopping import Stop

_logger = logging.getLogger("batchkit")

_TICK_SECONDS = 0.1
_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 10.0
#: A process that lived this long did not die at once.
_GOOD_LIFE_SECONDS = 5.0


def work_in_children(command: Sequence[str], processes: int, *, deaths: Deaths, stop: Stop) -> int:
    """
    Keep *processes* children that run *command* alive until SIGTERM or SIGINT, wait for them, and give the exit code.

    Each signal is handed on to them: the first has them stop after the chunk in flight, the second rolls it back.
    *deaths* is told of those that die, and a stop is requested of *stop* for who wants to know of it.
    """
    places = [_Place(number, command, deaths) for number in range(1, processes + 1)]
    with _signals() as signals:
        handed_on = 0
        while True:
            while handed_on < len(signals):
                stop.request(signal.Signals(signals[handed_on]).name)
                handed_on += 1
                deaths.stop()
                for place in places:
                    place.stop()
            for place in places:
                place.tend(is_stopping=handed_on > 0)
            if handed_on and not any(place.is_alive for place in places):
                break
            time.sleep(_TICK_SECONDS)
    return DONE if handed_on == 1 else INTERRUPTED


@dataclass
class _Place:
    """One of the children, and whoever comes after it."""

    number: int
    command: Sequence[str]
    deaths: Deaths
    child: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    backoff: float = 0.0
    is_due_at: float = 0.0

    @property
    def is_alive(self) -> bool:
        return self.child is not None

    def tend(self, *, is_stopping: bool) -> None:
        """Notice the child's death, and start another one when it is time."""
        if self.child is not None and self.child.poll() is not None:
            self._bury(self.child, is_stopping=is_stopping)
        if self.child is None and not is_stopping and time.monotonic() >= self.is_due_at:
            self._start()

    def stop(self) -> None:
        """Hand a signal on."""
        if self.child is not None:
            # SIGTERM for SIGINT too: to a Python that is just starting, SIGINT means a traceback.
            self.child.send_signal(signal.SIGTERM)

    def _start(self) -> None:
        # In a session of its own: Ctrl-C on the terminal reaches the parent only, which hands it on once.
        self.child = subprocess.Popen(  # noqa: S603  our own program
            self.command,
            env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.started_at = time.monotonic()
        _logger.info("a worker process started", extra={"number": self.number, "pid": self.child.pid})

    def _bury(self, child: subprocess.Popen[bytes], *, is_stopping: bool) -> None:
        lived = time.monotonic() - self.started_at
        died_at_once = lived < _GOOD_LIFE_SECONDS
        self.backoff = min(max(_FIRST_BACKOFF_SECONDS, self.backoff * 2), _LONGEST_BACKOFF_SECONDS) * died_at_once
        self.is_due_at = time.monotonic() + self.backoff
        self.child = None
        self.deaths.report(child.pid)
        _logger.log(
            logging.INFO if is_stopping else logging.WARNING,
            "a worker process ended" if is_stopping else "a worker process died; another takes its place",
            extra={"number": self.number, "pid": child.pid, "lived": f"{lived:.1f}s", **_how(child.returncode)},
        )


def _how(returncode: int) -> dict[str, object]:
    if returncode >= 0:
        return {"exit_code": returncode}
    try:
        return {"killed_by": signal.Signals(-returncode).name}
    except ValueError:  # a real-time signal
        return {"killed_by": -returncode}


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT for the length of the block."""
    caught: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
