"""Brokers, and a bench on which a queue's workers are hurt."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from batchkit import BatchKit, Run, RunState
from batchkit.queues import InlineQueue
from batchkit.states import FINAL
from tests.queues import ledger
from tests.queues.workers import Crew, QueueWorker, crew
from tests.servers.rabbitmq import RabbitServer
from tests.waiting import eventually


@dataclass
class Bench:
    """Items to be done, a broker, and workers."""

    database: str
    broker: str
    crew: Crew
    kit: BatchKit
    celery: Celery
    items: int
    #: the kit that commands work with
    app: str = "tests.queues.celery_app:kit"

    def send(self, task: str, **options: Any) -> str:
        """Send a message of Celery's, as a program that uses the app does; give its id."""
        return str(self.celery.send_task(task, **options).id)

    def start(self, job: str, **params: object) -> Run:
        """Start a run as a deploy script does."""
        return self.kit.run(self.command("start", job, *(f"{name}={value}" for name, value in params.items())))

    def command(self, *arguments: str) -> str:
        """Run a command of batchkit's on the app that the workers run; give what it printed."""
        return self.crew.command(self.app, *arguments)

    def run(self) -> Run:
        """Give the only run, once there is one."""
        (run,) = eventually(self.kit.runs, within=30, message=lambda: f"there is no run\n{self.crew.logs()}")
        return run

    def holder(self, run: Run) -> QueueWorker:
        """Give the worker that holds the run, once one does."""

        def find() -> QueueWorker | None:
            names = [partition.worker for partition in run.partitions() if partition.worker is not None]
            pids = {int(name.rsplit(":", 1)[1]) for name in names}
            return next((each for each in self.crew.workers if pids & {each.pid, *each.children()}), None)

        holder = eventually(find, within=30, message=lambda: f"nobody holds {run}\n{self.crew.logs()}")
        assert holder is not None
        return holder

    def wait_done(self, run: Run, *, at_least: int) -> None:
        """Wait until so many items are done."""
        eventually(
            lambda: run.refresh().progress.done >= at_least,
            within=60,
            message=lambda: f"{run} did not get on\n{self.crew.logs()}",
        )

    def wait_end(self, run: Run, *, within: float = 90.0) -> RunState:
        """Wait for the end of the run."""
        eventually(
            lambda: run.refresh().state in FINAL,
            within=within,
            message=lambda: f"{run} did not end: {[str(each) for each in run.history()]}\n{self.crew.logs()}",
        )
        return run.state

    def check(self, run: Run) -> None:
        """See that every item was done once, and that the counters agree."""
        assert RunState.SUCCEEDED == self.wait_end(run), self.crew.logs()
        assert {1: self.items} == ledger.times(self.database), self.crew.logs()
        assert (self.items, 0) == (run.progress.done, run.progress.failed)
        assert 100.0 == run.progress.percent

    def calls(self) -> Counter[str]:
        """Count what was written down by callbacks."""
        return Counter(ledger.calls(self.database))


@pytest.fixture
def items() -> int:
    """Say how many items there are."""
    return 200


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> str:
    """Give the broker: Redis, or what the test is parametrized with."""
    kind = getattr(request, "param", "redis")
    if kind == "redis":
        url: str = request.getfixturevalue("redis_url")
        return url
    server: RabbitServer = request.getfixturevalue("rabbit_server")
    return server.url


@pytest.fixture
def results(redis_url: str) -> str:
    """Give the place where Celery keeps results."""
    return redis_url


@pytest.fixture
def bench(postgres_url: str, broker: str, results: str, items: int, tmp_path: Path) -> Iterator[Bench]:
    """Give items in a database, a broker and a crew that is yet to start."""
    ledger.fill(postgres_url, items=items)
    queue = f"celery-{uuid.uuid4().hex}"
    env = {"TEST_DATABASE": postgres_url, "TEST_BROKER": broker, "TEST_BACKEND": results, "TEST_QUEUE": queue}
    with (
        closing(BatchKit(postgres_url, queue=InlineQueue())) as kit,
        crew(tmp_path, env) as workers,
        Celery(broker=broker, backend=results, set_as_current=False) as celery,
    ):
        celery.conf.task_default_queue = queue
        kit.migrate()
        yield Bench(database=postgres_url, broker=broker, crew=workers, kit=kit, celery=celery, items=items)
