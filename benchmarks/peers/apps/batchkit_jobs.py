"""batchkit's jobs: one per size of chunk."""

from __future__ import annotations

import functools
from typing import Any

from sqlalchemy import Row, select

from batchkit import Chunk, Job, batched
from batchkit import rows as rows_of
from benchmarks.peers import rows
from benchmarks.peers.rows import Work, item

SIZES = (500, 50, 5)


def _job(size: int) -> Job[[], Row[Any]]:
    @batched(rows_of(select(item.c.id, item.c.times), key=item.c.id), name=f"bench-{size}", chunk_size=size)
    def chunk(chunk: Chunk[Row[Any]]) -> None:
        rows.change(chunk.connection, chunk[0].id, chunk[-1].id)
        if rows.pauses_after():
            chunk.after_commit(functools.partial(rows.pause, "after"))

    return chunk


JOBS = {size: _job(size) for size in SIZES}


def start(work: Work) -> None:
    """Start a run."""
    JOBS[work.size].start()


def start_in_two(work: Work) -> None:
    """Start a run of two partitions."""
    JOBS[work.size].using(partitions=2).start()


def call(work: Work) -> None:
    """Work a run in this process."""
    JOBS[work.size]()
