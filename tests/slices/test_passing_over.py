"""What a worker is not to take does not keep it from what it may."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchkit import BatchKit, RunState, span
from batchkit import worker as working
from batchkit.draining import VARIABLE as RUN_FOLDER
from batchkit.draining import DrainNotice
from batchkit.queues import LocalQueue
from batchkit.slicing import Ending, Outcome
from batchkit.stopping import Stop
from batchkit.tracking.tie import VARIABLE
from tests.slices.conftest import Ledger, job, write
from tests.waiting import eventually

_LISTED = 10


@pytest.fixture
def queued(database_url: str) -> Iterator[BatchKit]:
    """Give a kit whose runs wait for workers, on each database in turn."""
    made = BatchKit(database_url, queue=LocalQueue(), grace=60)
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[str]:
    """Be a main process whose platform protects nothing; give its address."""
    path = str(tmp_path / "main")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()
        thread = threading.Thread(target=_refuse, args=(listening,), daemon=True)
        thread.start()
        yield path
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def _refuse(listening: socket.socket) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection, connection.makefile("rw") as lines:
            for line in lines:
                question = json.loads(line).get("asks")
                if question:
                    lines.write(json.dumps({"asked": question, "granted": False}) + "\n")
                    lines.flush()


def _looks(kit: BatchKit, stop: Stop) -> Callable[[], Outcome | None]:
    return lambda: kit._worker.work_next(queues=None, stop=stop)  # noqa: SLF001  one look for work


def test_runs_that_a_platform_refuses_do_not_keep_those_behind_them_waiting(
    queued: BatchKit, done: Ledger, refusing: str, monkeypatch: pytest.MonkeyPatch
):
    quick = job(span(3), write)
    # How long a chunk of it takes is known after its first run.
    with Stop() as stop:
        queued.work_run(quick.start().id, stop=stop)
    monkeypatch.setenv(VARIABLE, refusing)
    refused = [job(span(3), write, interruptible=False).start() for _ in range(_LISTED)]
    behind = quick.start()
    with Stop() as stop:
        look = _looks(queued, stop)
        assert look() is None
        outcome = look()
    assert outcome is not None
    assert (Ending.EXHAUSTED, RunState.SUCCEEDED) == (outcome.ending, behind.refresh().state)
    assert {RunState.QUEUED} == {run.refresh().state for run in refused}


def test_a_run_that_was_passed_over_is_looked_at_again_after_a_while(
    queued: BatchKit, done: Ledger, refusing: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(VARIABLE, refusing)
    monkeypatch.setattr(working, "_LEFT_SECONDS", 0.0)
    run = job(span(3), write, interruptible=False).start()
    with Stop() as stop:
        look = _looks(queued, stop)
        assert look() is None
        monkeypatch.delenv(VARIABLE)
        assert look() is not None
    assert RunState.SUCCEEDED == run.refresh().state
    assert {} == queued._worker._passed_over  # noqa: SLF001  what is over is not kept


def test_a_drain_passes_nothing_over(queued: BatchKit, done: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(RUN_FOLDER, str(tmp_path))
    notice = DrainNotice()
    worker = queued._worker  # noqa: SLF001  one look for work
    worker = replace(worker, duty=replace(worker.duty, notice=notice))
    run = job(span(3), write).start()
    notice.put_up(seconds=600)
    with Stop() as stop:
        assert worker.work_next(queues=None, stop=stop) is None
        notice.take_down()
        eventually(lambda: not notice.is_there)
        assert worker.work_next(queues=None, stop=stop) is not None
    assert RunState.SUCCEEDED == run.refresh().state
