"""huey: a task per chunk, split beforehand."""

from __future__ import annotations

from huey import RedisHuey

from benchmarks.peers import rows
from benchmarks.peers.rows import Work

huey = RedisHuey("bench", url=rows.redis_url())


@huey.task()
def chunk(low: int, high: int) -> None:
    """Work a chunk; the message is gone from the broker before."""
    rows.work(low, high)


def start(work: Work) -> None:
    """Enqueue them all."""
    chunk.map(work.ranges())
