"""Retention: old runs go by themselves, a little with each sweep."""

from __future__ import annotations

import logging
import random
import time

from batchkit.store import Purged, Store
from batchkit.store.dialects import Fault

_logger = logging.getLogger("batchkit")

#: For how long one sweep removes, at the most, not counting the transaction that it is in the middle of.
_BUDGET_SECONDS = 0.2
#: How long it leaves that be where nothing old was left.
_REST_SECONDS = 600.0


class Retention:
    """
    Removes the runs that ended more than so many *seconds* ago, as `batchkit purge` does.

    Every sweep of the fleet may do so at once. Where much is to be removed each of them does some of it, and where
    nothing is, each looks every ten minutes or so.
    """

    def __init__(self, store: Store, *, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._after = ""
        self._rests_until = 0.0

    def step(self) -> Purged:
        """Remove for a moment what is old enough, and give what was removed."""
        if time.monotonic() < self._rests_until:
            return Purged()
        try:
            return self._removed(until=time.monotonic() + _BUDGET_SECONDS)
        except Exception as error:
            # Whatever it is, the sweep and what comes after it have nothing to do with it.
            if self._store.database.fault(error) is Fault.TRANSIENT:
                _logger.warning("old runs are locked by somebody; a later sweep tries again", exc_info=True)
            else:
                _logger.exception("old runs could not be removed; trying again", extra={"seconds": _REST_SECONDS})
                self._after = ""
                self._rests_until = time.monotonic() + _REST_SECONDS
            return Purged()

    def _removed(self, *, until: float) -> Purged:
        purged = Purged()
        for step in self._store.purging.steps(seconds=self._seconds, after=self._after, is_at_random=True):
            purged += step.purged
            self._after = step.after
            if time.monotonic() >= until:
                break
        else:
            # From the first on again: what had to stay then, since it was tried again, may be done.
            self._after = ""
            # Not in step with the other sweeps.
            self._rests_until = time.monotonic() + random.uniform(0.8, 1.2) * _REST_SECONDS  # noqa: S311  no secret
        if purged.runs or purged.kept:
            _logger.info("old runs were removed", extra={"runs": purged.runs, "kept": purged.kept})
        return purged
