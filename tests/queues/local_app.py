"""A batched job for workers of the built-in queue: `batchkit -A tests.queues.local_app:kit work`."""

from __future__ import annotations

import os

from batchkit import BatchKit, Chunk, batched, span
from tests.queues import gating, killing, skewed

kit = BatchKit(os.environ["TEST_DATABASE"])


@batched(killing.items, name="kills", chunk_size=20, lease=30, max_failures=1)
def kills(chunk: Chunk[int], way: str) -> None:
    """Kill the process at one item, and allow that to fail."""
    killing.work(chunk, way)


@batched(killing.items, name="kills-and-fails", chunk_size=20, lease=30)
def kills_and_fails(chunk: Chunk[int], way: str) -> None:
    """Kill the process at one item."""
    killing.work(chunk, way)


@batched(gating.items, name="gated", chunk_size=25, lease=10)
def gated(chunk: Chunk[int]) -> None:
    """Wait at the gate."""
    gating.work(chunk)


@batched(skewed.items, name="skewed", chunk_size=1, lease=10, partitions=4)
def skewed_items(chunk: Chunk[int]) -> None:
    """Wait at the gate, and then have nine tenths of the work in one partition."""
    skewed.work(chunk)


@batched(span(1), name="small")
def small(chunk: Chunk[int]) -> None:
    """Do nothing."""
