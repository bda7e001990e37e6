"""What a Celery worker consumes from while its instance is drained and after that, with Celery's own consumer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.worker.consumer import Consumer

from batchkit.draining import DrainNotice
from batchkit.queues.celery.consuming import Consuming
from tests.waiting import eventually


class ConsumerWithoutLoop(Consumer):  # type: ignore[misc]  # Celery has no types
    """Celery's consumer, as far as it knows its queues: what is to be called in its loop is called at once."""

    def __init__(self, app: Any, channel: Any) -> None:
        self.app = app
        self._channel = channel
        self.connect_anew()

    def connect_anew(self) -> None:
        """Consume from what the app's queues say, as after a connection was lost."""
        self.task_consumer = self.app.amqp.TaskConsumer(self._channel)

    def call_soon(self, step: Callable[[], None]) -> None:
        """Call it."""
        step()

    @property
    def names(self) -> set[str]:
        """What it consumes from."""
        return {queue.name for queue in self.task_consumer.queues}


@pytest.fixture
def notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DrainNotice:
    """Give the notice of this test's instance."""
    monkeypatch.setenv("BATCHKIT_RUN_DIR", str(tmp_path / "run"))
    return DrainNotice()


@pytest.fixture(params=[None, ["mail", "night"]], ids=["all", "some"])
def consumer(request: pytest.FixtureRequest) -> Iterator[ConsumerWithoutLoop]:
    """Give a consumer of all of its app's queues, and of some."""
    app = Celery("drained", broker="memory://")
    app.conf.task_queues = None
    if request.param:
        app.amqp.queues.select(request.param)
    with app.connection_for_read() as connection, closing(connection.channel()) as channel:
        yield ConsumerWithoutLoop(app, channel)


def test_a_connection_made_after_a_drain_consumes_what_it_did_before(
    consumer: ConsumerWithoutLoop, notice: DrainNotice
):
    before = consumer.names
    consuming = Consuming(consumer)
    consuming.start()
    with ExitStack() as stack:
        stack.callback(consuming.stop)
        notice.put_up(seconds=60)
        eventually(lambda: not consumer.names, message=lambda: f"it consumes from {consumer.names}")
        consumer.connect_anew()
        assert not consumer.names, "a connection that is made while it is drained"
        notice.take_down()
        eventually(lambda: consumer.names == before, message=lambda: f"it consumes from {consumer.names}")
    consumer.connect_anew()
    assert before == consumer.names
