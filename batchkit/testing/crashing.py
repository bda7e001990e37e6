"""The crash test: a job is killed before and after each commit, and must come to the end of an undisturbed run."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import URL, Engine

from batchkit.app import BatchKit
from batchkit.durations import Duration, seconds
from batchkit.instance import worker_name
from batchkit.job import JOBS, Startable
from batchkit.states import RunState
from batchkit.testing.databases import emptied_database
from batchkit.testing.errors import CrashTestFailed, FailedTry, InvalidCrashTest
from batchkit.testing.naming import module_of_job, name_of
from batchkit.testing.processes import NoEnd, Processes
from batchkit.testing.snapshots import Snapshot, differences
from batchkit.testing.trial import Kill, Orders, Report

_NO_PARAMS: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True)
class CrashTest:
    """What a crash test that the job has passed has done."""

    #: how many commits the undisturbed run made: its chunks, and its end where the job has `finish`
    commits: int
    #: how often the job was killed
    kills: int


def crash_test(
    job: Startable[...],
    *,
    setup: Callable[[Engine], object],
    params: Mapping[str, object] = _NO_PARAMS,
    snapshot: Callable[[Engine], object] | None = None,
    ignore: Collection[str] = (),
    database: str | URL | None = None,
    kit: Callable[[str], BatchKit] = BatchKit,
    chunk_size: int | None = None,
    most: int = 20,
    timeout: Duration = 60,
) -> CrashTest:
    """
    Kill the job right before and right after each commit, in real processes, and see whether it comes to the same end.

    First a run is worked undisturbed. Then, for each of its commits, a run begins anew in a process that kills itself
    with SIGKILL in front of the COMMIT, and one in a process that does so behind it; another process goes on with it.
    After each, the snapshot must be that of the undisturbed run. The job's module is imported once in another process,
    with BATCHKIT_DATABASE_URL set, and these are forked from that; so all functions stand at module level.

    Args:
        job: the job.
        setup: makes your tables and rows in an empty database, and takes away what the job leaves elsewhere, such as
            files; it is called before each try.
        params: what the job is started with.
        snapshot: gives what is compared: a dict of lists of rows, or any other plain values. Put into it what the job
            does outside of the database. Without one, it is all rows of all tables. Numbers of rows that PostgreSQL and
            MySQL give are compared by their order, since a rolled back chunk leaves gaps.
        ignore: columns, as `table.column`, that differ between any two runs, such as the time of writing.
        database: an empty database, whose tables are dropped before each try; without it SQLite files.
        kit: makes the kit from the database's URL, for a job that needs a `session_factory` or the like.
        chunk_size: the size of chunks; by default the job's own where that is a number, else a few items.
        most: how often to kill at most; where the run has more commits, they are taken evenly, with the first and the
            last among them.
        timeout: how long a process may take.

    Raises:
        CrashTestFailed: it came to another end; the text says where it was killed and which rows differ.
        InvalidCrashTest: the test cannot be made so, or two undisturbed runs differ.
    """
    if isinstance(most, bool) or most < 2:  # noqa: PLR2004  before and after one commit
        raise InvalidCrashTest(f"most is how often to kill at most, 2 or more: got {most!r}")
    if chunk_size is not None and (isinstance(chunk_size, bool) or chunk_size < 1):
        raise InvalidCrashTest(f"chunk_size is the number of items per chunk, 1 or more: got {chunk_size!r}")
    module, limit = module_of_job(job), seconds(timeout, name="timeout")
    orders = Orders(
        job=job.name,
        params=JOBS[job.name].pack((), params),
        url="",
        kit=name_of(kit, role="kit"),
        setup=name_of(setup, role="setup"),
        snapshot=None if snapshot is None else name_of(snapshot, role="snapshot"),
        ignore=list(ignore),
        chunk_size=chunk_size,
        report="",
    )
    with (
        tempfile.TemporaryDirectory(prefix="batchkit-crash-test-") as folder,
        emptied_database(database, folder=Path(folder)) as (url, make_empty),
        closing(Processes(module, url=url, log=Path(folder) / "output.txt", timeout=limit)) as processes,
    ):
        orders = replace(orders, url=url, report=str(Path(folder) / "report.json"))
        return _test(_Trials(orders, processes, make_empty), most=most)


def _test(trials: _Trials, *, most: int) -> CrashTest:
    wanted, commits = trials.undisturbed()
    kills = list(_kills(commits, most=most))
    ends = [(kill, trials.differences_after(kill, wanted)) for kill in kills]
    failed = [FailedTry(f"{kill} of {commits}", differs) for kill, differs in ends if differs]
    if failed:
        trials.check_that_runs_are_alike(wanted)
        raise CrashTestFailed(trials.job, failed=failed, kills=len(kills), commits=commits)
    return CrashTest(commits=commits, kills=len(kills))


def _kills(commits: int, *, most: int) -> Iterator[Kill]:
    """Give both sides of each commit, or of commits that stand evenly from the first to the last."""
    wanted = min(commits, most // 2)
    step = (commits - 1) / max(wanted - 1, 1)
    for number in range(wanted):
        commit = round(number * step) + 1
        yield Kill(commit, is_after=False)
        yield Kill(commit, is_after=True)


class _Trials:
    """Runs in processes that may be killed, each on an empty database."""

    def __init__(self, orders: Orders, processes: Processes, make_empty: Callable[[], None]) -> None:
        self._orders = orders
        self._processes = processes
        self._make_empty = make_empty

    @property
    def job(self) -> str:
        """The name of the job."""
        return self._orders.job

    def undisturbed(self) -> tuple[Snapshot, int]:
        """
        Work a run from its start to its end; give the snapshot of that, and the number of commits.

        Raises:
            InvalidCrashTest: it does not succeed.
        """
        try:
            report, _ = self._work(self._orders)
        except NoEnd as error:
            raise InvalidCrashTest(f"job {self.job} was worked undisturbed, and {error}") from None
        if report.state != RunState.SUCCEEDED:
            raise InvalidCrashTest(
                f"job {self.job} does not succeed even undisturbed: its run is {report.state} ({report.problem}); "
                f"mend that, or what setup and params give it"
            )
        if not report.commits:
            raise InvalidCrashTest(
                f"job {self.job} has found no item, so there is no commit to be killed at; see setup and params"
            )
        return report.snapshot, report.commits

    def differences_after(self, kill: Kill, wanted: Snapshot) -> list[str]:
        """Work a run that is killed, then to its end; say in what that is not as *wanted*."""
        try:
            begun, pid = self._work(replace(self._orders, kill=kill))
        except NoEnd as error:
            raise InvalidCrashTest(f"job {self.job} was to be killed {kill}, but {error}") from None
        if begun.has_ended:
            raise InvalidCrashTest(
                f"job {self.job} has ended before it could be killed {kill}: its runs do not have the same chunks each "
                f"time, so they cannot be compared; see that setup gives the same items, and set chunk_size"
            )
        try:
            report, _ = self._work(replace(self._orders, run_id=begun.run_id, dead_worker=worker_name(pid)))
        except NoEnd as error:
            return [str(error)]
        said = differences(wanted, report.snapshot)
        return [*said, f"the run says: {report.problem}"] if said and report.problem else said

    def check_that_runs_are_alike(self, wanted: Snapshot) -> None:
        """
        Work another undisturbed run, to tell what a kill has done from what differs anyway.

        Raises:
            InvalidCrashTest: its end is another one.
        """
        found, _ = self.undisturbed()
        if differs := differences(wanted, found):
            raise InvalidCrashTest(
                "two undisturbed runs come to different ends, so nothing can be said of killed ones; leave out what "
                "differs, with ignore=['table.column'] or a snapshot function: " + "; ".join(differs)
            )

    def _work(self, orders: Orders) -> tuple[Report, int]:
        """Have a process do as ordered; give its report and its process id."""
        Path(orders.report).unlink(missing_ok=True)
        if orders.run_id is None:
            self._make_empty()
        ended = self._processes.work(orders)
        report = Report.read(Path(orders.report))
        was_killed = orders.kill is not None and ended.code == -signal.SIGKILL
        if report is None or not (was_killed or report.has_ended):
            raise NoEnd(f"its process has ended with code {ended.code} and said: {self._processes.output()}")
        return report, ended.pid
