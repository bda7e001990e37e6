"""Removing runs that ended long ago: all of them, nothing else, and never what a key is for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from batchkit import BatchKit, Chunk, Run, RunState, span
from batchkit.cli import app as commands
from batchkit.errors import InvalidPurge, OutputUnusable, RunFailed, RunNotFound, RunPurged
from batchkit.queues import InlineQueue, LocalQueue
from batchkit.store import Clock, purging
from tests.slices.conftest import job

MONTH = timedelta(days=30)


class Later:
    """The seconds by which the database's clock is ahead."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Give them."""
        return self.seconds


@pytest.fixture
def later() -> Later:
    """Give a clock that the test moves."""
    return Later()


@pytest.fixture
def kit(database_url: str, later: Later) -> Iterator[BatchKit]:
    """Give a kit on each database, with that clock."""
    with closing(BatchKit(database_url, queue=InlineQueue(), clock=Clock(later))) as made:
        made.migrate()
        yield made


def works(**options: Any) -> Any:
    def nothing(chunk: Chunk[int]) -> None:
        """Do nothing."""

    return job(span(5), nothing, chunk_size=2, **options)


def fails_at_some(**options: Any) -> Any:
    def fail(chunk: Chunk[int]) -> None:
        for item in chunk:
            if item % 2:
                chunk.fail(item, "it is odd")

    return job(span(10), fail, chunk_size=2, max_failures=10, **options)


def rows(kit: BatchKit) -> dict[str, int]:
    """Count what is in each table."""
    names = ("run", "partition", "transition", "failure")
    with kit._store.database.reading() as tx:  # noqa: SLF001  there is no public way to count rows
        counts = (select(func.count()).select_from(kit.metadata.tables[f"batchkit_{name}"]) for name in names)
        return {name: tx.execute(count).scalar_one() for name, count in zip(names, counts, strict=True)}


def test_what_ended_long_ago_is_removed_with_all_that_belongs_to_it(kit: BatchKit, later: Later):
    old = fails_at_some().start()
    later.seconds = MONTH.total_seconds() + 1
    new = works().start()

    purged = kit.purge(MONTH)

    assert (1, 0, 5) == (purged.runs, purged.kept, purged.failures)
    assert purged.transitions >= 2
    with pytest.raises(RunNotFound):
        kit.run(old.id)
    assert RunState.SUCCEEDED == kit.run(new.id).state
    assert (1, 1, 0) == (rows(kit)["run"], rows(kit)["partition"], rows(kit)["failure"])
    assert 0 == kit.purge(MONTH).runs


def test_a_month_is_not_over_a_moment_before(kit: BatchKit, later: Later):
    works().start()
    later.seconds = MONTH.total_seconds() - 60
    assert 0 == kit.purge(MONTH).runs
    assert 0 == kit.purge(MONTH, state="failed").runs
    later.seconds += 120
    assert 0 == kit.purge(MONTH, state="failed").runs
    assert 1 == kit.purge(MONTH, state=["failed", RunState.SUCCEEDED]).runs


def test_what_has_not_ended_is_never_removed(kit: BatchKit, later: Later):
    paused: Run = works().using(session=None).start()
    with closing(BatchKit(kit._store.database.engine, queue=LocalQueue(), clock=Clock(later))) as other:  # noqa: SLF001
        waiting = works().start()
        stopped = works().start()
        stopped.pause()
        later.seconds = MONTH.total_seconds() * 2
        assert 1 == other.purge(MONTH).runs
        assert RunState.QUEUED == waiting.refresh().state
        assert RunState.PAUSED == stopped.refresh().state
        stopped.resume()
    with pytest.raises(RunNotFound):
        paused.refresh()


def test_the_same_key_gives_the_same_run_though_that_was_purged(kit: BatchKit, later: Later):
    keyed = fails_at_some()
    first = keyed.using(key="January").start()
    later.seconds = MONTH.total_seconds() + 1

    purged = kit.purge(MONTH)

    assert (0, 1, 5) == (purged.runs, purged.kept, purged.failures)
    again = keyed.using(key="January").start()
    assert (first.id, True) == (again.id, again.was_joined)
    assert (5, 5) == (again.progress.done, again.progress.failed), "its counters are those of its end"
    assert [] == list(again.history())
    assert 0 == kit.purge(MONTH).kept, "once is enough"


@pytest.mark.parametrize("key", [None, "January"])
def test_a_purge_that_was_killed_is_ended_by_the_next(
    kit: BatchKit, later: Later, monkeypatch: pytest.MonkeyPatch, key: str | None
):
    fails_at_some().using(key=key).start() if key else fails_at_some().start()
    later.seconds = MONTH.total_seconds() + 1

    def die(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(purging.Purging, "_remove_all", die)
        with pytest.raises(KeyboardInterrupt):
            kit.purge(MONTH)
    assert 5 == rows(kit)["failure"]

    assert 5 == kit.purge(MONTH).failures
    assert (0, 0) == (rows(kit)["failure"], rows(kit)["transition"])
    assert 0 == kit.purge(MONTH).kept


def test_what_was_purged_cannot_go_on_and_says_so(kit: BatchKit, later: Later):
    def fail(chunk: Chunk[int]) -> None:
        raise ValueError("no")

    failing = job(span(3), fail)
    with pytest.raises(RunFailed):
        failing()
    run = failing.using(key="once").start()
    later.seconds = MONTH.total_seconds() + 1
    kit.purge(MONTH)
    for step in (run.resume, run.retry_failures):
        with pytest.raises(RunPurged, match=r"rerun\(\) starts another"):
            step()
    assert RunState.FAILED == run.refresh().state


def test_failures_that_are_being_tried_again_stay(kit: BatchKit, later: Later):
    origin = fails_at_some().start()
    with closing(BatchKit(kit._store.database.engine, queue=LocalQueue(), clock=Clock(later))) as other:  # noqa: SLF001
        retry = other.run(origin.id).retry_failures()
        later.seconds = MONTH.total_seconds() + 1
        assert 0 == other.purge(MONTH).runs
        retry.cancel()
        assert 1 == other.purge(MONTH).runs


@pytest.mark.parametrize("key", [None, "January"])
def test_failures_stay_while_a_retry_that_failed_can_be_resumed(kit: BatchKit, later: Later, key: str | None):
    does = {"first": True, "full": False}

    def fail(chunk: Chunk[int]) -> None:
        if does["full"]:
            raise OutputUnusable("out.csv", problem="the disk is full")
        for item in chunk:
            if does["first"]:
                chunk.fail(item, "it is odd")

    failing = job(span(3), fail, max_failures=3)
    origin = failing.using(key=key).start() if key else failing.start()
    does.update(first=False, full=True)
    retry = origin.retry_failures()
    assert RunState.FAILED == retry.refresh().state
    later.seconds = MONTH.total_seconds() + 1

    assert 0 == kit.purge(MONTH, state="succeeded").failures
    does.update(full=False)
    retry.resume()

    assert (RunState.SUCCEEDED, 3) == (retry.refresh().state, retry.progress.done)
    later.seconds *= 2.1
    assert 3 == kit.purge(MONTH).failures, "now nobody can try them again"


@pytest.mark.parametrize("key", [None, "January"])
def test_nobody_tries_again_what_was_purged(
    kit: BatchKit, later: Later, monkeypatch: pytest.MonkeyPatch, key: str | None
):
    def fail(chunk: Chunk[int]) -> None:
        if is_full:
            raise OutputUnusable("out.csv", problem="the disk is full")
        for item in chunk:
            chunk.fail(item, "it is odd")

    is_full: list[bool] = []
    failing = job(span(3), fail, max_failures=3)
    origin = failing.using(key=key).start() if key else failing.start()
    is_full.append(True)
    retry = origin.retry_failures()
    later.seconds = MONTH.total_seconds() + 1
    with monkeypatch.context() as older:
        # As older versions did.
        older.setattr(purging.PurgeStatements, "_tries_again", lambda statements, _: statements.transition.c.id == 0)
        assert 3 == kit.purge(MONTH, state="succeeded").failures

    for step in (retry.resume, retry.rerun, retry.retry_failures):
        with pytest.raises(RunPurged, match=f"{origin.id} was purged, and with it the failures .* of run {retry.id}"):
            step()
    assert RunState.FAILED == retry.refresh().state


def test_failures_that_are_tried_again_in_the_middle_of_a_purge_stay(kit: BatchKit, later: Later):
    origin = fails_at_some().start()
    later.seconds = MONTH.total_seconds() + 1
    store = kit._store  # noqa: SLF001  the moment between finding and beginning has no public name
    assert [origin.id] == store.purging._find(MONTH.total_seconds(), [RunState.SUCCEEDED], 10, "")  # noqa: SLF001
    with closing(BatchKit(store.database.engine, queue=LocalQueue(), clock=Clock(later))) as other:
        other.run(origin.id).retry_failures()
    assert None is store.purging._begin(origin.id, MONTH.total_seconds(), [RunState.SUCCEEDED])  # noqa: SLF001
    assert 5 == rows(kit)["failure"]


def test_each_transaction_removes_few_rows(kit: BatchKit, later: Later, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(purging, "_ROWS_AT_ONCE", 2)
    monkeypatch.setattr(purging, "_RUNS_AT_ONCE", 2)
    for _ in range(5):
        fails_at_some().start()
    later.seconds = MONTH.total_seconds() + 1
    assert 3 == kit.purge(MONTH, limit=3).runs
    assert 2 == kit.purge(MONTH).runs
    assert {"run": 0, "partition": 0, "transition": 0, "failure": 0} == rows(kit)


def test_a_run_that_goes_on_in_the_middle_of_a_purge_is_left_whole(kit: BatchKit, later: Later):
    def fail(chunk: Chunk[int]) -> None:
        raise ValueError("no")

    failing = job(span(3), fail)
    run = failing.start()
    later.seconds = MONTH.total_seconds() + 1
    store = kit._store  # noqa: SLF001  the moment between finding and beginning has no public name
    found = store.purging._find(MONTH.total_seconds(), [RunState.FAILED], 10, "")  # noqa: SLF001
    assert [run.id] == found
    store.runs.resume(found[0])
    assert None is store.purging._begin(found[0], MONTH.total_seconds(), [RunState.FAILED])  # noqa: SLF001
    assert run.refresh().state is RunState.QUEUED
    assert run.history()


@pytest.mark.parametrize(
    ("older_than", "state", "problem"),
    [
        (0, None, "older_than must be longer"),
        ("30", None, "older_than must be a timedelta"),
        (MONTH, "running", "only runs that have ended"),
        (MONTH, "over", "over"),
    ],
)
def test_a_purge_that_makes_no_sense_is_refused(sqlite_url: str, older_than: Any, state: Any, problem: str):
    with closing(BatchKit(sqlite_url, queue=InlineQueue())) as kit:
        kit.migrate()
        with pytest.raises(InvalidPurge, match=problem):
            kit.purge(older_than, state=state)


def test_the_command_tells_what_it_has_removed(sqlite_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BATCHKIT_DATABASE_URL", sqlite_url)
    with closing(BatchKit(sqlite_url, queue=InlineQueue(), clock=Clock(lambda: -MONTH.total_seconds() * 2))) as kit:
        kit.migrate()
        works().start()
    # Its id is of now, though it began two months ago.
    monkeypatch.setattr(purging, "_CLOCK_SLACK_SECONDS", MONTH.total_seconds() * 2)
    wrong = CliRunner().invoke(commands, ["purge", "--older-than", "1 month"])
    assert "such as 30d, 12h or 90m" in str(wrong.exception)
    done = CliRunner().invoke(commands, ["purge", "--older-than", "30d", "--json"])
    assert 0 == done.exit_code, done.output
    assert 1 == json.loads(done.stdout)["runs"]
    assert "0 runs" in CliRunner().invoke(commands, ["purge", "--older-than", "30d"]).stdout
