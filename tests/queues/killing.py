"""What a job does that has one item which kills the process that works it, for the workers of any queue."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable

from sqlalchemy import select, update

from batchkit import Chunk, Source, rows
from tests.queues.ledger import item

POISON = 77

_WAYS: dict[str, Callable[[], object]] = {
    "exit": lambda: os._exit(1),
    "segfault": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    # No killer, but longer than any grace
    "slow": lambda: time.sleep(600),
}


def items(way: str) -> Source[int]:
    """Give all items."""
    return rows(select(item.c.id), key=item.c.id)


def work(chunk: Chunk[int], way: str) -> None:
    """Count each item of the chunk as done once more, and kill the process at one of them."""
    chunk.connection.execute(update(item).where(item.c.id.in_(list(chunk))).values(times=item.c.times + 1))
    if POISON in chunk:
        _WAYS[way]()
