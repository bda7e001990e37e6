"""
The app of the fleets: jobs that may be stopped, jobs with parts that must not be cut short, and stock tasks.

TEST_KIND says whose workers work it, celery or rq.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

from celery import Celery
from redis import Redis
from sqlalchemy import select, update

from batchkit import BatchKit, Chunk, Source, batched, rows
from batchkit.instance import instance_name
from batchkit.queues import CeleryQueue, RQQueue
from tests.scale_down import ledger
from tests.scale_down.ledger import item
from tests.scale_down.platform import GrantingPlatform

KIND = os.environ["TEST_KIND"]
LEASE_SECONDS = 10.0
CHUNK = 5
#: How long a part that must not be cut short takes: some end within what a signal leaves, some do not.
SECTIONS = (0.1, 0.3, 0.8, 1.6)

broker = Redis.from_url(os.environ["TEST_BROKER"])
engine = ledger.connect(os.environ["TEST_DATABASE"])
app = Celery("tests.scale_down.app", broker=os.environ["TEST_BROKER"])
app.conf.update(
    task_default_queue="default",
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
hooks: list[Any] = [GrantingPlatform(os.environ["TEST_PLATFORM"])] if "TEST_PLATFORM" in os.environ else []
kit = BatchKit(
    os.environ["TEST_DATABASE"],
    queue=CeleryQueue(app) if KIND == "celery" else RQQueue(broker),
    hooks=hooks,
    grace=float(os.environ["TEST_GRACE"]),
    max_protect=float(os.environ["TEST_MAX_PROTECT"]),
)


def _batch(batch: int) -> Source[int]:
    return rows(select(item.c.id).where(item.c.batch == batch), key=item.c.id)


def _do(chunk: Chunk[int]) -> None:
    chunk.connection.execute(update(item).where(item.c.id.in_(list(chunk))).values(times=item.c.times + 1))


@batched(_batch, name="may-be-stopped", chunk_size=CHUNK, lease=LEASE_SECONDS, slice_time=5)
def may_be_stopped(chunk: Chunk[int], batch: int) -> None:
    """Do what may be stopped at any time."""
    _do(chunk)
    time.sleep(random.uniform(0.05, 0.4))


@batched(_batch, name="has-sections", chunk_size=CHUNK, lease=LEASE_SECONDS, slice_time=5)
def has_sections(chunk: Chunk[int], batch: int) -> None:
    """Do something that must not be cut short in the middle of each chunk."""
    _do(chunk)
    with chunk.protected(), ledger.noted(engine, instance_name(), random.choice(SECTIONS)):
        pass
    time.sleep(0.05)


@batched(_batch, name="must-stay", chunk_size=CHUNK, lease=LEASE_SECONDS, slice_time=5, interruptible=False)
def must_stay(chunk: Chunk[int], batch: int) -> None:
    """Do nothing but what must not be cut short."""
    _do(chunk)
    with ledger.noted(engine, instance_name(), random.choice(SECTIONS)):
        pass


JOBS = (may_be_stopped, has_sections, must_stay)


def stock_rq(batch: int) -> None:
    """Do what `stock` does, on RQ."""
    stock.run(batch)


@app.task(name="stock", acks_late=True, reject_on_worker_lost=True)
def stock(batch: int) -> None:
    """Do a batch as people do without batchkit: item by item, each committed, and from the beginning after a death."""
    with engine.connect() as connection:
        for number in connection.execute(select(item.c.id).where(item.c.batch == batch)).scalars().all():
            connection.execute(update(item).where(item.c.id == number).values(times=item.c.times + 1))
            time.sleep(0.05)
