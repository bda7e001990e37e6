"""dramatiq: a message per chunk, split beforehand, as a group."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers import rows
from benchmarks.peers.rows import Work

broker = RedisBroker(url=rows.redis_url())
dramatiq.set_broker(broker)


@dramatiq.actor
def chunk(low: int, high: int) -> None:
    """Work a chunk; the message is acknowledged after that."""
    rows.work(low, high)


def start(work: Work) -> None:
    """Enqueue them all."""
    dramatiq.group(chunk.message(low, high) for low, high in work.ranges()).run()
