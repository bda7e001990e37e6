"""Celery: a task per chunk, split beforehand, in the ways that its canvas has for that."""

from __future__ import annotations

from celery import Celery, chord, group

from benchmarks.peers import rows
from benchmarks.peers.rows import Work

_CHUNKS_PER_TASK = 10

app = Celery("bench", broker=rows.redis_url(), backend=rows.redis_url())
app.conf.broker_connection_retry_on_startup = True


@app.task
def chunk(low: int, high: int) -> None:
    """Work a chunk; the message is gone from the broker before."""
    rows.work(low, high)


@app.task(acks_late=True, reject_on_worker_lost=True)
def late(low: int, high: int) -> None:
    """Work a chunk; the message is gone from the broker after that."""
    rows.work(low, high)


@app.task
def finish(results: list[None]) -> None:  # noqa: ARG001  a chord gives it the results
    """Be called after all of a chord."""
    rows.finish()


def start_group(work: Work) -> None:
    """Send them all."""
    group(chunk.s(low, high) for low, high in work.ranges()).apply_async()


def start_late(work: Work) -> None:
    """Send them all, to be acknowledged late."""
    group(late.s(low, high) for low, high in work.ranges()).apply_async()


def start_chord(work: Work) -> None:
    """Send them all, and have something done after the last."""
    chord(chunk.s(low, high) for low, high in work.ranges())(finish.s())


def start_chunks(work: Work) -> None:
    """Send them by the ten."""
    chunk.chunks(work.ranges(), _CHUNKS_PER_TASK).apply_async()
