"""The process that imports the job, and those that it forks for the tries."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from batchkit.app import DATABASE_VARIABLE
from batchkit.testing.trial import Orders

_SHOWN_OUTPUT = 3000


class NoEnd(Exception):
    """A process has not told how its run ended."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended."""

    pid: int
    #: as `subprocess` gives it: a signal is negative
    code: int


class Processes:
    """Have processes do as ordered, one after the other."""

    def __init__(self, module: str, *, url: str, log: Path, timeout: float) -> None:
        self._log = log
        self._timeout = timeout
        path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100  "" is the folder that we are in
        # Pipes of our own, since those of subprocess are buffered: `select` is to tell whether an answer is there.
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        with log.open("ab") as output:
            self._parent = subprocess.Popen(  # noqa: S603  the command is our own
                [sys.executable, "-m", "batchkit.testing.trial", json.dumps(path), module, str(log)],
                stdin=orders,
                stdout=answers,
                stderr=output,
                env={**os.environ, DATABASE_VARIABLE: url},
            )
        os.close(orders)
        os.close(answers)

    def work(self, orders: Orders) -> Ended:
        """
        Have a new process do as ordered, and wait for its end.

        Raises:
            NoEnd: it comes to none in time, or the job cannot be imported.
        """
        with suppress(BrokenPipeError):  # the parent has ended; there is no answer then
            os.write(self._orders, orders.to_json().encode() + b"\n")
        pid = self._answer()
        if pid is None:
            raise NoEnd(f"its module is not imported within {self._timeout:g} s, or cannot be: {self.output()}")
        code = self._answer()
        if code is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._answer()
            raise NoEnd(f"its process has come to no end in {self._timeout:g} s (timeout=) and said: {self.output()}")
        return Ended(pid, code)

    def output(self) -> str:
        """Give the end of what they have printed."""
        return self._log.read_text(errors="replace").strip()[-_SHOWN_OUTPUT:] or "nothing"

    def close(self) -> None:
        """End the one that waits for orders."""
        os.close(self._orders)
        os.close(self._answers)
        self._parent.kill()
        self._parent.wait()

    def _answer(self) -> int | None:
        """Read a line of the parent's; None where none comes in time, or it has ended."""
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._answers], [], [], self._timeout)
            read = os.read(self._answers, 1) if ready else b""
            if not read:
                return None
            line += read
        return int(line)
