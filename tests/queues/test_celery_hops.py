"""A message that came to a Celery worker which is being drained is handed on once, though two processes see it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from celery import Celery, signals
from kombu import Connection, Message

from batchkit import BatchKit, span
from batchkit.draining import VARIABLE, DrainNotice
from batchkit.queues import CeleryQueue
from batchkit.queues.celery.message import HANDED_ON, HOPS
from batchkit.queues.celery.request import SliceRequest
from batchkit.queues.sweeper import Sweeper
from tests.slices.conftest import job, write


@pytest.fixture
def celery() -> Iterator[Celery]:
    """Give an app with a broker in memory."""
    with Celery(broker="memory://", set_as_current=False) as app:
        app.conf.task_default_queue = f"celery-{uuid.uuid4().hex}"
        yield app


def _take(celery: Celery, broker: Connection) -> list[Message]:
    """Take all messages out of the broker."""
    with broker.channel() as channel:
        taken = []
        while (message := channel.basic_get(celery.conf.task_default_queue, no_ack=True)) is not None:
            taken.append(channel.message_to_python(message))
        return taken


def _received(celery: Celery, message: Message) -> SliceRequest:
    """Give the request that a worker makes of a message."""
    task = celery.tasks[message.headers["task"]]
    return SliceRequest(
        message,
        on_ack=lambda *_: None,
        on_reject=lambda *_: None,
        app=celery,
        task=task,
        body=message.body,
        headers=message.headers,
        decoded=False,
    )


def test_what_a_drained_worker_has_received_is_handed_on_once(
    celery: Celery, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    queue = CeleryQueue(celery)
    with closing(BatchKit(sqlite_url, queue=queue)) as kit, celery.connection() as broker:
        kit.migrate()
        run = job(span(3), write).start()
        (message,) = _take(celery, broker)
        DrainNotice().put_up(seconds=600)
        queue._sweeper = Sweeper(lambda: None)  # noqa: SLF001  the worker makes it when it is ready
        queue._sweeper.start()  # noqa: SLF001  the same
        request = _received(celery, message)
        signals.task_received.send(sender=None, request=request)
        request.execute()
        queue._sweeper.stop()  # noqa: SLF001  the same
        (copy,) = _take(celery, broker)
        assert (1, None) == (copy.headers[HOPS], copy.headers.get(HANDED_ON))
        assert 0 == run.refresh().progress.done
