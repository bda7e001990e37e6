"""Renewing a lease while a long chunk runs."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from batchkit.errors import BatchkitError
from batchkit.model import Lease
from batchkit.store import Leases

if TYPE_CHECKING:
    from typing_extensions import Self

_logger = logging.getLogger("batchkit")
_RENEWALS_PER_LEASE = 3


class LeaseTimer:
    """
    Renews a lease from a thread and a connection of its own, when no checkpoint has done so for a third of it.

    A chunk that takes longer than *chunk_timeout* is not renewed: a hung one must not hold its partition for ever.
    """

    def __init__(self, leases: Leases, lease: Lease, *, chunk_timeout: float) -> None:
        self._leases = leases
        self._lease = lease
        self._chunk_timeout = chunk_timeout
        self._interval = lease.seconds / _RENEWALS_PER_LEASE
        self._renewed_at = self._chunk_began_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"batchkit-lease-{lease.run_id}", daemon=True)
        #: whether the lease was seen to be over
        self.is_lost = False
        #: whether the chunk in flight has taken too long
        self.is_stuck = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=self._interval)

    def chunk_begins(self) -> None:
        """Count the chunk's time from now."""
        self._chunk_began_at = time.monotonic()

    def rests(self) -> None:
        """Count no time: no chunk is in flight until the next begins."""
        self._chunk_began_at = math.inf

    def checkpointed(self) -> None:
        """Take note that a checkpoint has renewed the lease."""
        self._renewed_at = self._chunk_began_at = time.monotonic()

    def _run(self) -> None:
        wait = self._interval
        while not self._ended.wait(wait):
            now = time.monotonic()
            left = self._renewed_at + self._interval - now
            if left > 0:
                # A checkpoint has renewed it. Not a whole interval more: two thirds of the lease would be over by then,
                # and a renewal that fails could not be tried again in time.
                wait = left
                continue
            wait = self._interval
            if now - self._chunk_began_at > self._chunk_timeout:
                if not self.is_stuck:
                    self.is_stuck = True
                    _logger.warning(
                        "a chunk has taken longer than chunk_timeout; its lease is no longer renewed",
                        extra={"run_id": self._lease.run_id, "partition": self._lease.number},
                    )
                continue
            self._renew()

    def _renew(self) -> None:
        try:
            if not self._leases.renew(self._lease):
                self.is_lost = True
                self._ended.set()
            self._renewed_at = time.monotonic()
        except BatchkitError:
            # The database is away or its lock is held. The lease may run out, and then the fence decides.
            _logger.warning("a lease could not be renewed", extra={"run_id": self._lease.run_id}, exc_info=True)
        except Exception:
            if not self._ended.is_set():
                _logger.warning("a lease could not be renewed", extra={"run_id": self._lease.run_id}, exc_info=True)
