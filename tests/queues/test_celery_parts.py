"""Parts of CeleryQueue that need no worker: the sweeper across forks, and a message that comes again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest
from celery import Celery, signals
from celery.exceptions import Retry

from batchkit import BatchKit, forking, span
from batchkit.job import JOBS
from batchkit.queues import CeleryQueue
from batchkit.queues import sweeper as sweeper_module
from batchkit.queues.celery.message import CeleryMessage
from batchkit.queues.sweeper import Sweeper
from tests.slices.conftest import job, write
from tests.waiting import eventually


@pytest.fixture
def app() -> Iterator[Celery]:
    """Give an app whose broker is in memory."""
    with Celery("parts", broker="memory://", set_as_current=False) as made:
        yield made


def test_a_child_of_a_child_does_not_wait_for_the_sweeper_of_its_grandparent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forking, "_FORK_WAITS_SECONDS", 0.01)
    is_swept = threading.Event()
    is_sweeping = threading.Event()

    def sweep() -> None:
        is_sweeping.set()
        is_swept.wait()

    sweeper = Sweeper(sweep)
    sweeper.start()
    try:
        assert is_sweeping.wait(10)
        child = os.fork()
        if not child:
            # For ever, if it were waited for.
            monkeypatch.setattr(forking, "_FORK_WAITS_SECONDS", 3600.0)
            grandchild = os.fork()
            if grandchild:
                os.waitpid(grandchild, 0)
            os._exit(0)
        eventually(lambda: os.waitpid(child, os.WNOHANG)[0] == child, within=20, message="the child hangs")
    finally:
        is_swept.set()
        sweeper.stop()


def test_a_step_that_fails_is_done_again_after_the_next_sweep(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sweeper_module, "_EVERY_SECONDS", 0.01)
    tries: list[int] = []

    def step() -> None:
        tries.append(len(tries))
        if len(tries) < 3:
            raise ConnectionError

    sweeper = Sweeper(lambda: None)
    sweeper.do_soon(step)
    sweeper.start()
    eventually(lambda: len(tries) == 3, within=10)
    monkeypatch.undo()
    sweeper.stop()
    assert [0, 1, 2] == tries


def test_what_is_to_be_done_soon_is_done_before_a_worker_ends():
    done: list[int] = []
    sweeper = Sweeper(lambda: None)
    for number in range(3):
        sweeper.do_soon(partial(done.append, number))
    sweeper.start()
    sweeper.stop()
    assert [0, 1, 2] == done


def _never(*_: object) -> None:
    raise NotImplementedError


def test_a_message_comes_again_for_as_long_as_the_database_is_away(app: Celery):
    """However few retries the task has: there is no other trace of the run that it starts."""
    made = job(span(1), write)
    task = app.task(name=made.name, max_retries=3, shared=False)(made)
    task.push_request(id="m", called_directly=False, retries=50, args=[], kwargs={}, delivery_info={})
    try:
        message = CeleryMessage(task, JOBS[made.name], send=_never, on_told=_never)
        with pytest.raises(Retry):
            message.again(10)
    finally:
        task.pop_request()


def test_a_task_is_sent_to_the_queue_of_its_job(app: Celery, sqlite_url: str):
    """Also where the app sends the task itself; and without the attribute of tasks that Celery is to drop."""
    made = job(span(1), write, queue="bulk")
    with closing(BatchKit(sqlite_url, queue=CeleryQueue(app))):
        sent: list[str] = []

        def note(routing_key: str, **_: object) -> None:
            sent.append(routing_key)

        app.finalize()
        signals.before_task_publish.connect(note, sender=made.name)
        app.tasks[made.name].delay()
        app.tasks[made.name].apply_async(queue="other")
        made.s().apply_async()
    assert ["bulk", "other", "bulk"] == sent
