"""
Batched jobs for RQ workers that are stopped and killed.

Each item's row counts how often it was done, so that an item done twice shows as 2 and a lost one as 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from redis import Redis
from sqlalchemy import select, update

from batchkit import BatchKit, Chunk, Finish, Source, Steps, Throttle, batched, resumable, rows, span
from batchkit.queues import RQQueue
from tests.queues import gating, killing, ledger, skewed
from tests.queues.ledger import batch_item, calls, item

LEASE_SECONDS = float(os.environ.get("TEST_LEASE", "3"))

kit = BatchKit(
    os.environ["TEST_DATABASE"],
    queue=RQQueue(Redis.from_url(os.environ["TEST_BROKER"]), serializer=os.environ.get("TEST_SERIALIZER")),
)


def _items(pause: float = 0.1) -> Source[int]:
    return rows(select(item.c.id), key=item.c.id)


def _result(finish: Finish, pause: float = 0.1) -> dict[str, int]:
    return {"done": finish.done}


@batched(_items, chunk_size=10, lease=LEASE_SECONDS, finish=_result)
def count(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Count each item of the chunk as done once more."""
    chunk.connection.execute(update(item).where(item.c.id.in_(list(chunk))).values(times=item.c.times + 1))
    time.sleep(pause)


@batched(_items, chunk_size=10, lease=LEASE_SECONDS, finish=_result)
def outlasts(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Do as `count` does, but come to no end while the gate is shut: a fault is to fall before that."""
    count.function(chunk, pause)
    if chunk.number >= 15:
        gating.wait()


@batched(_items, chunk_size=10, lease=LEASE_SECONDS, slice_time=0.2, finish=_result)
def short_slices(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Do as `count` does, in slices of a chunk or two."""
    count.function(chunk, pause)


@batched(_items, chunk_size=10, lease=LEASE_SECONDS, finish=_result, partitions=4)
def in_parts(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Do as `count` does, in four partitions."""
    count.function(chunk, pause)


@batched(gating.items, name="gated", chunk_size=25, lease=10)
def gated(chunk: Chunk[int]) -> None:
    """Wait at the gate."""
    gating.work(chunk)


@batched(skewed.items, name="skewed", chunk_size=1, lease=10, partitions=4)
def skewed_items(chunk: Chunk[int]) -> None:
    """Wait at the gate, and then have nine tenths of the work in one partition."""
    # Each horse works one slice, for the worker that is its parent.
    skewed.work(chunk, worker=os.getppid())


@batched(span(1), name="small")
def small(chunk: Chunk[int]) -> None:
    """Do nothing."""


@resumable(lease=LEASE_SECONDS, slice_time=0.2, finish=_result)
def in_steps(steps: Steps[int], pause: float = 0.1) -> Iterator[int]:
    """Do as `count` does, without a source."""
    ids = select(item.c.id).order_by(item.c.id).limit(10)
    while done := steps.connection.scalars(ids.where(item.c.id > (steps.cursor or 0))).all():
        steps.connection.execute(update(item).where(item.c.id.in_(done)).values(times=item.c.times + 1))
        steps.count(len(done))
        time.sleep(pause)
        yield done[-1]
    steps.count(0)


@batched(_items, chunk_size=10, lease=LEASE_SECONDS)
def fails(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Fail at the third chunk, until somebody notes that it is mended."""
    count.function(chunk, pause)
    if chunk.number == 3 and repr(("mended",)) not in calls(os.environ["TEST_DATABASE"]):
        message = "no third chunk"
        raise ValueError(message)


def until_go() -> float | None:
    """Hold off until somebody notes that the run may go."""
    return None if "go" in calls(os.environ["TEST_DATABASE"]) else 1.0


@batched(_items, chunk_size=10, lease=LEASE_SECONDS, finish=_result, throttle=Throttle(hold=until_go, rate=1000))
def held(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Do as `count` does, once it may go."""
    count.function(chunk, pause)


def _all_items() -> Source[int]:
    return rows(select(item.c.id), key=item.c.id)


@batched(_all_items, chunk_size=50, lease=LEASE_SECONDS)
def slow_once(chunk: Chunk[int]) -> None:
    """Take far too long over the second chunk when it is tried first."""
    is_first_try = chunk.number == 2 and not any("slow" in what for what in calls(os.environ["TEST_DATABASE"]))
    if is_first_try:
        note("slow")
    count.function(chunk, 30 if is_first_try else 0)


def _batch(batch: int, pause: float = 0.02, has_bad: bool = False) -> Source[int]:
    return rows(select(batch_item.c.id).where(batch_item.c.batch == batch), key=batch_item.c.id)


@batched(_batch, chunk_size=10, lease=LEASE_SECONDS, slice_time=1.5, max_failures=100)
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


@batched(_items, chunk_size=100, lease=LEASE_SECONDS)
def calls_another(chunk: Chunk[int], pause: float = 0.1) -> None:
    """Call another job in each chunk."""
    count(pause)


def _nested_items(depth: int = 1, pause: float = 0.0) -> Source[int]:
    return rows(select(item.c.id), key=item.c.id)


@batched(_nested_items, chunk_size=100, lease=LEASE_SECONDS)
def nests(chunk: Chunk[int], depth: int = 1, pause: float = 0.0) -> None:
    """Call itself in the first chunk, and count the items in the innermost run."""
    if depth and chunk.number == 1:
        nests(depth - 1)
    if not depth:
        count.function(chunk, pause)


def calls_a_job(pause: float) -> int:
    """Call a job in the middle of other work."""
    done = short_slices(pause).progress.done
    note("after the call")
    return done


def note(*args: object) -> None:
    """Write down that this was called, and with what."""
    ledger.note(os.environ["TEST_DATABASE"], *args)


def on_success(job: object, connection: object, result: object) -> None:
    """Write down that a job succeeded."""
    note("success", result)


def on_success_slowly(job: object, connection: object, result: object) -> None:
    """Write down that a job succeeded, and take one's time until somebody notes that it is enough."""
    note("success", result)
    while repr(("enough",)) not in calls(os.environ["TEST_DATABASE"]):
        time.sleep(0.1)


def on_success_badly(job: object, connection: object, result: object) -> None:
    """Write down that a job succeeded, and fail."""
    note("success", result)
    message = "a callback of the user's"
    raise ValueError(message)


def on_failure(job: object, connection: object, kind: object, error: object, traceback: object) -> None:
    """Write down that a job failed."""
    note("failure", type(error).__name__)


def sleeps(seconds: float) -> None:
    """Take time, as other people's jobs do."""
    note("sleeps begins")
    time.sleep(seconds)
    note("sleeps ends")


@batched(killing.items, name="kills", chunk_size=20, lease=30, max_failures=1)
def kills(chunk: Chunk[int], way: str) -> None:
    """Kill the process at one item, and allow that to fail."""
    killing.work(chunk, way)


@batched(killing.items, name="kills-and-fails", chunk_size=20, lease=30)
def kills_and_fails(chunk: Chunk[int], way: str) -> None:
    """Kill the process at one item."""
    killing.work(chunk, way)
