"""
Jobs of a kit with a busy hook, for workers of each queue: TEST_KIND says which one.

Each item's row counts how often it was done.
"""

from __future__ import annotations

import importlib
import os
import time
from typing import Any

from celery import Celery
from redis import Redis
from sqlalchemy import select, update

from batchkit import BatchKit, Chunk, Source, batched, rows
from batchkit.queue import Queue
from batchkit.queues import CeleryQueue, LocalQueue, RQQueue
from tests.queues.ledger import item

LEASE_SECONDS = float(os.environ.get("TEST_LEASE", "30"))
KIND = os.environ["TEST_KIND"]


def _queue() -> Queue:
    if KIND == "celery":
        return CeleryQueue(app)
    return RQQueue(Redis.from_url(os.environ["TEST_BROKER"])) if KIND == "rq" else LocalQueue()


def _hooks() -> list[Any]:
    """Make the hook that TEST_HOOK names, as module:class, with what TEST_HOOK_ARGUMENT says."""
    if "TEST_HOOK" not in os.environ:
        return []
    module, _, name = os.environ["TEST_HOOK"].partition(":")
    return [getattr(importlib.import_module(module), name)(os.environ["TEST_HOOK_ARGUMENT"])]


if KIND == "celery":
    app = Celery("tests.busy.app", broker=os.environ["TEST_BROKER"])
    app.conf.update(
        task_default_queue=os.environ["TEST_QUEUE"],
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )

kit = BatchKit(
    os.environ["TEST_DATABASE"],
    queue=_queue(),
    hooks=_hooks(),
    grace=float(os.environ.get("TEST_GRACE", "10")),
    max_protect=float(os.environ["TEST_MAX_PROTECT"]) if "TEST_MAX_PROTECT" in os.environ else None,
)


def _items(pause: float = 0.1, first: float = 0.0) -> Source[int]:
    return rows(select(item.c.id), key=item.c.id)


@batched(_items, name="count", chunk_size=10, lease=LEASE_SECONDS)
def count(chunk: Chunk[int], pause: float = 0.1, first: float = 0.0) -> None:
    """Count each item of the chunk as done once more; the first chunk may take longer than the others."""
    chunk.connection.execute(update(item).where(item.c.id.in_(list(chunk))).values(times=item.c.times + 1))
    time.sleep(max(pause, first) if chunk.number == 1 else pause)


@batched(_items, name="must-stay", chunk_size=10, lease=LEASE_SECONDS, interruptible=False)
def must_stay(chunk: Chunk[int], pause: float = 0.1, first: float = 0.0) -> None:
    """Do as `count` does, and not be stopped."""
    count.function(chunk, pause, first)


@batched(_items, name="protects", chunk_size=10, lease=LEASE_SECONDS)
def protects(chunk: Chunk[int], pause: float = 0.1, first: float = 0.0) -> None:
    """Do as `count` does, with a part that must not be cut short."""
    with chunk.protected():
        count.function(chunk, pause, first)
