"""What a job does whose chunks wait until somebody opens the gate, for the workers of any queue."""

from __future__ import annotations

import os
import time

from sqlalchemy import select, update

from batchkit import Chunk, Source, rows
from tests.queues import ledger
from tests.queues.ledger import item

GO = "go"


def items() -> Source[int]:
    """Give all items."""
    return rows(select(item.c.id), key=item.c.id)


def work(chunk: Chunk[int]) -> None:
    """Count each item of the chunk as done once more, and wait at the gate while it is shut."""
    chunk.connection.execute(update(item).where(item.c.id.in_(list(chunk))).values(times=item.c.times + 1))
    wait()


def wait() -> None:
    """Wait while the gate is shut."""
    while repr((GO,)) not in ledger.calls(os.environ["TEST_DATABASE"]):
        time.sleep(0.05)
