"""The app of the small fleet that is real: its database, its broker and its job are in the environment."""

from __future__ import annotations

import os
import time

from celery import Celery

from batchkit import BatchKit, Chunk, batched, span
from batchkit.queues import CeleryQueue, LocalQueue

ITEM_SECONDS = 0.01
CHUNK_SIZE = 50
SLICE_SECONDS = 5.0
LEASE_SECONDS = 30.0

celery = Celery("fleet", broker=os.environ.get("FLEET_BROKER", "memory://"))
celery.conf.update(worker_prefetch_multiplier=1, worker_hijack_root_logger=False, worker_send_task_events=False)
kit = BatchKit(
    os.environ.get("FLEET_DATABASE", "sqlite:///fleet.db"),
    queue=CeleryQueue(celery) if "FLEET_BROKER" in os.environ else LocalQueue(),
)


@batched(
    span(10**9), name="fleet", chunk_size=CHUNK_SIZE, partitions=1000, slice_time=SLICE_SECONDS, lease=LEASE_SECONDS
)
def work(chunk: Chunk[int]) -> None:
    """Take time, and nothing else."""
    time.sleep(ITEM_SECONDS * len(chunk))
