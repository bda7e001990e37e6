"""Worker processes of our own, and what may be done to them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import forks
from tests.waiting import eventually


class Worker:
    """One worker process."""

    def __init__(self, url: str, fault: str, log: Path) -> None:
        self._log = log
        with log.open("ab") as stream:
            arguments = [url, fault] if fault else [url]
            self._process = forks.start("tests.acceptance.app", *arguments, output=stream.fileno(), env=os.environ)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or is stopped."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, *, within: float = 30.0) -> int:
        """Wait for its end and give its exit code."""
        return self._process.wait(timeout=within)

    def wait_until_stopped(self) -> None:
        """Wait until SIGSTOP has stopped it."""
        status = Path(f"/proc/{self.pid}/stat")
        eventually(
            lambda: status.read_text().rsplit(")", 1)[1].split()[0] == "T",
            within=30,
            message=lambda: f"the worker did not stop itself: {self.log()}",
        )

    def log(self) -> str:
        """Give the end of what it wrote."""
        return self._log.read_text(errors="replace")[-3000:]

    def end(self) -> None:
        """Kill it if it still runs, and collect it."""
        if self.is_alive:
            self._process.kill()
        self._process.wait(timeout=30)


@contextmanager
def crew(url: str, folder: Path) -> Iterator[Callable[..., Worker]]:
    """Give a function that starts workers; all of them are ended with the block."""
    workers: list[Worker] = []

    def start(fault: str = "") -> Worker:
        worker = Worker(url, fault, folder / f"worker-{len(workers)}.log")
        workers.append(worker)
        return worker

    try:
        yield start
    finally:
        for worker in workers:
            worker.end()
