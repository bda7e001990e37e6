"""A chunk that would outlive the grace is rolled back and handed on before the kill."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from batchkit import BatchKit, Chunk, RunState, span
from batchkit.errors import BatchkitError
from batchkit.grace import grace_seconds, working_seconds
from batchkit.queues import LocalQueue
from batchkit.slicing import Ending
from batchkit.stopping import Stop
from tests.slices.conftest import Ledger, job, write

_FOR_EVER = 3600


@pytest.fixture
def hasty(database_url: str) -> Any:
    """Give a kit whose platform gives little time."""
    with closing(BatchKit(database_url, queue=LocalQueue(), grace=2.5)) as kit:
        kit.migrate()
        yield kit


def _cut(kit: BatchKit, run: Any, stop: Stop, began: threading.Event) -> Any:
    """Work the run, and ask for a stop once the chunk has begun."""

    def ask() -> None:
        began.wait()
        stop.request("SIGTERM")

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        return kit.work_run(run.id, stop=stop)
    finally:
        began.set()
        asking.join()


@pytest.mark.parametrize("way", ["python", "sql"])
def test_a_chunk_that_would_outlive_the_grace_is_undone_and_handed_on(hasty: BatchKit, done: Ledger, way: str):
    sleep = {"postgresql": f"SELECT pg_sleep({_FOR_EVER})", "mysql": f"SELECT sleep({_FOR_EVER})"}
    dialect = done.engine.dialect.name
    if way == "sql" and dialect not in sleep:
        way = "endless sql"
    began = threading.Event()

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if chunk.number == 2 and not began.is_set():
            began.set()
            if way == "python":
                time.sleep(_FOR_EVER)
            elif way == "sql":
                chunk.session.execute(text(sleep[dialect]))
            else:
                while True:
                    chunk.session.execute(text("SELECT 1"))

    before = signal.getsignal(signal.SIGURG)
    run = job(span(10), work, chunk_size=5).start()
    with Stop() as stop:
        outcome = _cut(hasty, run, stop, began)
    assert Ending.INTERRUPTED is outcome.ending
    assert before == signal.getsignal(signal.SIGURG)
    assert (RunState.QUEUED, 5, 1) == (run.refresh().state, run.progress.done, run.progress.interruptions)
    assert "rolled back" in run.history()[-1].reason
    with Stop() as stop:
        hasty.work_run(run.id, stop=stop)
    assert RunState.SUCCEEDED == run.refresh().state
    assert list(range(10)) == done.items()
    if dialect == "mysql":
        # The server would not notice for an hour that nobody waits for the reply.
        with done.engine.connect() as connection:
            left = connection.execute(
                text("SELECT info FROM information_schema.processlist WHERE info LIKE :sql"), {"sql": "SELECT sleep%"}
            ).all()
            assert [] == left


def test_a_chunk_that_ends_in_time_is_kept(hasty: BatchKit, done: Ledger):
    began = threading.Event()

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        began.set()
        while not chunk.should_stop:
            time.sleep(0.01)

    run = job(span(10), work, chunk_size=5).start()
    with Stop() as stop:
        _cut(hasty, run, stop, began)
    assert (RunState.QUEUED, 5) == (run.refresh().state, run.progress.done)


def test_a_finish_that_would_outlive_the_grace_is_undone_and_handed_on(hasty: BatchKit, done: Ledger):
    began = threading.Event()

    def finish(end: Any) -> int:
        if not began.is_set():
            began.set()
            time.sleep(_FOR_EVER)
        return int(end.done)

    run = job(span(10), write, finish=finish).start()
    with Stop() as stop:
        _cut(hasty, run, stop, began)
    assert (RunState.QUEUED, 10) == (run.refresh().state, run.progress.done)
    with Stop() as stop:
        hasty.work_run(run.id, stop=stop)
    assert 10 == run.refresh().result


def test_the_grace_is_given_or_set_and_never_guessed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("BATCHKIT_GRACE_SECONDS", raising=False)
    assert grace_seconds(None) is None
    assert 30 == grace_seconds("heroku")
    assert 12.5 == grace_seconds(timedelta(seconds=12.5))
    monkeypatch.setenv("BATCHKIT_GRACE_SECONDS", "45")
    assert 45 == grace_seconds(None)
    assert 10 == grace_seconds("docker")
    monkeypatch.setenv("BATCHKIT_GRACE_SECONDS", "kubernetes")
    assert 30 == grace_seconds(None)


@pytest.mark.parametrize("wrong", ["herokuu", -1, 0, "0", True, "nan"])
def test_a_wrong_grace_is_named(wrong: Any):
    with pytest.raises(BatchkitError, match="kubernetes"):
        grace_seconds(wrong)


def test_a_fifth_of_the_grace_is_spared_and_two_seconds_at_least():
    assert (24.0, 8.0, 3.0, 0.0) == tuple(map(working_seconds, (30.0, 10.0, 5.0, 1.0)))
