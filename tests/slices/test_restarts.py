"""`restart_after_every_yield` finds what a resumable keeps elsewhere than in its cursor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import insert

from batchkit import BatchKit, RunState, Steps
from batchkit.errors import InvalidJob, RunFailed
from batchkit.testing import CursorForgotten, restart_after_every_yield
from tests.slices.conftest import Ledger, ledger, write
from tests.slices.conftest import job as batched_job
from tests.slices.test_resumables import job


def test_a_generator_that_goes_on_from_its_cursor_does_the_same_as_undisturbed(kit: BatchKit, done: Ledger):
    calls: list[object] = []

    def count(steps: Steps[int], until: int) -> Iterator[int]:
        calls.append(steps.cursor)
        for item in range(steps.cursor or 0, until):
            steps.connection.execute(insert(ledger), [{"item": item}])
            yield item + 1

    run = restart_after_every_yield(job(count, finish=lambda finish, until: finish.done), until=4)
    assert (RunState.SUCCEEDED, 5, 5) == (run.state, run.progress.done, run.result)
    assert [None, 1, 2, 3, 4] == calls
    assert [0, 1, 2, 3] == done.items()


def test_a_forgotten_cursor_is_found(kit: BatchKit, done: Ledger):
    def count(steps: Steps[int]) -> Iterator[int]:
        for item in range(4):
            steps.connection.execute(insert(ledger), [{"item": item}])
            yield item

    with pytest.raises(CursorForgotten, match=r"steps\.cursor") as found:
        restart_after_every_yield(job(count))
    assert {0} == set(done.items())
    assert RunState.CANCELLED is kit.run(found.value.run_id).state


def test_a_variable_that_is_not_in_the_cursor_shows_in_what_was_written(kit: BatchKit, done: Ledger):
    def add_up(steps: Steps[int]) -> Iterator[int]:
        total = 0
        for item in range(steps.cursor or 0, 4):
            total += item
            yield item + 1
        steps.connection.execute(insert(ledger), [{"item": total}])

    assert RunState.SUCCEEDED == job(add_up).start().state
    restart_after_every_yield(job(add_up))
    assert [0, 6] == done.items()


def test_an_error_of_the_job_is_raised(kit: BatchKit, done: Ledger):
    def fail(steps: Steps[int]) -> Iterator[int]:
        if steps.cursor is None:
            yield 1
        raise KeyError("gone")

    with pytest.raises(RunFailed, match="gone") as failed:
        restart_after_every_yield(job(fail))
    assert isinstance(failed.value.__cause__, KeyError)


def test_a_batched_job_is_refused(kit: BatchKit, done: Ledger):
    made: Any = batched_job(lambda: None, write)
    with pytest.raises(InvalidJob, match="never yields"):
        restart_after_every_yield(made)
