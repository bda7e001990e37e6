"""Going carefully where workers have died before."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from batchkit.errors import WorkerKilled
from batchkit.isolation import Isolation
from batchkit.model import Lease
from batchkit.stopping import Stopping
from batchkit.store import Store
from batchkit.suspicion import Suspicion

if TYPE_CHECKING:
    from typing_extensions import Self

_logger = logging.getLogger("batchkit")
_POLL_SECONDS = 0.2


class Caution:
    """
    Says of a slice that it enters a place which is suspect before it does, and there of a shutdown as soon as it knows.

    Where nothing is suspect it does nothing. On a database with one writer a shutdown cannot be written while a chunk
    is in flight, and after it nobody needs to know.
    """

    def __init__(self, store: Store, stop: Stopping) -> None:
        self._suspects = store.suspects
        self._stop = stop
        self._can_tell = not store.database.dialect.has_one_writer
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lease: Lease | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=_POLL_SECONDS)

    def narrow(self, lease: Lease, isolation: Isolation) -> None:
        """Let the next chunk take one item, where it should."""
        known = lease.suspicion
        if known is not None and known.takes_one(passed=lease.done + lease.failed):
            isolation.take_one()

    def before_chunk(self, lease: Lease, isolation: Isolation) -> Lease:
        """
        Write down that a chunk is entered, where that is suspect; `narrow` comes before.

        Raises:
            LeaseLost: the lease is over.
        """
        known = lease.suspicion
        if known is None:
            return lease
        if known.is_over(place=lease.seq, passed=lease.done + lease.failed):
            return self._suspects.forget(lease)
        return self._entered(lease, known, items=isolation.limit)

    def before_step(self, lease: Lease) -> Lease:
        """
        Write down that work without items is entered, where that is suspect.

        Raises:
            WorkerKilled: it has killed its workers often enough.
            LeaseLost: the lease is over.
        """
        known = lease.suspicion
        if known is None:
            return lease
        if known.is_over(place=lease.seq, passed=lease.done + lease.failed):
            return self._suspects.forget(lease)
        if known.is_killing(place=lease.seq):
            raise WorkerKilled(lease.run_id, what=f"the work behind the cursor {lease.cursor}")
        return self._entered(lease, known, items=0)

    def is_at_killer(self, lease: Lease) -> bool:
        """Say whether the next item is to be recorded as a failure without being tried."""
        return lease.suspicion is not None and lease.suspicion.is_to_pass(place=lease.seq)

    def is_alive_after_all(self, lease: Lease) -> None:
        """Take back what was counted against a place when this worker's lease ran out."""
        if lease.suspicion is not None:
            self._suspects.take_back(lease)

    def _entered(self, lease: Lease, known: Suspicion, *, items: int) -> Lease:
        if known.has_entered(place=lease.seq, fence=lease.fence):
            return lease
        self._lease = entered = self._suspects.enter(lease, items=items)
        if self._thread is None and self._can_tell:
            self._thread = threading.Thread(target=self._watch, name="batchkit-caution", daemon=True)
            self._thread.start()
        return entered

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            if not self._stop.requested or self._lease is None:
                continue
            try:
                self._suspects.stop(self._lease)
            except Exception:
                if not self._ended.is_set():
                    _logger.warning("a shutdown could not be written down", exc_info=True)
            else:
                return
