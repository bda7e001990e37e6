"""What a job does whose first partition has nine tenths of the work, for the workers of any queue."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from batchkit import Chunk, Source
from tests.queues import gating
from tests.queues.ledger import called

#: Where the items, which are numbered from 1 to 200, are cut when the run is planned.
CUTS = (180, 187, 194)
#: How long the work of one item takes.
ITEM_SECONDS = 0.08


class Skewed:
    """All items, which are cut unevenly at first; what is left of a range is cut as ever."""

    def __init__(self, within: Any = None, *, is_whole: bool = True) -> None:
        self._within: Any = within or gating.items()
        self._is_whole = is_whole

    def read(self, after: object, limit: int, session: Session) -> Any:
        """Read as ever."""
        return self._within.read(after, limit, session)

    def count(self, session: Session) -> int:
        """Count as ever."""
        return int(self._within.count(session))

    def weigh(self, session: Session) -> int:
        """Weigh as ever."""
        return int(self._within.weigh(session))

    def split(self, parts: int, session: Session) -> Sequence[object]:
        """Cut it."""
        return CUTS if self._is_whole else self._within.split(parts, session)

    def until(self, upper: object) -> Skewed:
        """Let it end."""
        return Skewed(self._within.until(upper), is_whole=self._is_whole)

    def behind(self, after: object) -> Skewed:
        """Let it begin."""
        return Skewed(self._within.behind(after), is_whole=False)


def items() -> Source[int]:
    """Give all items."""
    return Skewed()


def work(chunk: Chunk[int]) -> None:
    """Count each item as done once more, wait at the gate while it is shut, work, and write down who has."""
    gating.work(chunk)
    time.sleep(ITEM_SECONDS * len(chunk))
    chunk.connection.execute(insert(called), [{"what": f"worker {os.getpid()}"} for _ in chunk])
