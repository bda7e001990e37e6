"""A Celery worker that is being drained asks its broker for nothing, so that others get what waits."""

from __future__ import annotations

import logging
import threading
from typing import Any

from batchkit.draining import DrainNotice
from batchkit.forking import ForkGuard

_logger = logging.getLogger("batchkit")
_LOOK_SECONDS = 0.2


class Consuming:
    """
    Has the worker's consumer leave its queues while the instance is being drained, and take them up again after that.

    Without it, a drained worker is idle, and so the quickest to take each message that it is to leave to others.
    """

    def __init__(self, consumer: Any) -> None:  # noqa: ANN401  Celery has no types
        self._consumer = consumer
        self._notice = DrainNotice()
        #: the queues that were left, to be taken up again
        self._left: list[str] = []
        self._has_left = False
        self._ends = threading.Event()
        self._guard = ForkGuard()
        self._thread = threading.Thread(target=self._run, name="batchkit-consuming", daemon=True)

    def start(self) -> None:
        """Begin to look for the notice."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was left stays left, since the worker ends."""
        self._ends.set()

    def _run(self) -> None:
        while not self._ends.wait(_LOOK_SECONDS):
            is_drained = self._notice.look()
            if is_drained is self._has_left:
                continue
            self._has_left = is_drained
            with self._guard.at_work():
                # The consumer belongs to the thread that works its loop.
                self._consumer.call_soon(self._leave if is_drained else self._take_up)

    def _leave(self) -> None:
        self._left = list(self._consumer.app.amqp.queues.consume_from)
        for name in self._left:
            self._do(self._consumer.cancel_task_queue, name)
        _logger.info("the instance is being drained: this worker takes nothing more", extra={"queues": self._left})

    def _take_up(self) -> None:
        for name in self._left:
            self._do(self._select_and_add, name)
        _logger.info("the instance is drained no longer: this worker takes work again", extra={"queues": self._left})

    def _select_and_add(self, name: str) -> None:
        # Leaving has deselected it, and in Celery 5.4 adding selects none: the next connection would be without it.
        queues = self._consumer.app.amqp.queues
        queues.select_add(queues[name])
        self._consumer.add_task_queue(name)

    @staticmethod
    def _do(step: Any, name: str) -> None:  # noqa: ANN401  a method of Celery's
        try:
            step(name)
        except Exception:
            # An error would end the loop; where the connection was lost, the next one is made for the queues as named.
            _logger.warning("a queue could not be left or taken up again", extra={"queue": name}, exc_info=True)
