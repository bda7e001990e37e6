"""The sweep: settling runs that nobody works, and waking workers up for those that wait."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from batchkit.model import RunId, WakeUp
from batchkit.queue import Queue
from batchkit.store import Store
from batchkit.store.dialects import Fault
from batchkit.waking import send, share

T = TypeVar("T")

_logger = logging.getLogger("batchkit")
_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did: the runs whose dead workers' leases it ended, and those it woke workers up for."""

    settled: tuple[RunId, ...]
    woken: tuple[RunId, ...]


def sweep(store: Store, queue: Queue) -> Swept:
    """
    Settle the running runs that have no live lease, then wake workers up for what has waited too long.

    Any number of sweeps at once is safe: changes are made under the run's lock, each message is sent by one of them,
    and a wake-up too many finds nothing.
    """
    settled = tuple(run_id for run_id in store.runs.unattended(limit=_AT_ONCE) if _settle(store, run_id))
    sent = [wake_up for wake_up in _to_send(store, queue) if _send(store, queue, wake_up)]
    sent += _shared(store, queue)
    return Swept(settled=settled, woken=tuple(dict.fromkeys(wake_up.run_id for wake_up in sent)))


def _to_send(store: Store, queue: Queue) -> Iterator[WakeUp]:
    if not queue.keeps_messages:
        yield from store.wake_ups.all_waiting(limit=_AT_ONCE)
        return
    for wake_up in store.wake_ups.overdue(limit=_AT_ONCE):
        if _unless_locked(store, wake_up.run_id, partial(store.wake_ups.take_resend, wake_up)):
            yield wake_up
    for wake_up in store.announcements.unannounced(limit=_AT_ONCE):
        if _unless_locked(store, wake_up.run_id, partial(store.announcements.take_announcement_resend, wake_up)):
            yield wake_up


def _send(store: Store, queue: Queue, wake_up: WakeUp) -> bool:
    return bool(_unless_locked(store, wake_up.run_id, partial(send, store, queue, wake_up)))


def _shared(store: Store, queue: Queue) -> list[WakeUp]:
    runs = store.wake_ups.short_of_workers(limit=_AT_ONCE) if queue.keeps_messages else []
    return [
        each for run_id in runs for each in _unless_locked(store, run_id, partial(share, store, queue, run_id)) or ()
    ]


def _settle(store: Store, run_id: RunId) -> bool:
    state = _unless_locked(store, run_id, partial(store.runs.settle_unattended, run_id))
    if state is None:
        return False
    _logger.info("a run had no live lease", extra={"run_id": run_id, "state": state.value})
    return True


def _unless_locked(store: Store, run_id: RunId, step: Callable[[], T]) -> T | None:
    """Do *step* for a run; None where somebody holds its rows for long, which must not keep the others waiting."""
    try:
        return step()
    except Exception as error:
        if store.database.fault(error) is not Fault.TRANSIENT:
            raise
        _logger.warning("a run is locked by somebody; a later sweep tries again", extra={"run_id": run_id})
        return None
