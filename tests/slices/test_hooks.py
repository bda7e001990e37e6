"""Hooks are told of what was committed, at most once, and change nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from batchkit import BatchKit, Chunk, Finish, Run, RunState, Throttle, span
from batchkit.errors import InvalidHook
from batchkit.hooks import RunEvent, RunHook
from batchkit.job import JOBS
from batchkit.queues import InlineQueue
from batchkit.stopping import Stop
from batchkit.store import Clock
from tests.slices.conftest import Ledger, job, write
from tests.waiting import eventually


class Recorder(RunHook):
    """Keeps what it is told."""

    def __init__(self, then: Callable[[RunEvent], object] | None = None) -> None:
        self.events: list[RunEvent] = []
        self._then = then

    @property
    def names(self) -> list[str]:
        """Give what happened."""
        return [event.happening.value for event in self.events]

    def _note(self, event: RunEvent) -> None:
        self.events.append(event)
        if self._then is not None:
            self._then(event)

    started = interrupted = paused = resumed = succeeded = failed = cancelled = _note


@pytest.fixture
def told() -> Recorder:
    return Recorder()


@pytest.fixture
def inline(database_url: str, told: Recorder) -> Iterator[BatchKit]:
    """Give a kit with a hook that works runs at once, on each database."""
    with closing(BatchKit(database_url, queue=InlineQueue(), hooks=[told])) as made:
        made.migrate()
        yield made


class Later:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return self.ahead


@pytest.fixture
def later() -> Later:
    return Later()


@pytest.fixture
def still(database_url: str, told: Recorder, later: Later) -> Iterator[BatchKit]:
    """Give a kit with a hook that wakes nobody up."""
    with closing(BatchKit(database_url, hooks=[told], clock=Clock(later))) as made:
        made.migrate()
        yield made


def work_next(kit: BatchKit) -> None:
    with Stop() as stop:
        kit._worker.work_next(queues=None, stop=stop)  # noqa: SLF001  the loop around it runs until a signal


# What is told


def test_the_start_and_the_success_of_a_run_are_told_as_its_history_says(
    inline: BatchKit, told: Recorder, done: Ledger
):
    def work(chunk: Chunk[int], label: str) -> None:
        write(chunk)

    run = job(lambda label: span(30), work, chunk_size=10).start(label="x")
    assert ["started", "succeeded"] == told.names
    started, succeeded = told.events
    history = run.history()[1:]
    assert [(each.before, each.after, each.reason, each.worker, each.at) for each in told.events] == [
        (each.before, each.after, each.reason, each.worker, each.at) for each in history
    ]
    assert (run.id, run.job, {"label": "x"}, None) == (
        succeeded.run_id,
        succeeded.job,
        succeeded.params,
        succeeded.error,
    )
    assert (0, 30, 0) == (started.progress.done, succeeded.progress.done, succeeded.progress.workers)
    assert started.progress.workers == 1


def test_a_failure_is_told_with_its_error_and_the_end_of_a_resumed_run_without_another_start(
    inline: BatchKit, told: Recorder, done: Ledger
):
    failing = [True]

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if failing and 25 in chunk:
            raise ValueError("item 25 is odd")

    run = job(span(30), work, chunk_size=10).start()
    assert ["started", "failed"] == told.names
    assert "ValueError: item 25 is odd" == str(told.events[1].error)
    failing.clear()
    run.resume()
    assert ["started", "failed", "resumed", "succeeded"] == told.names
    assert list(range(30)) == done.items()


def test_success_with_finish_is_told_once_and_only_after_its_commit(inline: BatchKit, told: Recorder, done: Ledger):
    seen: list[list[str]] = []
    broken = [True]

    def finish(finish: Finish) -> None:
        finish.connection.execute(text("INSERT INTO ledger VALUES (99)"))
        seen.append(told.names)
        if broken:
            raise ValueError("not yet")

    run = job(span(10), write, finish=finish).start()
    assert ["started", "failed"] == told.names
    broken.clear()
    run.resume()
    assert ["started", "failed", "resumed", "succeeded"] == told.names
    assert ["started", "failed", "resumed"] == seen[-1]
    assert [*range(10), 99] == done.items()


def test_a_success_whose_commit_is_refused_is_not_told(postgres_url: str):
    told, done = Recorder(), Ledger(postgres_url)
    with done.engine.begin() as tx:
        tx.execute(text("CREATE TABLE a (id INT PRIMARY KEY, b INT REFERENCES a DEFERRABLE INITIALLY DEFERRED)"))
    with closing(BatchKit(postgres_url, queue=InlineQueue(), hooks=[told])) as kit:
        kit.migrate()
        violate = text("INSERT INTO a VALUES (1, 2)")
        run = job(span(10), write, finish=lambda finish: finish.connection.execute(violate) and None).start()
    assert (RunState.FAILED, ["started", "failed"]) == (run.state, told.names)
    done.engine.dispose()


def test_what_a_person_does_to_a_waiting_run_is_told_where_it_is_done(still: BatchKit, told: Recorder):
    run = job(span(10), lambda chunk: None).start()
    run.pause()
    run.resume()
    run.cancel()
    assert ["paused", "resumed", "cancelled"] == told.names
    assert {None} == {event.worker for event in told.events}


@pytest.mark.parametrize(("act", "name"), [(Run.pause, "paused"), (Run.cancel, "cancelled")])
def test_what_a_person_asks_of_a_running_run_is_told_where_its_worker_does_it(
    server_url: str, act: Callable[[Run], Run], name: str
):
    told = Recorder()
    with closing(BatchKit(server_url, hooks=[told])) as kit:
        kit.migrate()

        def work(chunk: Chunk[int]) -> None:
            act(kit.run(chunk.run_id))
            assert ["started"] == told.names

        job(span(10), work, chunk_size=5).start()
        work_next(kit)
    assert ["started", name] == told.names


def test_each_interruption_that_is_counted_is_told(still: BatchKit, told: Recorder, done: Ledger):
    run = job(span(30), write, chunk_size=10, slice_time=1e-9).start()
    while not run.refresh().has_ended:
        work_next(still)
    assert 3 == run.progress.interruptions
    assert ["started", *["interrupted"] * 3, "succeeded"] == told.names


def test_the_death_of_a_worker_is_told_by_the_sweep_that_finds_it(still: BatchKit, told: Recorder, later: Later):
    run = job(span(30), lambda chunk: None).start()
    leases = still._store.leases  # noqa: SLF001  a worker that does nothing more
    assert leases.claim(run.id, 0, worker="dead", seconds=60) is not None
    later.ahead += 61
    still.recover()
    still.recover()
    assert ["started", "interrupted"] == told.names
    assert 1 == run.refresh().progress.interruptions


def test_a_take_over_is_told_as_an_interruption(still: BatchKit, told: Recorder, later: Later):
    run = job(span(30), lambda chunk: None).start()
    leases = still._store.leases  # noqa: SLF001  a worker that does nothing more
    assert leases.claim(run.id, 0, worker="dead", seconds=60) is not None
    later.ahead += 61
    work_next(still)
    assert ["started", "interrupted", "succeeded"] == told.names
    assert (RunState.RUNNING, RunState.RUNNING) == (told.events[1].before, told.events[1].after)
    assert "the lease of dead ran out" in told.events[1].reason


def test_a_run_that_is_held_is_not_interrupted(still: BatchKit, told: Recorder):
    job(span(30), lambda chunk: None, throttle=Throttle(hold=lambda: 30)).start()
    work_next(still)
    assert ["started"] == told.names


def test_nothing_is_told_of_a_start_that_is_rolled_back(inline: BatchKit, told: Recorder, done: Ledger):
    made = job(span(3), write)
    with Session(done.engine) as session:
        made.using(session=session).start()
        session.rollback()
        made.using(session=session).start()
        assert [] == told.names
        session.commit()
    assert ["started", "succeeded"] == told.names


# What hooks do


def test_hooks_that_raise_change_nothing_and_keep_nobody_from_being_told(
    database_url: str, caplog: pytest.LogCaptureFixture
):
    def leave(_: RunEvent) -> None:
        raise SystemExit(3)

    def fail(_: RunEvent) -> None:
        raise RuntimeError("the pager is away")

    told = Recorder()
    done = Ledger(database_url)
    with closing(BatchKit(database_url, queue=InlineQueue(), hooks=[Recorder(fail), Recorder(leave), told])) as kit:
        kit.migrate()
        run = job(span(10), write, finish=lambda finish: 3).start()
        run.rerun()
    assert (RunState.SUCCEEDED, 10, 3) == (run.state, run.progress.done, run.result)
    assert ["started", "succeeded"] * 2 == told.names
    assert 8 == sum("a hook failed" in record.message for record in caplog.records)
    assert 20 == done.count()
    done.engine.dispose()


def test_a_hook_finds_the_run_committed_with_its_lease_given_back_and_may_start_another(
    inline: BatchKit, told: Recorder, done: Ledger
):
    found: list[tuple[RunState, int]] = []
    second = job(span(5), write)

    def look(event: RunEvent) -> None:
        if event.happening.value == "succeeded" and event.job != second.name:
            run = inline.run(event.run_id)
            found.append((run.state, run.progress.workers))
            second.start()

    told._then = look  # noqa: SLF001  our own
    job(span(10), write).start()
    job(span(10), write, finish=lambda finish: None).start()
    assert [(RunState.SUCCEEDED, 0)] * 2 == found
    assert 30 == done.count()


def test_the_lease_is_renewed_while_a_slow_hook_is_told_of_the_start(database_url: str):
    ends = []

    def wait(event: RunEvent) -> None:
        if event.happening.value != "started":
            return

        def lease_end() -> Any:
            return kit.run(event.run_id).partitions()[0].lease_expires_at

        for _ in range(3):
            ends.append(lease_end())
            eventually(lambda: lease_end() > ends[-1], within=10, message="the lease is not renewed")

    with closing(BatchKit(database_url, queue=InlineQueue(), hooks=[Recorder(wait)])) as kit:
        kit.migrate()
        run = job(span(10), lambda chunk: None, lease=5.0).start()
    assert (RunState.SUCCEEDED, 0) == (run.state, run.progress.interruptions)
    assert 3 == len(ends)


def test_a_process_that_is_killed_between_the_commit_and_the_hook_tells_nothing_and_nobody_else_does(
    database_url: str,
):
    def kill(event: RunEvent) -> None:
        if event.happening.value == "succeeded":
            os.kill(os.getpid(), signal.SIGKILL)

    told = Recorder()
    with closing(BatchKit(database_url, queue=InlineQueue(), hooks=[Recorder(kill), told])) as kit:
        kit.migrate()
        made = job(span(10), lambda chunk: None)
        run = kit.start_run_here(JOBS[made.name], "{}")
        pid = os.fork()
        if pid == 0:
            # Nothing of pytest must run here, whatever happens.
            try:
                with Stop() as stop:
                    kit.work_run(run.id, stop=stop)
            finally:
                os._exit(1)
        assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert (RunState.SUCCEEDED, 10) == (run.refresh().state, run.progress.done)
        kit.recover()
        assert [] == told.names


# Refusals


class Misspelt(RunHook):
    """Nothing calls what it has."""

    def on_failed(self, event: RunEvent) -> None:
        """Page somebody."""


class WithoutEvent(RunHook):
    """It cannot be called."""

    def failed(self) -> None:  # type: ignore[override]
        """Page somebody."""


class Async(RunHook):
    """Calling it does nothing."""

    async def failed(self, event: RunEvent) -> None:  # type: ignore[override]
        """Page somebody."""


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        (Misspelt(), r"nothing calls Misspelt\.on_failed: the methods of a hook are started, interrupted"),
        (WithoutEvent(), r"WithoutEvent\.failed cannot be called with an event"),
        (Async(), r"Async\.failed is a coroutine"),
        (Recorder, r"give Recorder\(\)"),
        (print, "is no hook; derive a class from"),
    ],
)
def test_what_would_never_be_called_is_refused(sqlite_url: str, hook: Any, problem: str):
    with pytest.raises(InvalidHook, match=problem):
        BatchKit(sqlite_url, hooks=[hook])


def test_hooks_that_are_no_sequence_are_refused(sqlite_url: str):
    with pytest.raises(InvalidHook, match=r"hooks=\[Recorder\(\)\]"):
        BatchKit(sqlite_url, hooks=Recorder())  # type: ignore[arg-type]
