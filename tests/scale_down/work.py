"""What the fleets work, and what their platform reads of it: batchkit's jobs and reports, or stock ones."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, Protocol

from celery import Celery
from redis import Redis
from rq import Queue
from rq.registry import StartedJobRegistry
from sqlalchemy import Engine

from batchkit import Run, RunState
from batchkit.busy import Busy, QueueBusy
from batchkit.states import FINAL
from tests.scale_down import ledger

ITEMS = 60


class Work(Protocol):
    """Batches of items that a fleet is given, one after the other."""

    def start(self, batch: int) -> None:
        """Have a batch worked."""
        ...

    def unfinished(self) -> int:
        """Count the batches that have not ended."""
        ...

    def report(self) -> Busy:
        """Give what the platform reads."""
        ...

    def problems(self) -> list[str]:
        """Say what is wrong once all is over."""
        ...


class Batchkit:
    """Jobs of batchkit's, and `kit.busy()` as the report."""

    def __init__(self, kit: Any, jobs: tuple[Any, ...], chance: random.Random) -> None:
        self._kit = kit
        self._jobs = jobs
        self._chance = chance
        self._runs: list[Run] = []

    def start(self, batch: int) -> None:
        """Start a run of one of the jobs."""
        self._runs.append(self._chance.choice(self._jobs).start(batch=batch))

    def unfinished(self) -> int:
        """Count the runs that have not ended."""
        return sum(run.state not in FINAL and run.refresh().state not in FINAL for run in self._runs)

    def report(self) -> Busy:
        """Give what the store says."""
        busy: Busy = self._kit.busy()
        return busy

    def problems(self) -> list[str]:
        """Say which runs did not succeed, or count wrongly."""
        found = []
        for run in self._runs:
            if run.state is not RunState.SUCCEEDED:
                found.append(f"{run} is {run.state}: {run.error}, {run.history()}")
            elif run.progress.done != ITEMS:
                found.append(f"{run} says that {run.progress.done} items are done")
        return found


class Stock:
    """
    A task for each batch that does its items one by one, and the count of busy jobs of Judoscale's stock adapter.

    That is what `inspect.active()` says in Celery, and the registry of started jobs in RQ.
    """

    def __init__(self, kind: str, app: Celery, broker: Redis, kit: Any, engine: Engine) -> None:
        self._kind = kind
        self._app = app
        self._queue = Queue("default", connection=broker)
        self._kit = kit
        self._engine = engine
        self._batches: list[int] = []

    def start(self, batch: int) -> None:
        """Send a task."""
        self._batches.append(batch)
        if self._kind == "celery":
            self._app.send_task("stock", args=[batch])
        else:
            self._queue.enqueue("tests.scale_down.app.stock_rq", batch, job_timeout=600)

    def unfinished(self) -> int:
        """Count the batches of which an item was never done."""
        return ledger.unfinished(self._engine, self._batches)

    def report(self) -> Busy:
        """Give the workers that are there, and how many jobs are busy."""
        busy: Busy = self._kit.busy()
        count, workers = self._busy(), len(busy.workers)
        queue = QueueBusy("default", workers, interruptible=0, protected=count, ready=0, oldest_waiting=None)
        return replace(busy, queues=(queue,), slices=())

    def problems(self) -> list[str]:
        """Say nothing: it promises nothing."""
        return []

    def _busy(self) -> int:
        if self._kind == "celery":
            active = self._app.control.inspect().active() or {}
            return sum(len(tasks) for tasks in active.values())
        return int(StartedJobRegistry(queue=self._queue).count)
