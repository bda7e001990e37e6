"""The sweep: settling runs that nobody works, and waking workers up for those that wait."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from batchkit.model import RunId
from batchkit.queue import Queue
from batchkit.store import Store

_logger = logging.getLogger("batchkit")
_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did: the runs whose dead workers' leases it ended, and those it woke workers up for."""

    settled: tuple[RunId, ...]
    woken: tuple[RunId, ...]


def sweep(store: Store, queue: Queue) -> Swept:
    """
    Settle the running runs that have no live lease, then wake workers up for each queued run.

    Any number of sweeps at once is safe: changes are made under the run's lock, and a wake-up too many finds nothing.
    """
    settled = tuple(store.runs.unattended(limit=_AT_ONCE))
    for run_id in settled:
        state = store.runs.settle_unattended(run_id)
        _logger.info("a run had no live lease", extra={"run_id": run_id, "state": state.value})
    woken = tuple(run_id for run_id, name in store.runs.waking(limit=_AT_ONCE) if wake(queue, run_id, name))
    return Swept(settled=settled, woken=woken)


def wake(queue: Queue, run_id: RunId, name: str) -> bool:
    """Wake a worker up; a queue that cannot is logged, since the run is safe in the store and the next sweep tries."""
    try:
        queue.wake(run_id, queue=name)
    except Exception:
        _logger.exception("no worker could be woken up; the next sweep tries again", extra={"run_id": run_id})
        return False
    return True
