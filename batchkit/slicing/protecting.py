"""The parts of chunks that must not be cut short, and telling of them before they begin."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from batchkit.cutting import Cutter
from batchkit.model import Lease
from batchkit.store import Store
from batchkit.tracking import Tie

_logger = logging.getLogger("batchkit")

#: How much of the length of the longest part before it is expected of the next one.
_LONGEST_DECAY = 0.95


class Protecting:
    """
    Protects parts of one slice's chunks.

    One that is known to end within the *working* seconds after a signal needs no more than not to be cut: the worker is
    told to stop, ends it, and stops. One that may be longer, or is the first, is told of before it begins.
    """

    def __init__(
        self, store: Store, cutter: Cutter, tie: Tie, lease: Callable[[], Lease], *, working: float | None
    ) -> None:
        self._store = store
        self._cutter = cutter
        self._tie = tie
        self._lease = lease
        self._working = working
        self._longest: float | None = None
        self._depth = 0

    @contextmanager
    def protected(self) -> Iterator[None]:
        """Protect what is done inside the block."""
        if self._depth:
            yield
            return
        # What is told is told inside: a connection that is cut off while it is opened is nobody's to close.
        with self._cutter.protected(self._longest), self._told():
            began = time.monotonic()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                self._longest = max(time.monotonic() - began, (self._longest or 0.0) * _LONGEST_DECAY)

    @contextmanager
    def _told(self) -> Iterator[None]:
        is_told = self._may_be_long
        try:
            if is_told:
                self._tell(is_protected=True)
            yield
        finally:
            if is_told:
                self._tell(is_protected=False)

    @property
    def _may_be_long(self) -> bool:
        # Where nobody said how long the platform waits, every slice counts as protected already.
        return self._working is not None and (self._longest is None or self._longest > self._working)

    def _tell(self, *, is_protected: bool) -> None:
        self._tie.protects(is_protected=is_protected)
        if is_protected and self._tie.is_open:
            self._tie.ask()
        if self._store.database.dialect.has_one_writer:
            # The chunk has its lock; and what has one file has one machine, with nobody who reads it from afar.
            return
        try:
            self._store.leases.protect(self._lease(), is_protected=is_protected)
        except Exception:
            extra = {"run_id": self._lease().run_id}
            _logger.warning("the store was not told that a chunk is protected", extra=extra, exc_info=True)
