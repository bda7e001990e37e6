"""Real workers of real queues, and what deploys, restarts and crashes do to them."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests import forks
from tests.waiting import eventually


class QueueWorker:
    """A worker's main process with its children."""

    def __init__(self, start: Callable[[int], forks.Process], *, ready: str, log: Path) -> None:
        self._log = log
        self._seen: set[int] = set()
        with log.open("ab") as stream:
            self._process = start(stream.fileno())
        try:
            eventually(
                lambda: ready in log.read_text(errors="replace") or self._process.poll() is not None,
                within=60,
                message=lambda: f"the worker is not ready:\n{self.log()}",
            )
        except AssertionError:
            self.end()
            raise
        assert not ready or self.is_alive, self.log()

    @property
    def is_alive(self) -> bool:
        """Whether the main process runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The main process."""
        return self._process.pid

    def children(self) -> list[int]:
        """Give the processes that it has started, and that those have."""
        found = _children(self.pid)
        self._seen.update(found)
        return found

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the main process."""
        if self.is_alive:
            _send(self.pid, number)

    def send_children(self, number: signal.Signals) -> None:
        """Send a signal to its children."""
        for pid in self.children():
            _send(pid, number)

    def send_child(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to one of its children."""
        _send(pid, number)

    def send_all(self, number: signal.Signals) -> None:
        """Send a signal to every process, as Heroku and systemd do."""
        children = self.children()
        self.send(number)
        for pid in children:
            _send(pid, number)

    def wait(self, *, within: float = 60.0) -> int:
        """Wait for the end of the main process and give its exit code."""
        try:
            return self._process.wait(timeout=within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end:\n{self.log()}") from None

    def end(self) -> None:
        """Kill whatever is left of it."""
        self.children()
        if self.is_alive:
            self._process.kill()
        self._process.wait(timeout=30)
        for pid in self._seen:
            if _is_of_group(pid, self.pid):
                _send(pid, signal.SIGKILL)

    def log(self) -> str:
        """Give the end of what it wrote."""
        return self.whole_log()[-6000:]

    def whole_log(self) -> str:
        """Give all that it wrote."""
        return self._log.read_text(errors="replace")


class Crew:
    """Starts workers that end with the test."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._folder = folder
        self.env = dict(env)
        self.workers: list[QueueWorker] = []

    def celery(
        self, *options: str, env: Mapping[str, str] | None = None, app: str = "tests.queues.celery_app"
    ) -> QueueWorker:
        """Start a stock Celery worker."""
        number = len(self.workers)
        arguments = ["-A", app, "worker", "-l", "INFO", "--without-mingle", "--without-gossip", "-n", f"w{number}@%h"]
        # gevent changes the standard library before anything else is imported.
        may_fork = "gevent" not in options
        return self._start("celery", *arguments, *options, ready=" ready.", env=env, may_fork=may_fork)

    def rq(self, *options: str, kind: str = "rq.Worker", env: Mapping[str, str] | None = None) -> QueueWorker:
        """Start a stock RQ worker."""
        arguments = ["worker", "-u", self.env["TEST_BROKER"], "-w", kind, *options, "default"]
        return self._start("rq.cli", *arguments, ready="Listening on", env=env)

    def rq_pool(self, *options: str, number: int = 2) -> QueueWorker:
        """Start a stock pool of RQ workers."""
        arguments = ["worker-pool", "-u", self.env["TEST_BROKER"], "-n", str(number), *options, "default"]
        return self._start("rq.cli", *arguments, ready="Listening on")

    def work(self, app: str, *options: str) -> QueueWorker:
        """Start workers of the built-in queue."""
        return self._start("batchkit", "-A", app, "work", *options, ready="a worker process started")

    def supervisor(self, app: str) -> QueueWorker:
        """Start the process that sweeps for RQ."""
        return self._start("batchkit", "-A", app, "supervise", ready="sweeping")

    def command(self, app: str, *arguments: str, expected: int = 0, env: Mapping[str, str] | None = None) -> str:
        """Run a command of batchkit's, which must end with the *expected* code; give what it printed."""
        environment = {**os.environ, **self.env, **(env or {})}
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = forks.start(
                "batchkit", "-A", app, *arguments, output=output.fileno(), errors=errors.fileno(), env=environment
            )
            code = process.wait(timeout=60)
            output.seek(0)
            errors.seek(0)
            assert expected == code, errors.read().decode()
            return output.read().decode().strip()

    def _start(
        self, module: str, *arguments: str, ready: str, env: Mapping[str, str] | None = None, may_fork: bool = True
    ) -> QueueWorker:
        log = self._folder / f"worker-{len(self.workers)}.log"
        log.touch()
        environment = {**os.environ, **self.env, **(env or {})}

        def begin(output: int) -> forks.Process:
            return forks.start(module, *arguments, output=output, env=environment, new_session=True, may_fork=may_fork)

        worker = QueueWorker(begin, ready=ready, log=log)
        self.workers.append(worker)
        return worker

    def logs(self) -> str:
        """Give what all of them wrote."""
        return "\n".join(f"--- worker {number}\n{worker.log()}" for number, worker in enumerate(self.workers))


@contextmanager
def crew(folder: Path, env: Mapping[str, str]) -> Iterator[Crew]:
    """Give a crew whose workers end with the block."""
    made = Crew(folder, env)
    try:
        yield made
    finally:
        for worker in made.workers:
            worker.end()


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = [int(each) for each in task.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in direct:
            found += [child, *_children(child)]
    return found


def _is_of_group(pid: int, session: int) -> bool:
    """Tell whether *pid* is still one of ours, and no other process that got its number."""
    try:
        return os.getsid(pid) == session
    except ProcessLookupError:
        return False


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
