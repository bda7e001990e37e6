"""Changes of state that transactions make, told of once they are committed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import Connection

from batchkit.hooks import Happening
from batchkit.model import RunId


@dataclass(frozen=True, slots=True)
class Change:
    """A recorded change of a run's state, and what hooks are told of it."""

    run_id: RunId
    transition: int
    happening: Happening


#: Says of an error whether it was raised into the thread from outside, and must pass through whatever is called there.
Passes: TypeAlias = Callable[[BaseException], bool]
Listener: TypeAlias = Callable[[Change, Passes], None]


def _nothing_passes(_: BaseException) -> bool:
    return False


class Deferred:
    """What is to be told of later, by `tell`; only once."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self.waiting: list[Change] = []

    def tell(self, passes: Passes = _nothing_passes) -> None:
        """Tell of it now."""
        waiting, self.waiting = self.waiting, []
        for change in waiting:
            self._changes.tell(change, passes)


class Changes:
    """
    Keeps what a transaction has changed until its end is known.

    Told of is what was committed, by the thread that did it, and never twice. What was rolled back is forgotten; so is
    what may have been committed, where the reply was lost.
    """

    def __init__(self) -> None:
        self._noted: dict[Connection, list[Change]] = {}
        self._listener: Listener | None = None
        self._deferred = threading.local()

    @property
    def are_wanted(self) -> bool:
        """Whether anybody listens."""
        return self._listener is not None

    def listen(self, listener: Listener) -> None:
        """Have *listener* told of each change."""
        self._listener = listener

    def note(self, tx: Connection, change: Change) -> None:
        """Take note of what *tx* has changed."""
        if self.are_wanted:
            self._noted.setdefault(tx, []).append(change)

    def taken(self, tx: Connection) -> list[Change]:
        """Give what *tx* has changed and forget it; who commits *tx* tells of it by `committed`."""
        return self._noted.pop(tx, [])

    def committed(self, noted: list[Change]) -> None:
        """Tell of what a transaction has changed that was committed and is over."""
        later: Deferred | None = getattr(self._deferred, "to", None)
        for change in noted:
            if later is None:
                self.tell(change)
            else:
                later.waiting.append(change)

    def tell(self, change: Change, passes: Passes = _nothing_passes) -> None:
        """Tell the listener."""
        if self._listener is not None:
            self._listener(change, passes)

    @contextmanager
    def deferred(self) -> Iterator[Deferred]:
        """Keep what this thread changes in the block until `tell` is called on what it gives."""
        self._deferred.to = later = Deferred(self)
        try:
            yield later
        finally:
            self._deferred.to = None
