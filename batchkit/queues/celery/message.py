"""A Celery message, seen from inside the task that it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

from celery.exceptions import Ignore, Retry
from kombu.utils import json

from batchkit.delivery import start_key
from batchkit.job import Definition
from batchkit.model import Progress, RunId, WakeUp
from batchkit.queues.celery.shutdown import stopping
from batchkit.stopping import Stop, Stopping
from batchkit.telling import Telling

if TYPE_CHECKING:
    from celery import Task

_logger = logging.getLogger("batchkit")
_ENDLESS = 1_000_000_000

#: Headers of a wake-up.
RUN, PARTITION, WAKE, HOPS = "batchkit_run", "batchkit_partition", "batchkit_wake", "batchkit_hops"
#: What the main process notes in a message that it has handed on, for the child that gets it as well.
HANDED_ON = "batchkit_handed_on"

#: What says where a message goes.
ROUTE = ("queue", "exchange", "routing_key", "priority")

#: What a message keeps when it is sent again: its place in a workflow, its route and limits. Not `expires`: what has
#: begun is to be done.
_KEPT = (
    "task_id",
    "root_id",
    "parent_id",
    "group_id",
    "group_index",
    "shadow",
    "chord",
    "chain",
    "link",
    "link_error",
    "soft_time_limit",
    "time_limit",
    "reply_to",
    "replaced_task_nesting",
    "origin",
    "stamped_headers",
)
#: What Flower and the log show; whoever sent it may have hidden something in it.
_SHOWN = ("argsrepr", "kwargsrepr")


class CeleryMessage:
    """The message of the task that this thread works."""

    #: a lost child is no failure, see request.py
    survives_kills = True
    #: what ends a task without its callbacks
    ends: tuple[type[Exception], ...] = (Ignore, Retry)

    def __init__(
        self,
        task: Task,
        job: Definition,
        *,
        send: Callable[[WakeUp, int], None],
        on_told: Callable[[str, Telling], None],
    ) -> None:
        self._task = task
        self._request = task.request
        self._send = send
        self._on_told = on_told
        self.key = key_of(self._request.id)
        self.call_key = self.key
        self.is_of_the_job = is_task_of(task, job)
        self.is_eager: bool = bool(self._request.is_eager)
        headers = headers_of(self._request)
        self.run_id: RunId | None = headers.get(RUN)
        self.partition: int = headers.get(PARTITION, 0)
        self.wake_no: int = headers.get(WAKE, 0)
        self.hops: int = headers.get(HOPS, 0)
        self._is_handed_on: bool = headers.get(HANDED_ON, False)

    @property
    def shows_progress(self) -> bool:
        """Whether the app keeps the result of this message, and so its PROGRESS."""
        if self.is_eager or not self._task.app.conf.result_backend:
            return False
        asked = vars(self._request).get("ignore_result")
        return not (self._task.ignore_result if asked is None else asked)

    def written_down(self) -> str:
        """Give what it takes to send it again, as JSON."""
        options, headers = envelope_of(self._request)
        return str(json.dumps({"celery": 1, "task": self._task.name, "options": options, "headers": headers}))

    def stopping(self) -> AbstractContextManager[Stopping]:
        """Learn of the worker's shutdown while the message is worked; an eager one is worked to the run's end."""
        return Stop() if self.is_eager else stopping(self._request.id)

    def show(self, progress: Progress) -> None:
        """Store PROGRESS in the shape that celery-progress reads."""
        meta = {
            "pending": False,
            "current": progress.done + progress.failed,
            "total": progress.total,
            "percent": progress.percent or 0,
            "description": "",
        }
        self._task.backend.store_result(self._request.id, meta, "PROGRESS")

    def hand_on(self, wake_up: WakeUp) -> None:
        """Send *wake_up* as a copy of it that has hopped once more, unless the main process has: one copy is enough."""
        if not self._is_handed_on:
            self._send(wake_up, self.hops + 1)

    def parked(self) -> NoReturn:
        """End the task: no callbacks, no result."""
        raise Ignore

    def left_to_another(self) -> NoReturn:
        """End the task, for good: a sweep sends it again if need be."""
        raise Ignore

    def again(self, seconds: float) -> NoReturn:
        """Have Celery deliver the same message after *seconds*."""
        # Not None: that is the task's own limit, and a message that starts a run must outlast any outage.
        raise self._task.retry(countdown=seconds, max_retries=_ENDLESS, throw=False)

    def again_surviving(self) -> NoReturn:
        """Never be asked for."""
        raise NotImplementedError

    def is_copy_of(self, _: str) -> bool:
        """Say yes: Celery does not tell a copy of a message from another with the same id."""
        return True

    def is_asked_for_again(self, _: RunId) -> bool:
        """Say no, for the same reason."""
        return False

    def was_told(self, _: RunId) -> bool:
        """Say no: Celery does not know."""
        return False

    def hush(self) -> NoReturn:
        """End the task: it is a copy of one whose end was told."""
        _logger.warning("message %s came again after its run's end was told, and was left out", self.key)
        raise Ignore

    def ends_now(self, _: RunId) -> None:
        """Do nothing: what a Celery task returns or raises is its end."""

    def when_told(self, telling: Telling) -> None:
        """Call `telling.done()` once the callbacks went out and the result is stored."""
        if self.is_eager:
            telling.done()
        else:
            telling.keep()
            self._on_told(self._request.id, telling)


def key_of(task_id: str) -> str:
    """Name the messages with this task id."""
    return start_key("celery", task_id)


def envelope_of(context: Any) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ANN401  Celery has no types
    """Give the options and headers with which a message is sent again; *context* is what its task sees of it."""
    options = context.as_execution_options()
    names = (*_KEPT, *(options.get("stamped_headers") or ()))
    kept = {name: options[name] for name in names if options.get(name) is not None}
    asked = vars(context).get("ignore_result")
    if asked is not None:
        kept["ignore_result"] = asked
    kept.update({name: vars(context)[name] for name in _SHOWN if vars(context).get(name) is not None})
    kept.update(_route(context.delivery_info or {}))
    headers = {name: value for name, value in headers_of(context).items() if not name.startswith("batchkit_")}
    return kept, headers


def headers_of(request: Any) -> dict[str, Any]:  # noqa: ANN401  a request, or the context of one
    """Give a message's own headers, those that are not Celery's."""
    return dict(getattr(request, "headers", None) or {})


def is_task_of(task: Task, job: Definition) -> bool:
    """Say whether *task* is the job itself: ours, or one that `@app.task` made of the decorated function."""
    # autoretry_for wraps what it finds
    run = getattr(task, "_orig_run", task.run)
    return getattr(run, "name", None) == job.name and hasattr(run, "function")


def _route(delivery_info: dict[str, Any]) -> dict[str, Any]:
    """Give what sends a message to the queue that this one came from."""
    exchange, routing_key = delivery_info.get("exchange"), delivery_info.get("routing_key")
    if not routing_key:
        route = {}
    elif not exchange:
        route = {"queue": routing_key}
    else:
        route = {"exchange": exchange, "routing_key": routing_key}
    priority = delivery_info.get("priority")
    return route if priority is None else {**route, "priority": priority}
