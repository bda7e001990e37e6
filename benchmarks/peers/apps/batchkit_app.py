"""batchkit: one job, on the queue that BENCH_QUEUE names."""

from __future__ import annotations

import functools
import os
from typing import Any

from celery import Celery
from redis import Redis
from sqlalchemy import Row, select

from batchkit import BatchKit, Chunk, batched
from batchkit import rows as rows_of
from batchkit.queue import Queue
from batchkit.queues import CeleryQueue, LocalQueue, RQQueue
from benchmarks.peers import rows
from benchmarks.peers.rows import Work, item

celery = Celery("bench", broker=rows.redis_url(), backend=rows.redis_url())
celery.conf.broker_connection_retry_on_startup = True


def _queue() -> Queue:
    name = os.environ["BENCH_QUEUE"]
    if name == "celery":
        return CeleryQueue(celery)
    return RQQueue(Redis.from_url(rows.redis_url())) if name == "rq" else LocalQueue()


kit = BatchKit(os.environ[rows.DATABASE], queue=_queue())
prepare = kit.migrate
_source = rows_of(select(item.c.id, item.c.times), key=item.c.id)


def _work(chunk: Chunk[Row[Any]]) -> None:
    rows.change(chunk.connection, chunk[0].id, chunk[-1].id)
    if rows.pauses_after():
        chunk.after_commit(functools.partial(rows.pause, "after"))


# Three functions, since RQ imports a job by its name.
@batched(_source, chunk_size=500)
def of_500(chunk: Chunk[Row[Any]]) -> None:
    """Work a chunk of 500."""
    _work(chunk)


@batched(_source, chunk_size=50)
def of_50(chunk: Chunk[Row[Any]]) -> None:
    """Work a chunk of 50."""
    _work(chunk)


@batched(_source, chunk_size=5)
def of_5(chunk: Chunk[Row[Any]]) -> None:
    """Work a chunk of 5."""
    _work(chunk)


JOBS = {500: of_500, 50: of_50, 5: of_5}


def start(work: Work) -> None:
    """Start a run."""
    JOBS[work.size].start()


def start_in_two(work: Work) -> None:
    """Start a run of two partitions."""
    JOBS[work.size].using(partitions=2).start()


def call(work: Work) -> None:
    """Work a run in this process."""
    JOBS[work.size]()
