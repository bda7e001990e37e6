"""Waking workers up for a run, and for one of several partitions no more of them than can come."""

from __future__ import annotations

import logging

from batchkit.model import RunId, WakeUp
from batchkit.queue import Queue
from batchkit.store import Store

_logger = logging.getLogger("batchkit")

#: How many wake-ups of one run are under way at most. Each worker that claims with one has the next sent, so that as
#: many come as are free, while what other runs send waits behind no more than these.
WINDOW = 4


def wake(queue: Queue, wake_up: WakeUp) -> bool:
    """Wake a worker up; a queue that cannot is logged, since the run is safe in the store and a later sweep tries."""
    try:
        queue.wake(wake_up)
    except Exception:
        _logger.exception("no worker could be woken up; a later sweep tries again", extra={"run_id": wake_up.run_id})
        return False
    return True


def send(store: Store, queue: Queue, wake_up: WakeUp) -> bool:
    """Wake a worker up by the right to do so that was won in the store; a queue that cannot gives it back."""
    is_sent = wake(queue, wake_up)
    if not is_sent and not wake_up.is_announcement:
        store.wake_ups.give_resend_back(wake_up)
    return is_sent


def wake_run(store: Store, queue: Queue, run_id: RunId, *, partition: int | None = None) -> bool:
    """Wake workers up for what waits of a run that was just made workable; False where nothing does."""
    if partition is None and queue.keeps_messages and store.wake_ups.is_shared(run_id):
        return bool(share(store, queue, run_id))
    # Without messages workers find the others by themselves.
    waiting = store.wake_ups.waiting(run_id, partition=partition, limit=None if queue.keeps_messages else 1)
    for wake_up in waiting:
        wake(queue, wake_up)
    return bool(waiting)


def share(store: Store, queue: Queue, run_id: RunId) -> list[WakeUp]:
    """Wake further workers up for a run with several partitions, where they may come and are not on their way yet."""
    return [wake_up for wake_up in store.wake_ups.take_shares(run_id, window=WINDOW) if send(store, queue, wake_up)]
