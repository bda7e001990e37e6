"""Saying in the store that a worker is there, and learning there that it is to be drained."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from batchkit.draining import DrainNotice
from batchkit.errors import DrainImpossible
from batchkit.forking import ForkGuard
from batchkit.store import ATTEND_EVERY_SECONDS, Fleet

_logger = logging.getLogger("batchkit")

#: A drain that was asked for through the store lasts as long as a platform may take to stop the worker.
_DRAIN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """What kind of worker tracks: celery, rq or local; its queues, None for all; and its slots for slices."""

    name: str
    queues: tuple[str, ...] | None
    slots: int


#: What `batchkit supervise` is: it works nothing, so it is not among the workers of the fleet.
SUPERVISOR = WorkerKind("supervisor", (), 0)


class Attendance:
    """Says in the store, every few seconds, that the worker is there, and learns there that it is to be drained."""

    def __init__(self, fleet: Fleet, kind: WorkerKind, *, name: str, instance: str, ends: threading.Event) -> None:
        self._fleet = fleet
        self._kind = kind
        self._name = name
        self._instance = instance
        self._ends = ends
        self._is_new = True
        self._guard = ForkGuard()
        self._notice = DrainNotice()
        #: whether the notice was put up for a drain that is written in the store
        self._is_drained = False

    def run(self) -> None:
        """Attend until the tracker ends, and leave."""
        while True:
            with self._guard.at_work():
                self._attend()
            if self._ends.wait(ATTEND_EVERY_SECONDS):
                break
        try:
            self._fleet.leave(self._name)
        except Exception:
            _logger.info("a worker could not say that it leaves; it counts as there for a while", exc_info=True)

    def _attend(self) -> None:
        kind = self._kind
        try:
            is_to_drain = self._fleet.attend(
                self._name,
                instance=self._instance,
                kind=kind.name,
                queues=kind.queues,
                slots=kind.slots,
                is_new=self._is_new,
            )
            self._is_new = False
        except Exception:
            _logger.info("a worker could not say that it is there; it tries again", exc_info=True)
            return
        if is_to_drain and not self._is_drained:
            is_to_drain = self._put_up()
        elif is_to_drain and not self._notice.look():
            # It has ended, or was called off here.
            is_to_drain = not self._is_undrained()
        self._is_drained = is_to_drain

    def _put_up(self) -> bool:
        try:
            self._notice.put_up(seconds=_DRAIN_SECONDS)
        except DrainImpossible as error:
            _logger.warning("a drain that was asked for in the store cannot be told here: %s", error)
            return False
        return True

    def _is_undrained(self) -> bool:
        try:
            self._fleet.undrain(self._name)
        except Exception:
            _logger.info("a worker could not say that it takes work again; it tries again", exc_info=True)
            return False
        return True
