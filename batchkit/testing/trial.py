"""
The processes of a crash test: each starts a run, or goes on with one, and may kill itself at a commit.

    python -m batchkit.testing.trial

imports the job, which takes longer than a try, and forks a process for each line of orders on its standard input. It
answers with the process's id, and with its exit code once that has ended. What came of a try stands in a file.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from batchkit.app import BatchKit
from batchkit.delivery import MessageQueue
from batchkit.job import JOBS
from batchkit.run import Run
from batchkit.sizing import Adaptive
from batchkit.stopping import Stop
from batchkit.store.database import Database
from batchkit.store.held import Ahead, HeldConnection
from batchkit.store.pipelining import Numbered
from batchkit.testing.errors import InvalidCrashTest
from batchkit.testing.naming import function_named
from batchkit.testing.snapshots import Snapshot, snapshot_of

R = TypeVar("R")

#: Of a job with adaptive chunks, which would do what a test has in one of them.
_FEW_ITEMS = 5


@dataclass(frozen=True, slots=True)
class Kill:
    """A moment in which a process kills itself."""

    #: which of the commits that it makes of the run's chunks and of its end, from 1
    commit: int
    #: whether the commit has happened
    is_after: bool

    def __str__(self) -> str:
        return f"right {'after' if self.is_after else 'before'} commit {self.commit}"


@dataclass(frozen=True, slots=True)
class Orders:
    """What a process is to do."""

    job: str
    params: str
    kit: str
    url: str
    setup: str
    snapshot: str | None
    ignore: list[str]
    chunk_size: int | None
    report: str
    kill: Kill | None = None
    #: the run to go on with
    run_id: str | None = None
    #: the worker that has died with it
    dead_worker: str | None = None

    def to_json(self) -> str:
        """Write them down."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it. A process that was killed has told of the run's id only."""

    run_id: str
    has_ended: bool = False
    state: str = ""
    #: why the run did not succeed
    problem: str = ""
    commits: int = 0
    snapshot: Snapshot = field(default_factory=dict)

    def write(self, path: str) -> None:
        """Write it down."""
        Path(path).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report | None:
        """Read it, if the process came that far."""
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def main(orders: Orders) -> None:
    """
    Do as ordered.

    Raises:
        InvalidCrashTest: the kit would send messages to workers that have nothing to do with the test.
    """
    _cut(orders.job, orders.chunk_size)
    kit: BatchKit = function_named(orders.kit)(orders.url)
    if isinstance(kit.queue, MessageQueue):
        raise InvalidCrashTest(f"{orders.kit} gives a kit with {type(kit.queue).__name__}; give it none: BatchKit(url)")
    with closing(kit), closing(Database(orders.url)) as database:
        run = _started(kit, database, orders) if orders.run_id is None else _taken_over(kit, orders)
        Report(run.id).write(orders.report)
        commits = _count_commits(orders.kill)
        with Stop() as stop:
            kit.work_run(run.id, stop=stop)
        made = next(commits) - 1
        _report(run.refresh(), database, orders, commits=made).write(orders.report)


def _started(kit: BatchKit, database: Database, orders: Orders) -> Run:
    kit.migrate()
    function_named(orders.setup)(database.engine)
    # What setup has left open there would be in the way of the first chunk.
    database.close()
    return kit.start_run_here(JOBS[orders.job], orders.params)


def _taken_over(kit: BatchKit, orders: Orders) -> Run:
    # Nobody need wait for the lease of a worker that is known to be dead.
    kit.end_leases_of(str(orders.dead_worker))
    return kit.run(str(orders.run_id))


def _report(run: Run, database: Database, orders: Orders, *, commits: int) -> Report:
    taken = None if orders.snapshot is None else function_named(orders.snapshot)
    counted = f"state={run.state}, done={run.progress.done}, failed={run.progress.failed}"
    return Report(
        run.id,
        has_ended=True,
        state=run.state,
        problem=run.waiting_reason or str(run.error or ""),
        commits=commits,
        snapshot={"the run": [counted], **snapshot_of(database.engine, taken, ignore=orders.ignore)},
    )


def _cut(name: str, chunk_size: int | None) -> None:
    """Fix the size of the job's chunks, so that each run has the same ones."""
    job = JOBS[name]
    fixed = chunk_size or (_FEW_ITEMS if isinstance(job.options.chunk_size, Adaptive) else job.options.chunk_size)
    JOBS.add(replace(job, options=replace(job.options, chunk_size=fixed)), JOBS.function_of(name))


def _count_commits(kill: Kill | None) -> itertools.count[int]:
    """Count the commits that this process makes of chunks and of a run's end, and kill it at one of them."""
    numbers = itertools.count(1)
    commit, commit_ahead = HeldConnection.commit, HeldConnection.execute_and_commit

    def or_die(send: Callable[[], R]) -> R:
        number = next(numbers)
        if kill == Kill(number, is_after=False):
            os.kill(os.getpid(), signal.SIGKILL)
        sent = send()
        if kill == Kill(number, is_after=True):
            os.kill(os.getpid(), signal.SIGKILL)
        return sent

    def commit_or_die(held: HeldConnection) -> None:
        if held.is_commit_sent:
            commit(held)
        else:
            or_die(lambda: commit(held))

    def commit_ahead_or_die(
        held: HeldConnection, statement: Numbered, values: Mapping[str, object], ahead: Ahead
    ) -> tuple[Any, ...] | None:
        return or_die(lambda: commit_ahead(held, statement, values, ahead))

    HeldConnection.commit = commit_or_die  # type: ignore[assignment, method-assign]
    HeldConnection.execute_and_commit = commit_ahead_or_die  # type: ignore[assignment, method-assign]
    return numbers


def serve(path: str, module: str, log: str) -> None:
    """Import *module*, then have a new process do as each line of orders says."""
    # In place: what the interpreter was started with, such as the folder of `-m`, is not where the job came from.
    sys.path[:] = json.loads(path)
    answers = os.fdopen(os.dup(1), "w")
    with Path(log).open("ab", buffering=0) as output:
        # What is printed belongs to the job.
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    importlib.import_module(module)
    # What the first migration of a process imports takes longer than a try.
    with closing(BatchKit(f"sqlite:///{Path(log).with_name('first.db')}")) as kit:
        kit.migrate()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _work_and_exit(line)
        print(pid, file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _work_and_exit(line: str) -> NoReturn:
    """Do as ordered, and never come back into what the parent does."""
    code = 1
    try:
        main(_ordered(line))
        code = 0
    except BaseException:  # noqa: BLE001  the job's code may raise anything
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ordered(line: str) -> Orders:
    orders: dict[str, Any] = json.loads(line)
    kill = orders.pop("kill")
    return Orders(**orders, kill=kill and Kill(**kill))


if __name__ == "__main__":
    serve(*sys.argv[1:])
