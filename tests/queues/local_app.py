"""A batched job for workers of the built-in queue: `batchkit -A tests.queues.local_app:kit work`."""

from __future__ import annotations

import os

from batchkit import BatchKit, Chunk, batched
from tests.queues import killing

kit = BatchKit(os.environ["TEST_DATABASE"])


@batched(killing.items, name="kills", chunk_size=20, lease=30, max_failures=1)
def kills(chunk: Chunk[int], way: str) -> None:
    """Kill the process at one item, and allow that to fail."""
    killing.work(chunk, way)


@batched(killing.items, name="kills-and-fails", chunk_size=20, lease=30)
def kills_and_fails(chunk: Chunk[int], way: str) -> None:
    """Kill the process at one item."""
    killing.work(chunk, way)
