"""Runs are worked, interrupted and gone on with in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from batchkit import BatchKit, Chunk, Finish, RunState, Source, batched, span
from batchkit.errors import RunFailed
from batchkit.testing import InlineQueue, go_on, interrupt_after, restart_after_every_chunk, run_inline


@pytest.fixture(autouse=True)
def kit(sqlite_url: str) -> Iterator[BatchKit]:
    """Give a kit whose queue works nothing by itself."""
    with closing(BatchKit(sqlite_url)) as made:
        made.migrate()
        yield made


def numbers(last: int) -> Source[int]:
    return span(last)


def finished(finish: Finish, last: int) -> list[dict[str, object]]:
    return list(finish.carries)


@batched(numbers, name="tests.inline", chunk_size=10, finish=finished)
def add(chunk: Chunk[int], last: int) -> None:
    if chunk[0] < 0 or last == 13:
        raise ValueError("thirteen")
    chunk.carry["sum"] = int(str(chunk.carry.get("sum", 0))) + sum(chunk)


def test_a_run_is_worked_to_its_end_here():
    run = run_inline(add, last=25)
    assert (RunState.SUCCEEDED, 25, [{"sum": 300}]) == (run.state, run.progress.done, run.result)


def test_a_run_is_interrupted_after_so_many_chunks_and_goes_on():
    run = interrupt_after(2, add, 45)
    assert (RunState.QUEUED, 20, 1) == (run.state, run.progress.done, run.progress.interruptions)
    assert (RunState.QUEUED, 30) == (go_on(run, chunks=1).state, run.progress.done)
    assert (RunState.SUCCEEDED, 45, [{"sum": 990}]) == (go_on(run).state, run.progress.done, run.result)


def test_a_run_that_is_shorter_than_that_ends():
    assert RunState.SUCCEEDED == interrupt_after(9, add, last=25).state


def test_each_chunk_can_have_a_slice_of_its_own():
    run = restart_after_every_chunk(add, last=45)
    assert (RunState.SUCCEEDED, [{"sum": 990}]) == (run.state, run.result)
    assert 5 == run.progress.interruptions
    assert 6 == run.partitions()[0].fence


def test_a_run_that_fails_raises_with_the_cause():
    for work in (run_inline, restart_after_every_chunk):
        with pytest.raises(RunFailed, match="thirteen") as failed:
            work(add, last=13)
        assert isinstance(failed.value.__cause__, ValueError)


def test_a_paused_run_is_left_so():
    run = interrupt_after(1, add, last=25).pause()
    assert (RunState.PAUSED, 10) == (go_on(run).state, run.progress.done)


def test_no_chunk_at_all_is_refused():
    with pytest.raises(ValueError, match="1 or more: got 0"):
        interrupt_after(0, add, last=25)


def test_the_inline_queue_is_there_as_well(kit: BatchKit, sqlite_url: str):
    with closing(BatchKit(sqlite_url, queue=InlineQueue())):
        assert RunState.SUCCEEDED == add.start(last=25).state
