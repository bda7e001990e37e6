"""Wake-ups as Celery messages."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, cast

from celery import current_app, current_task, signals
from celery.app.trace import build_tracer
from kombu.utils import json

from batchkit.delivery import MOST_HOPS, Kit
from batchkit.draining import DrainNotice
from batchkit.errors import InvalidQueue
from batchkit.instance import worker_name
from batchkit.job import Definition
from batchkit.model import WakeUp
from batchkit.queues.celery.consuming import Consuming
from batchkit.queues.celery.message import (
    HANDED_ON,
    HOPS,
    PARTITION,
    ROUTE,
    RUN,
    WAKE,
    CeleryMessage,
    envelope_of,
    headers_of,
    is_task_of,
    key_of,
)
from batchkit.queues.celery.request import SliceRequest
from batchkit.queues.celery.shutdown import is_stopping
from batchkit.queues.sweeper import Sweeper
from batchkit.suspicion import Death
from batchkit.telling import Telling
from batchkit.tracking import Tracker, WorkerKind

if TYPE_CHECKING:
    from celery import Celery, Signature, Task

_logger = logging.getLogger("batchkit")
_DEFAULT = "default"
#: What kills every process of a worker takes a moment for it: who lives longer than that was not killed as well.
_OUTLIVED_SECONDS = 0.5
#: What Celery keeps of the params that people see, by default.
_LONGEST_REPR = 1024


class CeleryQueue:
    """
    Stock Celery workers as the workers: `celery -A app worker`, with any pool and any broker of Celery's.

    Each job is a task under the job's own name. Its messages carry a run's id; they are acknowledged early, since the
    store, not the broker, knows what is left to do. Workers sweep for runs that were lost by themselves.

    Args:
        app: the Celery app; build the queue in the module that makes the app, or in one that workers import with it.
    """

    crosses_processes = True
    keeps_messages = True

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._kit: Kit | None = None
        self._told: dict[str, Telling] = {}
        self._sweeper: Sweeper | None = None
        self._tracker: Tracker | None = None
        self._consuming: Consuming | None = None
        self._notice = DrainNotice()

    @property
    def app(self) -> Celery:
        """The Celery app."""
        return self._app

    def attach(self, kit: Kit) -> None:
        """Register the kit's jobs as tasks, and sweep for it in workers; the kit does this."""
        if self._kit is not None:
            raise InvalidQueue("this CeleryQueue belongs to another kit; give each BatchKit one of its own")
        self._kit = kit
        if self._app.finalized:
            kit.jobs.when_added(self._on_job_added)
        else:
            # After the app's own tasks, so that `@app.task` over a job keeps the name and its options.
            self._app.on_after_finalize.connect(self._register_all, weak=False)
        signals.worker_init.connect(self._on_worker_init, weak=False)
        signals.worker_process_init.connect(self._on_child_begins, weak=False)
        signals.worker_ready.connect(self._on_worker_ready, weak=False)
        signals.worker_shutdown.connect(self._on_worker_shutdown, weak=False)
        signals.task_received.connect(self._on_received, weak=False)
        signals.task_revoked.connect(self._on_revoked, weak=False)
        signals.task_success.connect(self._on_told, weak=False)
        signals.task_failure.connect(self._on_told, weak=False)
        signals.task_retry.connect(self._on_not_told, weak=False)

    def wake(self, wake_up: WakeUp) -> None:
        """Send a message that carries the wake-up; for a run that a message started, that message again."""
        self._send(wake_up, 0)

    def message_at_hand(self, job: Definition) -> CeleryMessage | None:
        """Give the message that is being worked in this thread; None outside a task of this app."""
        task = self._task_at_hand()
        return None if task is None else CeleryMessage(task, job, send=self._send, on_told=self._told.__setitem__)

    def is_at_work_here(self) -> bool:
        """Tell whether this thread works a task of this app."""
        return self._task_at_hand() is not None

    def _task_at_hand(self) -> Task | None:
        task = current_task._get_current_object() if current_task else None  # noqa: SLF001  the proxy has no other way
        if task is None or task.request.called_directly or task.app is not self._app:
            return None
        return task

    def is_message(self, task: str) -> bool:
        """Tell whether messages of a task of this name are batchkit's: each works a slice, and no more than that."""
        found = self._app.tasks.get(task)
        return found is not None and self._is_ours(found)

    def name_of(self, queue: str, job: str) -> str:
        """Give Celery's name of the queue that wake-ups of a job go to, which is in *queue* for batchkit."""
        if queue != _DEFAULT:
            return queue
        route = self._app.amqp.router.route({}, job).get("queue")
        return str(getattr(route, "name", route) or self._app.conf.task_default_queue)

    def signature(
        self, job: Definition, args: tuple[object, ...], kwargs: dict[str, object], *, immutable: bool
    ) -> Signature:
        """Give Celery's signature of the job, for chains, groups and chords."""
        signature = self._app.signature(job.name, args=args, kwargs=kwargs, immutable=immutable)
        return signature if job.options.queue == _DEFAULT else signature.set(queue=job.options.queue)

    # Sending

    def _send(self, wake_up: WakeUp, hops: int) -> None:
        name, options, headers = self._envelope(wake_up)
        headers.update({RUN: wake_up.run_id, PARTITION: wake_up.partition, WAKE: wake_up.number, HOPS: hops})
        if self._app.conf.task_always_eager:
            self._app.tasks[name].apply(task_id=options["task_id"], headers=headers)
            return
        # For people: Flower and the log show the run's params, which the message itself does not carry.
        shown = {"argsrepr": f"run {wake_up.run_id}", "kwargsrepr": wake_up.params[:_LONGEST_REPR]}
        options = {**shown, **self._routed(options)}
        self._app.send_task(name, args=(), kwargs={}, headers=headers, add_to_parent=False, **options)

    def _routed(self, options: dict[str, Any]) -> dict[str, Any]:
        """
        Name the queue of an exchange of the user's, which is declared with it.

        To Redis an exchange that this process has not declared is a direct one, and the message goes nowhere.
        """
        exchange = options.get("exchange")
        queues = self._app.amqp.queues.items() if exchange else ()
        name = next((name for name, queue in queues if queue.exchange and queue.exchange.name == exchange), None)
        return options if name is None else {**options, "queue": name}

    def _envelope(self, wake_up: WakeUp) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Give the task's name, the options and the headers of the message that started a run, or of one of ours."""
        written = None if wake_up.message is None else json.loads(wake_up.message)
        if written is None or "celery" not in written:
            written = None
        elif wake_up.is_by_message:
            return written["task"], written["options"], written["headers"]
        # Several partitions are worked at a time, and by the same worker.
        task_id = f"{wake_up.run_id}.{wake_up.partition}" if wake_up.partition else wake_up.run_id
        options: dict[str, Any] = {"task_id": task_id, "ignore_result": True}
        if written is not None:
            options.update({name: value for name, value in written["options"].items() if name in ROUTE})
        elif wake_up.queue != _DEFAULT:
            options["queue"] = wake_up.queue
        return wake_up.job, options, {}

    # Tasks

    def _register_all(self, **_: Any) -> None:  # noqa: ANN401
        self._attached.jobs.when_added(self._on_job_added)

    def _on_job_added(self, job: Definition) -> None:
        self._register(job)

    def _register(self, job: Definition) -> Task | None:
        """Make the job's task, unless there is one of its name; give it."""
        for task in self._app.tasks.values():
            if is_task_of(task, job):
                self._adopt(task)
        if job.name in self._app.tasks:
            return None
        function = self._attached.jobs.function_of(job.name)
        if not function.__name__.isidentifier():
            _logger.warning("%s is no task of Celery's: workers cannot import a %s", job.name, function.__name__)
            return None
        task = self._app.task(
            name=job.name,
            lazy=False,
            shared=False,
            # A late acknowledgement would have the broker deliver running slices again, which the store prevents.
            acks_late=False,
            max_retries=None,
        )(function)
        if job.options.queue != _DEFAULT:
            # Where `apply_async` keeps what it sends with; the attribute `queue` of tasks is deprecated.
            task._exec_options = {**task._get_exec_options(), "queue": job.options.queue}  # noqa: SLF001
        self._adopt(task)
        return task

    def _adopt(self, task: Task) -> None:
        task.Request = f"{SliceRequest.__module__}:{SliceRequest.__qualname__}"
        task.when_child_is_lost = self._on_child_lost
        if hasattr(task, "_orig_run"):
            # What autoretry_for has put around it. A failed run waits for resume(), and is told of when it has failed.
            task.run = task._orig_run  # noqa: SLF001  there is no other way to take it back

    def _on_child_lost(self, request: SliceRequest, death: Death) -> bool:
        """End the leases of a child that is gone: its runs need not wait for them to run out."""
        sweeper = self._sweeper
        if sweeper is None:
            return True
        pid = getattr(request, "worker_pid", None)
        headers = headers_of(request.context)
        if RUN not in headers:
            # It may have died before the run was written, and then this message is all there is of it.
            hops = headers.get(HOPS, 0)
            if hops >= MOST_HOPS:
                return False
            sweeper.do_soon(lambda: self._send_start_again(request, hops + 1))
        if pid is not None:
            soon = threading.Timer(_OUTLIVED_SECONDS, sweeper.do_soon, [lambda: self._end_leases(pid, death)])
            soon.daemon = True
            soon.start()
        return True

    def _end_leases(self, pid: int, death: Death) -> None:
        self._attached.end_leases_of(worker_name(pid), death=Death.SHUTDOWN if is_stopping() else death)

    def _send_start_again(self, request: SliceRequest, hops: int) -> None:
        """Send a copy of a message that starts a run; where the run was written, the copy joins it."""
        context = request.context
        options, headers = envelope_of(context)
        self._app.send_task(
            request.task.name,
            args=context.args,
            kwargs=context.kwargs,
            headers={**headers, HOPS: hops},
            add_to_parent=False,
            **self._routed(options),
        )

    @property
    def _attached(self) -> Kit:
        if self._kit is None:
            message = "give the queue to a kit first: BatchKit(..., queue=CeleryQueue(app))"
            raise RuntimeError(message)
        return self._kit

    # What workers tell

    def _on_child_begins(self, sender: Any, **_: Any) -> None:  # noqa: ANN401
        """
        Go over to the app of a child that was started anew.

        Its app is a copy from the main process; the one that the module makes again there is not the worker's.
        """
        app = current_app._get_current_object()  # noqa: SLF001  the proxy has no other way
        if app is self._app or app.main != self._app.main:
            return
        self._app = app
        for job in self._attached.jobs.values():
            task = self._register(job)
            if task is not None:
                # What Celery did for the others a moment ago
                task.__trace__ = build_tracer(task.name, task, app.loader, sender, app=app)

    def _on_worker_init(self, sender: Any, **_: Any) -> None:  # noqa: ANN401
        if sender.app is self._app:
            self._tracker = self._attached.tracker()
            # Before the children are started, which are to find it.
            self._tracker.listen()

    def _on_worker_ready(self, sender: Any, **_: Any) -> None:  # noqa: ANN401
        if sender.app is self._app:
            self._sweeper = Sweeper(self._attached.recover)
            self._sweeper.start()
            self._consuming = Consuming(sender)
            self._consuming.start()
            if self._tracker is not None:
                self._tracker.start(self._kind_of(sender), is_stopping=is_stopping)
            for task in self._app.tasks.values():
                if self._is_ours(task) and getattr(task, "autoretry_for", None):
                    _logger.warning("autoretry_for does nothing for %s: a failed run waits for resume()", task.name)

    def _on_worker_shutdown(self, sender: Any, **_: Any) -> None:  # noqa: ANN401
        if sender.app is self._app and self._consuming is not None:
            self._consuming.stop()
        if sender.app is self._app and self._sweeper is not None:
            self._sweeper.stop()
        if sender.app is self._app and self._tracker is not None:
            self._tracker.stop()

    def _kind_of(self, consumer: Any) -> WorkerKind:  # noqa: ANN401
        """Say what kind of worker this is; Celery calls its default queue as it likes."""
        default = self._app.conf.task_default_queue
        names = [_DEFAULT if name == default else str(name) for name in self._app.amqp.queues.consume_from]
        return WorkerKind("celery", tuple(sorted(names)), int(getattr(consumer.pool, "limit", None) or 1))

    def _on_received(self, sender: Any, request: Any, **_: Any) -> None:  # noqa: ANN401, ARG002  Celery's arguments
        """
        Hand a wake-up on that came to a worker which is stopping, or being drained.

        It was asked for before that, as the one that waited longest. Celery gives it back when it has stopped,
        which takes seconds; that copy comes too late then, and does nothing.
        """
        if not self._is_ours(request.task):
            return
        headers = request.request_dict
        run_id, hops = headers.get(RUN), headers.get(HOPS, 0)
        if run_id is None or self._sweeper is None or hops >= MOST_HOPS:
            return
        if not (is_stopping() or self._notice.is_there):
            return

        def hand_on() -> None:
            for wake_up in self._attached.waiting(run_id, headers[PARTITION]):
                if wake_up.number == headers[WAKE]:
                    self._send(wake_up, hops + 1)

        headers[HANDED_ON] = True
        self._sweeper.do_soon(hand_on)

    def _on_revoked(self, sender: Any, request: Any, *, expired: bool = False, **_: Any) -> None:  # noqa: ANN401
        """Cancel the run whose message was revoked: Celery throws its messages away from now on."""
        if expired or self._sweeper is None or not self._is_ours(sender):
            return
        run_id = headers_of(request).get(RUN)
        key = key_of(request.id)
        self._sweeper.do_soon(lambda: self._attached.cancel_message(key, run_id))

    def _is_ours(self, task: Any) -> bool:  # noqa: ANN401
        """Tell whether a task works slices for this queue: there may be other apps in the process."""
        return bool(getattr(task, "when_child_is_lost", None) == self._on_child_lost)

    def _on_told(self, sender: Any, **_: Any) -> None:  # noqa: ANN401
        telling = self._told.pop(cast("str", sender.request.id), None) if self._told else None
        if telling is not None:
            telling.done()

    def _on_not_told(self, sender: Any, **_: Any) -> None:  # noqa: ANN401
        telling = self._told.pop(cast("str", sender.request.id), None) if self._told else None
        if telling is not None:
            telling.give_up()
