"""How far workers may go: a test opens the gate bit by bit, so that no run ends before its workers were killed."""

from __future__ import annotations

import time
from pathlib import Path

_NAME = "gate"
_POLL_SECONDS = 0.005


class Gate:
    """A run of so many items, in parts: one may be worked before the first kill, and one more after each."""

    def __init__(self, folder: Path, *, items: int, kills: int) -> None:
        self._folder = folder
        self._items = items
        self._parts = kills + 1
        self.open(after_kills=0)

    def open(self, *, after_kills: int) -> None:
        """Let the workers go on as far as they may after so many kills."""
        written = self._folder / f"{_NAME}-new"
        written.write_text(str(self._items * (after_kills + 1) // self._parts))
        written.replace(self._folder / _NAME)


def wait(folder: str, item: int) -> None:
    """Wait, in a worker, until the gate is open for the item."""
    while item > int((Path(folder) / _NAME).read_text()):
        time.sleep(_POLL_SECONDS)
