"""CeleryQueue in one process: eager mode, signatures, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from celery import Celery

from batchkit import BatchKit, Chunk, RunState, batched, span
from batchkit.errors import InvalidDatabase, InvalidQueue, RunActive, RunFailed
from batchkit.job import JOBS
from batchkit.queues import CeleryQueue
from tests.slices.conftest import Ledger, job, write

_names = itertools.count()


@pytest.fixture
def app() -> Iterator[Celery]:
    """Give an app that works its messages where they are sent."""
    with Celery("eager", set_as_current=False) as made:
        made.conf.update(task_always_eager=True, task_eager_propagates=True)
        yield made


@pytest.fixture
def kit(app: Celery, sqlite_url: str) -> Iterator[BatchKit]:
    """Give a kit whose queue is that app."""
    with closing(BatchKit(sqlite_url, queue=CeleryQueue(app))) as made:
        made.migrate()
        yield made


@pytest.fixture
def done(sqlite_url: str) -> Ledger:
    """Give the ledger that `write` writes into."""
    return Ledger(sqlite_url)


def test_an_eager_start_works_the_run_to_its_end(kit: BatchKit, done: Ledger):
    run = job(span(10), write, chunk_size=3, slice_time=0.001).start()
    assert RunState.SUCCEEDED == run.refresh().state
    assert list(range(10)) == done.items()


def test_an_eager_task_gives_what_finish_returned(kit: BatchKit, done: Ledger, app: Celery):
    made = job(span(10), write, finish=lambda end: {"done": end.done})
    assert {"done": 10} == app.tasks[made.name].delay().get()
    assert {"done": 10} == made.s().apply_async().get()
    assert 2 == len(kit.runs())


def test_a_task_of_a_job_whose_unique_run_has_not_ended_fails_with_its_id(kit: BatchKit, done: Ledger, app: Celery):
    made = job(span(10), write, unique=True)
    run = kit.start_run_here(JOBS[made.name], "{}")
    with pytest.raises(RunActive, match=run.id):
        app.tasks[made.name].delay()
    run.cancel()
    app.tasks[made.name].delay()
    assert 10 == done.count()


def test_an_eager_task_raises_what_its_run_died_of(kit: BatchKit, done: Ledger, app: Celery):
    def work(chunk: Chunk[int]) -> None:
        message = "no"
        raise ValueError(message)

    made = job(span(10), work)
    with pytest.raises(RunFailed, match="no"):
        app.tasks[made.name].delay()


def test_a_task_of_the_apps_own_keeps_its_name_and_options(sqlite_url: str, done: Ledger, app: Celery):
    """`@app.task` above `@batched` is the job's task; the queue makes no second one of the same name."""

    def numbers() -> Any:
        return span(4)

    name = f"tests.task{next(_names)}"
    decorated = app.task(name=name, rate_limit="5/m", shared=False)(batched(numbers, name=name)(lambda_free))
    with closing(BatchKit(sqlite_url, queue=CeleryQueue(app))) as kit:
        kit.migrate()
        app.finalize()
        assert "5/m" == app.tasks[name].rate_limit
        decorated.delay()
        assert [RunState.SUCCEEDED] == [run.state for run in kit.runs()]


def lambda_free(chunk: Chunk[int]) -> None:
    """Write a chunk's items into the ledger."""
    write(chunk)


def test_a_job_made_of_a_lambda_keeps_no_other_from_being_a_task(sqlite_url: str, done: Ledger, app: Celery):
    nameless, named = job(span(2), lambda chunk: None), job(span(2), write)
    with closing(BatchKit(sqlite_url, queue=CeleryQueue(app))):
        app.finalize()
        assert named.name in app.tasks
        assert nameless.name not in app.tasks


def test_a_queue_belongs_to_one_kit(app: Celery, sqlite_url: str):
    queue = CeleryQueue(app)
    with closing(BatchKit(sqlite_url, queue=queue)), pytest.raises(InvalidQueue, match="another kit"):
        BatchKit(sqlite_url, queue=queue)


def test_a_queue_without_a_database_is_refused(app: Celery, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("BATCHKIT_DATABASE_URL", raising=False)
    with pytest.raises(InvalidDatabase, match="BATCHKIT_DATABASE_URL"):
        BatchKit(queue=CeleryQueue(app))


def test_only_celery_has_signatures(sqlite_url: str):
    with closing(BatchKit(sqlite_url)), pytest.raises(InvalidQueue, match="CeleryQueue"):
        job(span(3), write).s()
