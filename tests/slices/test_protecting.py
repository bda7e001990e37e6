"""What must not be stopped: jobs that say so, and parts of chunks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from batchkit import BatchKit, Chunk, Run, RunState, batched, resumable, span
from batchkit.draining import DrainNotice
from batchkit.errors import InvalidJob
from batchkit.job import JOBS
from batchkit.queues import InlineQueue
from batchkit.stopping import Stop
from tests.slices.conftest import Ledger, job, write

GRACE_SECONDS = 10.0


@pytest.fixture
def graceful(database_url: str) -> Iterator[BatchKit]:
    """Give a kit on each database whose platform waits for ten seconds."""
    with closing(BatchKit(database_url, queue=InlineQueue(), grace=GRACE_SECONDS)) as made:
        made.migrate()
        yield made


@pytest.fixture
def hasty(server_url: str) -> Iterator[BatchKit]:
    """Give a kit whose platform waits for hardly more than what is kept for going."""
    with closing(BatchKit(server_url, queue=InlineQueue(), grace=2.3)) as made:
        made.migrate()
        yield made


def stop_once(began: threading.Event, stop: Stop) -> None:
    assert began.wait(20)
    stop.request("SIGTERM")


def is_interruptible(kit: BatchKit) -> bool:
    (held,) = kit.busy().slices
    return held.is_interruptible


def work(kit: BatchKit, job: Any) -> Run:
    """Work a run as a worker's slices do."""
    run: Run = job.start()
    return run.refresh()


def test_the_first_chunk_of_a_job_is_protected_and_the_others_are_not(graceful: BatchKit, done: Ledger):
    seen: list[bool] = []

    def look(chunk: Chunk[int]) -> None:
        write(chunk)
        seen.append(is_interruptible(graceful))

    look_at = job(span(6), look, chunk_size=2)
    assert RunState.SUCCEEDED == work(graceful, look_at).state
    assert [False, True, True] == seen
    assert RunState.SUCCEEDED == work(graceful, look_at).state
    assert [True, True, True] == seen[3:], "the job is known by now"


def test_a_job_that_is_not_interruptible_is_protected_all_the_time(graceful: BatchKit, done: Ledger):
    seen: list[bool] = []

    def look(chunk: Chunk[int]) -> None:
        write(chunk)
        seen.append(is_interruptible(graceful))

    assert RunState.SUCCEEDED == work(graceful, job(span(6), look, chunk_size=2, interruptible=False)).state
    assert [False, False, False] == seen
    assert () == graceful.busy().slices


def test_a_part_is_told_of_before_it_begins_unless_it_is_known_to_end_within_the_grace(server_url: str):
    ledger = Ledger(server_url)
    seen: list[tuple[bool, bool, bool]] = []

    def look(chunk: Chunk[int]) -> None:
        write(chunk)
        before = is_interruptible(kit)
        with chunk.protected(), chunk.protected():
            inside = is_interruptible(kit)
        seen.append((before, inside, is_interruptible(kit)))

    with closing(BatchKit(server_url, queue=InlineQueue(), grace=120)) as kit:
        kit.migrate()
        look_at = job(span(6), look, chunk_size=2)
        # Once, so that the job is known.
        assert RunState.SUCCEEDED == work(kit, look_at).state
        seen.clear()
        assert RunState.SUCCEEDED == work(kit, look_at).state
    assert (True, False, True) == seen[0], "of the length of the first part of a slice nobody knows"
    assert [(True, True, True)] * 2 == seen[1:], "and that of the others is short"
    ledger.engine.dispose()


def test_a_part_that_may_outlast_the_grace_is_protected(hasty: BatchKit, server_url: str):
    ledger = Ledger(server_url)
    inside: list[bool] = []

    def look(chunk: Chunk[int]) -> None:
        write(chunk)
        with chunk.protected():
            # Longer than the 0.3 s that a signal leaves
            time.sleep(0.35)
            inside.append(is_interruptible(hasty))

    assert RunState.SUCCEEDED == work(hasty, job(span(6), look, chunk_size=2)).state
    assert [False, False, False] == inside
    assert list(range(6)) == ledger.items()
    ledger.engine.dispose()


def test_a_chunk_that_is_not_interruptible_is_not_cut_short_when_the_grace_ends(hasty: BatchKit, server_url: str):
    ledger = Ledger(server_url)
    began = threading.Event()

    def long(chunk: Chunk[int]) -> None:
        write(chunk)
        began.set()
        time.sleep(1.0)

    run = job(span(4), long, chunk_size=2, interruptible=False)
    run = hasty.start_run_here(hasty.jobs[run.name], "{}")
    with Stop() as stop:
        threading.Thread(target=stop_once, args=(began, stop)).start()
        hasty.work_run(run.id, stop=stop)
    assert [0, 1] == ledger.items(), "the chunk was ended, and no other begun"
    assert RunState.QUEUED == run.refresh().state
    ledger.engine.dispose()


def test_a_drain_cuts_no_chunk_short(server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BATCHKIT_RUN_DIR", str(tmp_path))

    def long(chunk: Chunk[int]) -> None:
        write(chunk)
        DrainNotice().put_up(seconds=60)
        # Longer than the 0.3 s that a signal would leave it.
        time.sleep(1.0)

    with closing(BatchKit(server_url, grace=2.3)) as kit, Stop() as stop:
        kit.migrate()
        ledger = Ledger(server_url)
        run = job(span(4), long, chunk_size=2).start()
        kit._worker.work_next(queues=None, stop=stop)  # noqa: SLF001  a slice, as workers work them
        assert [0, 1] == ledger.items(), "the chunk was ended, and no other begun"
        assert RunState.QUEUED == run.refresh().state
        ledger.engine.dispose()


def test_no_part_begins_for_which_the_grace_has_no_time_left(server_url: str):
    began: list[float] = []

    def parts(chunk: Chunk[int]) -> None:
        write(chunk)
        for _ in range(10):
            with chunk.protected():
                began.append(time.monotonic())
                time.sleep(0.4)
            if len(began) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with closing(BatchKit(server_url, queue=InlineQueue(), grace=3.0)) as kit:
        kit.migrate()
        ledger = Ledger(server_url)
        run = job(span(2), parts, chunk_size=2)()
        assert RunState.QUEUED == run.state
        assert len(began) < 10
        assert [] == ledger.items(), "the chunk was undone"
        ledger.engine.dispose()


def test_the_time_that_a_chunk_may_take_has_no_end_where_it_must_not_be_stopped():
    def function(chunk: Chunk[int]) -> None:
        """Do nothing."""

    assert JOBS[job(span(1), function, interruptible=False).name].options.chunk_timeout == float("inf")
    assert 5.0 == JOBS[job(span(1), function, interruptible=False, chunk_timeout=5).name].options.chunk_timeout
    assert 600.0 == JOBS[job(span(1), function).name].options.chunk_timeout


@pytest.mark.parametrize(
    "make", [lambda it: batched(span(1), interruptible=it), lambda it: resumable(interruptible=it)]
)
@pytest.mark.parametrize("wrong", [None, 1, "no"])
def test_what_is_no_boolean_is_refused_with_what_to_write_instead(make: Any, wrong: Any):
    def function(chunk: Any) -> Iterator[int]:
        yield 1

    with pytest.raises(InvalidJob, match=r"with chunk\.protected\(\):"):
        make(wrong)(function)
