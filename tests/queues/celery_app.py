"""
A Celery app with batched jobs, for workers that are stopped and killed: `celery -A tests.queues.celery_app worker`.

Each item's row counts how often it was done, so that an item done twice shows as 2 and a lost one as 0.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

from celery import Celery, Task, signals
from sqlalchemy import select, update

from batchkit import BatchKit, Chunk, Finish, Source, Steps, Throttle, batched, resumable, rows, span
from batchkit.errors import RunFailed
from batchkit.queues import CeleryQueue
from tests.queues import gating, killing, ledger, skewed
from tests.queues.ledger import batch_item, calls, item

LEASE_SECONDS = float(os.environ.get("TEST_LEASE", "3"))

app = Celery("tests.queues.celery_app", broker=os.environ["TEST_BROKER"], backend=os.environ.get("TEST_BACKEND"))
app.conf.update(
    # A broker that other tests use as well
    task_default_queue=os.environ["TEST_QUEUE"],
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    **{name[5:].lower(): json.loads(value) for name, value in os.environ.items() if name.startswith("CONF_")},
)
kit = BatchKit(os.environ["TEST_DATABASE"], queue=CeleryQueue(app))


def _items(pause: float = 0.1) -> Source[int]:
    return rows(select(item.c.id), key=item.c.id)


def _result(finish: Finish, pause: float = 0.1) -> dict[str, int]:
    return {"done": finish.done}


@batched(_items, name="count", chunk_size=10, lease=LEASE_SECONDS, finish=_result)
def count(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Count each item of the chunk as done once more."""
    chunk.connection.execute(update(item).where(item.c.id.in_(list(chunk))).values(times=item.c.times + 1))
    time.sleep(pause)


@batched(_items, name="outlasts", chunk_size=10, lease=LEASE_SECONDS, finish=_result)
def outlasts(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Do as `count` does, but come to no end while the gate is shut: a fault is to fall before that."""
    count.function(chunk, pause)
    if chunk.number >= 15:
        gating.wait()


@batched(_items, name="short-slices", chunk_size=10, lease=LEASE_SECONDS, slice_time=0.2, finish=_result)
def short_slices(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Do as `count` does, in slices of a chunk or two."""
    count.function(chunk, pause)


@batched(_items, name="in-parts", chunk_size=10, lease=LEASE_SECONDS, slice_time=0.2, finish=_result, partitions=4)
def in_parts(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Do as `short_slices` does, in four partitions."""
    count.function(chunk, pause)


@batched(gating.items, name="gated", chunk_size=25, lease=10)
def gated(chunk: Chunk[int]) -> None:
    """Wait at the gate."""
    gating.work(chunk)


@batched(skewed.items, name="skewed", chunk_size=1, lease=10, partitions=4)
def skewed_items(chunk: Chunk[int]) -> None:
    """Wait at the gate, and then have nine tenths of the work in one partition."""
    skewed.work(chunk, worker=os.getpid())


@batched(span(1), name="small")
def small(chunk: Chunk[int]) -> None:
    """Do nothing."""


@resumable(name="in-steps", lease=LEASE_SECONDS, slice_time=0.2, finish=_result)
def in_steps(steps: Steps[int], pause: float = 0.1) -> Iterator[int]:
    """Do as `count` does, without a source."""
    ids = select(item.c.id).order_by(item.c.id).limit(10)
    while done := steps.connection.scalars(ids.where(item.c.id > (steps.cursor or 0))).all():
        steps.connection.execute(update(item).where(item.c.id.in_(done)).values(times=item.c.times + 1))
        steps.count(len(done))
        time.sleep(pause)
        yield done[-1]
    steps.count(0)


@batched(_items, name="fails", chunk_size=10, lease=LEASE_SECONDS)
def fails(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Fail at the third chunk."""
    count.function(chunk, pause)
    if chunk.number == 3:
        message = "no third chunk"
        raise ValueError(message)


def until_go() -> float | None:
    """Hold off until somebody notes that the run may go."""
    return None if "go" in calls(os.environ["TEST_DATABASE"]) else 1.0


@batched(
    _items, name="held", chunk_size=10, lease=LEASE_SECONDS, finish=_result, throttle=Throttle(hold=until_go, rate=1000)
)
def held(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Do as `count` does, once it may go."""
    count.function(chunk, pause)


def _all_items() -> Source[int]:
    return rows(select(item.c.id), key=item.c.id)


@batched(_all_items, name="slow-once", chunk_size=50, lease=LEASE_SECONDS)
def slow_once(chunk: Chunk[int]) -> None:
    """Take far too long over the second chunk when it is tried first."""
    is_first_try = chunk.number == 2 and not any("slow" in what for what in calls(os.environ["TEST_DATABASE"]))
    if is_first_try:
        note("slow")
    count.function(chunk, 60 if is_first_try else 0)


def _batch(batch: int, pause: float = 0.02, has_bad: bool = False) -> Source[int]:
    return rows(select(batch_item.c.id).where(batch_item.c.batch == batch), key=batch_item.c.id)


@batched(_batch, chunk_size=10, lease=LEASE_SECONDS, slice_time=1.5, max_failures=100, name="one-batch")
def one_batch(chunk: Chunk[int], batch: int, pause: float = 0.02, has_bad: bool = False) -> None:
    """Count each item of a batch as done once more, but for those that are bad."""
    chunk.connection.execute(
        update(batch_item).where(batch_item.c.id.in_(list(chunk))).values(times=batch_item.c.times + 1)
    )
    bad = [number for number in chunk if has_bad and ledger.is_bad(number)]
    if bad:
        message = f"item {bad[0]} is bad"
        raise ValueError(message)
    time.sleep(pause)


@app.task(name="decorated")
@batched(_items, name="decorated-job", chunk_size=10, lease=LEASE_SECONDS, slice_time=0.2, finish=_result)
def decorated(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Do as `count` does, as a task that the app has made of the job."""
    count.function(chunk, pause)


@app.task(name="auto", autoretry_for=(Exception,), retry_kwargs={"max_retries": 3, "countdown": 0})
@batched(_items, name="auto-job", chunk_size=10, lease=LEASE_SECONDS)
def auto(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Fail at the third chunk, as a task that Celery is to retry by itself."""
    fails.function(chunk, pause)


@batched(_items, name="fails-once", chunk_size=10, lease=LEASE_SECONDS)
def fails_once(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Fail at the third chunk when it is tried first."""
    count.function(chunk, pause)
    if chunk.number == 3 and not calls(os.environ["TEST_DATABASE"]):
        note("failed once")
        message = "no third chunk"
        raise ValueError(message)


@app.task(name="tries-a-job-again", bind=True)
def tries_a_job_again(self: Task, pause: float) -> int:
    """Call a job, and be tried again when that fails."""
    try:
        return fails_once(pause).progress.done
    except RunFailed as error:
        raise self.retry(exc=error, countdown=0) from error


@batched(_items, name="applies", chunk_size=10, lease=LEASE_SECONDS)
def applies(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Apply another task in each chunk, before the chunk takes its time."""
    nothing.apply()
    count.function(chunk, pause)


def _nested_items(depth: int = 1, pause: float = 0.0) -> Source[int]:
    return rows(select(item.c.id), key=item.c.id)


@batched(_nested_items, name="nests", chunk_size=100, lease=LEASE_SECONDS)
def nests(chunk: Chunk[int], depth: int = 1, pause: float = 0.0) -> None:
    """Call itself in the first chunk, and count the items in the innermost run."""
    if depth and chunk.number == 1:
        nests(depth - 1)
    if not depth:
        count.function(chunk, pause)


def _one_item(text: str) -> Source[int]:
    return span(1)


@batched(_one_item, name="takes-text")
def takes_text(chunk: Chunk[int], text: str) -> None:
    """Take a param that is long."""


@app.task(name="nothing")
def nothing() -> None:
    """Do nothing."""


@app.task(name="calls-a-job")
def calls_a_job(pause: float) -> int:
    """Call a job in the middle of other work."""
    run = short_slices(pause)
    note("after the call")
    return run.progress.done


@app.task(name="note")
def note(*args: object) -> None:
    """Write down that this was called, and with what."""
    ledger.note(os.environ["TEST_DATABASE"], *args)


@app.task(name="errback")
def errback(*_: object) -> None:
    """Write down that an error was told."""
    note("errback")


@app.task(name="sleeps", acks_late=True)
def sleeps(seconds: float) -> str:
    """Take time, as other people's tasks do."""
    note("sleeps begins")
    time.sleep(seconds)
    note("sleeps ends")
    return "slept"


#: Whether a job is in the middle of something, as it is while it has a lock.
_is_busy = False


@batched(_items, name="quits", chunk_size=10, lease=LEASE_SECONDS)
def quits(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Have the worker end by SIGQUIT, once, which comes in the middle of something that lets no other greenlet work."""
    global _is_busy  # noqa: PLW0603  one process works one such chunk
    count.function(chunk, pause)
    if chunk.number == 3 and not calls(os.environ["TEST_DATABASE"]):
        ledger.note(os.environ["TEST_DATABASE"], "quit")
        signals.worker_shutting_down.connect(_note_when, weak=False)
        _is_busy = True
        os.kill(os.getpid(), signal.SIGQUIT)
        _is_busy = False


def _note_when(**_: object) -> None:
    ledger.note(os.environ["TEST_DATABASE"], "told in the middle" if _is_busy else "told in its turn")


@batched(killing.items, name="kills", chunk_size=20, lease=30, max_failures=1)
def kills(chunk: Chunk[int], way: str) -> None:
    """Kill the process at one item, and allow that to fail."""
    killing.work(chunk, way)


@batched(killing.items, name="kills-and-fails", chunk_size=20, lease=30)
def kills_and_fails(chunk: Chunk[int], way: str) -> None:
    """Kill the process at one item."""
    killing.work(chunk, way)
