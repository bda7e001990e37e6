"""What a queue costs: a run in a worker of Celery or RQ against the same inline, and how long hand-overs take."""

from __future__ import annotations

import importlib
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from batchkit import BatchKit, Run, RunState
from batchkit.states import FINAL
from batchkit.stopping import Stop
from tests.queues import ledger
from tests.queues.workers import Crew, QueueWorker, crew
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

_LEASE_SECONDS = 5.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Measured:
    """Medians, in milliseconds per chunk and in seconds."""

    queue: str
    worker_chunk: float
    inline_chunk: float
    first_chunk: float
    after_sigterm: float
    after_sigkill: float


class Scene:
    """A database, a Redis, and workers of one queue."""

    def __init__(self, queue: str, url: str, workers: Crew) -> None:
        self._queue = queue
        self._url = url
        self._crew = workers
        self._batches = 0
        # Made when it is imported, for the database and the broker that the environment names.
        self._app: Any = importlib.import_module(f"tests.queues.{queue}_app")
        self.kit: BatchKit = self._app.kit

    def worker(self) -> QueueWorker:
        """Start a worker."""
        return self._crew.rq() if self._queue == "rq" else self._crew.celery("--pool", "prefork", "-c", "1")

    def supervise(self) -> None:
        """Start what sweeps, where the queue has nothing of its own."""
        if self._queue == "rq":
            self._crew.supervisor("tests.queues.rq_app:kit")

    def start(self, *, items: int, pause: float = 0.0) -> Run:
        """Start a run of a batch of its own, through the queue."""
        run: Run = self._app.one_batch.start(self._new_batch(items), pause)
        return run

    def inline(self, *, items: int) -> Run:
        """Work a run of a batch of its own in this process, in slices as the workers do."""
        job = self.kit.jobs[self._app.one_batch.name]
        run = self.kit.start_run_here(job, job.pack((self._new_batch(items), 0.0), {}))
        with Stop() as stop:
            self.kit.work_run(run.id, stop=stop)
        return run.refresh()

    def _new_batch(self, items: int) -> int:
        self._batches += 1
        ledger.fill_batch(self._url, self._batches, items=items)
        return self._batches


@contextmanager
def scene(queue: str) -> Iterator[Scene]:
    """Start everything, and end it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(PostgresServer()) as postgres,
        closing(RedisServer()) as redis,
    ):
        postgres.start()
        url = postgres.create_database("bench")
        ledger.fill(url, items=1)
        env = {
            "TEST_DATABASE": url,
            "TEST_BROKER": redis.url(),
            "TEST_QUEUE": "bench",
            "TEST_LEASE": str(_LEASE_SECONDS),
        }
        os.environ.update(env)
        with crew(Path(folder), env) as workers:
            made = Scene(queue, url, workers)
            made.kit.migrate()
            yield made
            made.kit.close()


def measure(queue: str, *, chunks: int) -> Measured:
    """Measure one queue."""
    with scene(queue) as made:
        made.supervise()
        worker = made.worker()
        firsts = []
        for _ in range(9):
            run = wait(made.start(items=10))
            firsts.append((run.history()[1].at - run.history()[0].at).total_seconds())
        in_worker, inline = [], []
        for _ in range(5):
            in_worker.append(_held_seconds(wait(made.start(items=chunks * 10))))
            inline.append(_held_seconds(made.inline(items=chunks * 10)))
        worker.end()
        return Measured(
            queue=queue,
            worker_chunk=statistics.median(in_worker) / chunks * 1000,
            inline_chunk=statistics.median(inline) / chunks * 1000,
            first_chunk=statistics.median(firsts),
            after_sigterm=statistics.median(_gap(made, signal.SIGTERM) for _ in range(3)),
            after_sigkill=statistics.median(_gap(made, signal.SIGKILL) for _ in range(3)),
        )


def wait(run: Run, *, at_least: int | None = None) -> Run:
    """Wait until so many items are done, or the run has ended."""
    while run.refresh().state not in FINAL and (at_least is None or run.progress.done < at_least):
        time.sleep(_POLL_SECONDS)
    return run


def _held_seconds(run: Run) -> float:
    """Give the time in which a worker held the run, claims and releases included."""
    history = run.history()
    claimed = [each.at for each in history if each.after is RunState.RUNNING]
    left = [each.at for each in history if each.before is RunState.RUNNING]
    return sum((end - begin).total_seconds() for begin, end in zip(claimed, left, strict=True))


def _gap(made: Scene, number: signal.Signals) -> float:
    """Give the seconds from a signal to every process of a worker until another goes on with the run."""
    first = made.worker()
    run = wait(made.start(items=600, pause=0.1), at_least=20)
    second = made.worker()
    now = run.history()[0].at
    # The database's clock is this machine's.
    sent = datetime.now(tz=now.tzinfo)
    first.send_all(number)
    wait(run)
    claims = [each.at for each in run.history() if each.after is RunState.RUNNING and each.at > sent]
    first.end()
    second.end()
    return (claims[0] - sent).total_seconds()
