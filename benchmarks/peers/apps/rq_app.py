"""RQ: a job per chunk, split beforehand and enqueued in one pipeline."""

from __future__ import annotations

from redis import Redis
from rq import Queue

from benchmarks.peers import rows
from benchmarks.peers.rows import Work


def start(work: Work) -> None:
    """Enqueue them all."""
    queue = Queue(connection=Redis.from_url(rows.redis_url()))
    queue.enqueue_many([Queue.prepare_data(rows.work, args) for args in work.ranges()])
