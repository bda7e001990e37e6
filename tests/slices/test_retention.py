"""A kit that is told how old runs may be removes those by itself, a little with each sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Table, create_engine, insert, select

from batchkit import BatchKit, RunState, retention
from batchkit.errors import InvalidPurge, RunNotFound
from batchkit.queues import InlineQueue, LocalQueue
from batchkit.store import Clock, purging
from tests.slices.test_purging import MONTH, Later, fails_at_some, rows, works


@pytest.fixture
def later() -> Later:
    """Give a clock that the test moves."""
    return Later()


@pytest.fixture
def make(database_url: str, later: Later) -> Iterator[Callable[..., BatchKit]]:
    """Give what makes kits on each database, with that clock."""
    made: list[BatchKit] = []

    def one(**options: Any) -> BatchKit:
        kit = BatchKit(database_url, queue=InlineQueue(), clock=Clock(later), **options)
        kit.migrate()
        made.append(kit)
        return kit

    yield one
    for kit in made:
        kit.close()


def test_a_sweep_removes_what_is_old_and_nothing_else(make: Callable[..., BatchKit], later: Later):
    kit = make(purge_older_than=MONTH)
    old, keyed = fails_at_some().start(), works().using(key="January").start()
    kit.recover()
    assert RunState.SUCCEEDED == old.refresh().state

    # By a kit that has not looked yet: where nothing was old, one looks again after some minutes only.
    later.seconds = MONTH.total_seconds() + 1
    other = make(purge_older_than=MONTH)
    new = works().start()
    _sweep_until(lambda: 2 == rows(other)["run"], other)

    with pytest.raises(RunNotFound):
        other.run(old.id)
    assert (RunState.SUCCEEDED, 5) == (keyed.refresh().state, keyed.progress.done)
    assert RunState.SUCCEEDED == new.refresh().state
    assert (2, 2, 0) == tuple(rows(other)[name] for name in ("run", "partition", "failure"))


def _sweep_until(is_done: Callable[[], bool], *kits: BatchKit) -> None:
    """Sweep, all at once, until it is done: how much one of them does is a matter of time."""
    with ThreadPoolExecutor(len(kits)) as pool:
        for _ in range(50):
            if is_done():
                return
            list(pool.map(lambda kit: kit.recover(), kits))
    message = "it is not done after many sweeps"
    raise AssertionError(message)


def test_without_being_told_so_a_sweep_removes_nothing(make: Callable[..., BatchKit], later: Later):
    kit = make()
    old = works().start()
    later.seconds = MONTH.total_seconds() * 12
    kit.recover()
    assert old.id == kit.run(old.id).id


def test_a_sweep_does_a_little_and_the_next_one_goes_on(
    make: Callable[..., BatchKit], later: Later, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retention, "_BUDGET_SECONDS", 0.0)
    monkeypatch.setattr(purging, "_ROWS_AT_ONCE", 2)
    kit = make(purge_older_than=MONTH)
    for _ in range(3):
        fails_at_some().start()
    later.seconds = MONTH.total_seconds() + 1

    seen = [rows(kit)]
    while rows(kit)["run"]:
        kit.recover()
        seen.append(rows(kit))
        # One transaction each time.
        assert sum(seen[-2].values()) - sum(seen[-1].values()) <= 3
        assert len(seen) < 100
    assert {"run": 0, "partition": 0, "transition": 0, "failure": 0} == rows(kit)


def test_where_nothing_is_old_it_does_not_look_each_time(make: Callable[..., BatchKit], later: Later):
    kit = make(purge_older_than=MONTH)
    run = works().start()
    kit.recover()
    later.seconds = MONTH.total_seconds() + 1
    kit.recover()
    assert run.id == kit.run(run.id).id


def test_many_sweeps_at_once_remove_each_run_once(make: Callable[..., BatchKit], later: Later):
    kits = [make(purge_older_than=MONTH) for _ in range(4)]
    for _ in range(8):
        fails_at_some().start()
    later.seconds = MONTH.total_seconds() + 1
    _sweep_until(lambda: not rows(kits[0])["run"], *kits)
    assert {"run": 0, "partition": 0, "transition": 0, "failure": 0} == rows(kits[0])


@pytest.mark.parametrize("older_than", [0, "90d", timedelta(days=-1)])
def test_an_age_that_is_none_is_refused(sqlite_url: str, older_than: Any):
    with pytest.raises(InvalidPurge, match="purge_older_than"), closing(BatchKit(sqlite_url, queue=LocalQueue())):
        BatchKit(sqlite_url, queue=LocalQueue(), purge_older_than=older_than)


def test_what_cannot_be_removed_is_in_nobodys_way(make: Callable[..., BatchKit], later: Later, database_url: str):
    run = make(purge_older_than=MONTH).metadata.tables["batchkit_run"].c.id
    works().start()
    later.seconds = MONTH.total_seconds() + 1
    engine = create_engine(database_url)
    with engine.begin() as tx:
        # Somebody's own table that holds on to runs.
        theirs = Table(
            "theirs", run.table.metadata, Column("run", run.type, ForeignKey(run)), **run.table.dialect_kwargs
        )
        theirs.create(tx)
        tx.execute(insert(theirs).from_select(["run"], select(run)))
        theirs.metadata.remove(theirs)
    engine.dispose()

    other = make(purge_older_than=MONTH)
    other.recover()
    new = works().start()
    other.recover()

    assert RunState.SUCCEEDED == new.refresh().state
