"""What a Celery worker's main process does when the child that works a slice is gone."""

from __future__ import annotations

import logging
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.app.task import Context
from celery.exceptions import TimeLimitExceeded, WorkerLostError
from celery.worker.request import Request
from celery.worker.state import task_ready

from batchkit.suspicion import Death

_logger = logging.getLogger("batchkit")


class SliceRequest(Request):  # type: ignore[misc]  # Celery has no types
    """
    Celery's record of a message that a child works.

    A child that is gone is a failure to Celery: it stores one, and calls the error callbacks of a run that goes on by
    itself. Here it is an interruption.
    """

    _is_given_up = False

    @property
    def context(self) -> Context:
        """What the task sees of the message."""
        return self._context

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002  Celery's signature
        """Take note that the child is gone; all else is a failure as ever."""
        error = exc_info.exception
        error = error.exc if isinstance(error, ExceptionWithTraceback) else error
        is_lost = isinstance(error, (WorkerLostError, TimeLimitExceeded, SystemExit, KeyboardInterrupt))
        # A time limit is somebody's wish, and says nothing of the item: it may only take long.
        death = Death.CHILD if isinstance(error, WorkerLostError) else Death.UNSEEN
        if not is_lost or not self._give_up(death):
            return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        _logger.warning("a child was lost in the middle of a slice: %s", error, extra={"task_id": self.id})
        return None

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001  Celery's signature
        """Take note that the child is being killed, since the task's hard time limit is over."""
        if soft or not self._give_up(Death.UNSEEN):
            super().on_timeout(soft, timeout)
            return
        _logger.error("the hard time limit of %s s ended a slice; raise it above slice_time", timeout)

    def _give_up(self, death: Death) -> bool:
        """Leave the rest to others; False where this has gone wrong so often that it is a failure after all."""
        if self._is_given_up:
            return True
        if not self.task.when_child_is_lost(self, death):
            return False
        self._is_given_up = True
        task_ready(self)
        if self.task.acks_late:
            self.acknowledge()
        return True
