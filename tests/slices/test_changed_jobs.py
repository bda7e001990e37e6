"""A run whose job, source, file or version has changed since it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchkit import BatchKit, Chunk, RunState, batched, csv_rows, items, span
from batchkit.errors import InvalidJob, SourceChanged
from batchkit.job import JOBS
from batchkit.queues import LocalQueue
from batchkit.slicing import Ending
from batchkit.stopping import Stop
from tests.slices.conftest import Ledger, job, write


def _interrupted(kit: BatchKit, source: Any, *, after: int = 1) -> Any:
    """Start a run that stops after some chunks of 10."""
    holder: dict[str, Any] = {"source": source}

    def work(chunk: Chunk[Any]) -> None:
        if chunk.number == after:
            stop.request("SIGTERM")

    made = job(lambda: holder["source"], work, chunk_size=10)
    run = kit.start_run_here(JOBS[made.name], "{}")
    with Stop() as stop:
        kit.work_run(run.id, stop=stop)
    assert (RunState.QUEUED, 10 * after) == (run.refresh().state, run.progress.done)
    return run, holder


def test_a_run_whose_source_is_of_another_kind_is_left_as_it_is_and_says_why(kit: BatchKit, done: Ledger):
    run, holder = _interrupted(kit, span(50))
    holder["source"] = items(list(range(50)))
    with Stop() as stop:
        outcome = kit.work_run(run.id, stop=stop)
    assert outcome is not None
    assert isinstance(outcome.error, SourceChanged)
    assert (RunState.QUEUED, 10) == (run.refresh().state, run.progress.done)
    assert "kind was 'span' and is 'items'" in run.waiting_reason

    holder["source"] = span(50)
    with Stop() as stop:
        kit.work_run(run.id, stop=stop)
    assert (RunState.SUCCEEDED, 50, None) == (run.refresh().state, run.progress.done, run.waiting_reason)


def test_a_person_can_accept_another_source_whose_cursor_means_the_same(kit: BatchKit, done: Ledger):
    run, holder = _interrupted(kit, span(50))
    holder["source"] = items(list(range(50)))
    with Stop() as stop:
        kit.work_run(run.id, stop=stop)
    assert run.refresh().waiting_reason is not None
    assert "resume ID --accept" in run.waiting_reason

    run.resume(accept=True)
    assert (RunState.SUCCEEDED, 50, None) == (run.refresh().state, run.progress.done, run.waiting_reason)
    # What was accepted is what the run goes on with from now on.
    failing, held = _interrupted(kit, items(list(range(50))))
    held["source"] = span(50)
    failing.resume(accept=True)
    assert RunState.SUCCEEDED == failing.refresh().state


def test_a_run_of_another_version_of_the_code_waits_and_says_so(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if chunk.number == 1:
            stop.request("SIGTERM")

    old = job(span(30), work, chunk_size=10, version=1)
    run = kit.start_run_here(JOBS[old.name], "{}")
    with Stop() as stop:
        kit.work_run(run.id, stop=stop)
    batched(span(30), name=old.name, chunk_size=10, version="2")(work)
    with Stop() as stop:
        kit.work_run(run.id, stop=stop)
    assert (RunState.QUEUED, 10) == (run.refresh().state, run.progress.done)
    assert run.waiting_reason is not None
    assert "version was 1 and is '2'" in run.waiting_reason
    run.resume(accept=True)
    assert (RunState.SUCCEEDED, list(range(30))) == (run.refresh().state, done.items())


@pytest.mark.parametrize("version", [1.5, True, ["1"]])
def test_what_is_no_version_is_refused(version: Any):
    with pytest.raises(InvalidJob, match="version is a string or a number"):
        job(span(1), write, version=version)


def test_a_changed_file_can_be_accepted(kit: BatchKit, done: Ledger, tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_text("a\n" + "".join(f"{i}\n" for i in range(40)))
    run, holder = _interrupted(kit, csv_rows(path))
    path.write_text("a\n" + "".join(f"{i}\n" for i in range(60)))
    holder["source"] = csv_rows(path)
    with Stop() as stop:
        kit.work_run(run.id, stop=stop)
    assert RunState.FAILED == run.refresh().state
    run.resume(accept=True)
    assert RunState.SUCCEEDED == run.refresh().state


def test_a_run_whose_job_takes_other_params_now_is_left_as_it_is(kit: BatchKit, done: Ledger):
    def source(limit: int) -> Any:
        return span(limit)

    def renamed(size: int) -> Any:
        return span(size)

    local = BatchKit(kit._store.database.engine, queue=LocalQueue())  # noqa: SLF001  so that start() does not work it
    run = job(source, lambda chunk, limit: None).start(5)
    old = JOBS._jobs.pop(run.job)  # noqa: SLF001  as after a deploy
    batched(renamed, name=run.job)(lambda chunk, size: None)
    with Stop() as stop:
        outcome = local.work_run(run.id, stop=stop)
    assert outcome is not None
    assert (Ending.DECLINED, RunState.QUEUED) == (outcome.ending, run.refresh().state)
    assert "started with other params" in str(run.waiting_reason)
    JOBS._jobs[run.job] = old  # noqa: SLF001  as after rolling the deploy back


def test_a_file_that_was_changed_is_not_gone_on_with(kit: BatchKit, done: Ledger, tmp_path: Path):
    path = tmp_path / "x.csv"
    content = "a\n" + "".join(f"{i}\n" for i in range(50))
    path.write_text(content)
    run, holder = _interrupted(kit, csv_rows(path))
    path.write_text(content.replace("17", "71"))
    holder["source"] = csv_rows(path)
    with Stop() as stop:
        kit.work_run(run.id, stop=stop)
    assert (RunState.FAILED, 10) == (run.refresh().state, run.progress.done)
    assert "digest was" in run.error.message

    path.write_text(content)
    holder["source"] = csv_rows(path)
    run.resume()
    assert (RunState.SUCCEEDED, 50) == (run.refresh().state, run.progress.done)
