"""Wake-ups as RQ jobs."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rq import Queue, get_current_job
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus, Retry
from rq.registry import CanceledJobRegistry

from batchkit.delivery import Kit
from batchkit.errors import InvalidQueue
from batchkit.job import Definition
from batchkit.model import WakeUp
from batchkit.queues.rq import horses, notes
from batchkit.queues.rq.message import RQMessage, path_of

if TYPE_CHECKING:
    from redis import Redis

_logger = logging.getLogger("batchkit")
_RETRIES = 1_000_000
_LONGEST_DESCRIPTION = 1_000
_FAILURE_TTL_SECONDS = 7 * 24 * 3600
#: RQ has no end of its own for our slices: a slice has its time, a chunk its timeout, and the lease ends what hangs.
_NO_TIMEOUT = -1
#: What `job.cancel()` and `send_stop_job_command` leave behind.
_GIVEN_UP = frozenset({JobStatus.CANCELED, JobStatus.STOPPED})
#: Params that `queue.enqueue(job, ...)` takes for itself.
_EATEN = frozenset(
    {"args", "at_front", "depends_on", "description", "failure_ttl", "group_id", "job_id", "job_timeout", "kwargs"}
    | {"meta", "on_failure", "on_stopped", "on_success", "pipeline", "repeat", "result_ttl", "retry", "timeout", "ttl"}
    | {"unique", "webhooks"}
)


class RQQueue:
    """
    Stock RQ workers as the workers: `rq worker`, SimpleWorker, HerokuWorker, a worker pool.

    A run that a program starts is woken up by RQ jobs that live for a slice each. A job that is enqueued with
    `queue.enqueue(job, ...)` is one run, and the same RQ job until its end, so that what depends on it waits for that.
    RQ sweeps for nobody: run `batchkit supervise` beside the workers.

    Args:
        connection: the Redis that the workers listen to.
        serializer: the serializer of the workers, where it is not RQ's default.

    Raises:
        InvalidQueue: the connection decodes what it reads, which RQ's jobs cannot stand.
    """

    crosses_processes = True
    keeps_messages = True
    imports_by_path = True

    def __init__(self, connection: Redis, *, serializer: Any = None) -> None:  # noqa: ANN401  RQ takes a class or its path
        if connection.connection_pool.connection_kwargs.get("decode_responses"):
            raise InvalidQueue(
                "this connection has decode_responses=True, with which RQ cannot read a job; "
                "give RQQueue a connection without it, such as RQQueue(Redis.from_url(url))"
            )
        self._connection = connection
        self._serializer = serializer
        self._kit: Kit | None = None
        self._at_hand: RQMessage | None = None

    @property
    def connection(self) -> Redis:
        """The Redis that the workers listen to."""
        return self._connection

    @property
    def serializer(self) -> Any:  # noqa: ANN401  RQ takes a class or its path
        """The serializer of the workers, as RQ resolves it."""
        return self._queue("default").serializer

    def attach(self, kit: Kit) -> None:
        """Wake workers up for the jobs of *kit*; the kit does this."""
        if self._kit is not None:
            raise InvalidQueue("this RQQueue belongs to another kit; give each BatchKit one of its own")
        self._kit = kit
        kit.jobs.when_added(_warn_of_eaten_params)

    def wake(self, wake_up: WakeUp) -> None:
        """Enqueue a job that carries the wake-up; for a run that an RQ job started, that job again."""
        self._send(wake_up, 0)

    def message_at_hand(self, job: Definition) -> RQMessage | None:
        """Give the RQ job that this process works; None outside of one."""
        current = get_current_job()
        if current is None:
            return None
        message = RQMessage(current, job, send=self._send)
        if message.is_of_the_job and not self._is_at_hand(current):
            self._at_hand = message
            self._hear_of_cancel(current, message)
            horses.bury_former(current, self._attached)
            if message.survives_kills:
                message.takes_turns()
        return message

    def messages_among(self, job_ids: Sequence[str]) -> set[str]:
        """
        Tell which of these RQ jobs are batchkit's: each works a slice, and no more than that.

        One whose first slice has not begun, though its horse has, cannot be told from another job.
        """
        found = Job.fetch_many(job_ids, connection=self._connection, serializer=self._serializer)
        jobs = [job for job in found if job is not None]
        return horses.noted_among(self._connection, jobs) | {job.id for job in jobs if notes.notes_of(job)}

    def _hear_of_cancel(self, job: Job, message: RQMessage) -> None:
        """
        Cancel the run of a job that was cancelled while it went from one slice to the next.

        RQ then writes its next status over that of the cancel, and only its registry remembers.
        """
        registry = CanceledJobRegistry(job.origin, connection=self._connection, serializer=self._serializer)
        if message.is_ours or job.id not in registry:
            return
        if notes.notes_of(job):
            self._attached.cancel_message(message.key, message.run_id)
        else:
            # It was cancelled before it began, and somebody has enqueued it anew.
            registry.remove(job)

    def is_at_work_here(self) -> bool:
        """Tell whether this process works an RQ job of the same Redis."""
        current = get_current_job()
        return current is not None and _place(current.connection) == _place(self._connection)

    def _send(self, wake_up: WakeUp, hops: int) -> None:
        written = None if wake_up.message is None else json.loads(wake_up.message)
        if written is None or "rq" not in written:
            self._enqueue_ours(wake_up, wake_up.queue, hops=hops)
        elif wake_up.is_by_message:
            self._send_again(wake_up, hops, written["id"], written["queue"], use=written["use"])
        else:
            self._enqueue_ours(wake_up, written["queue"], hops=hops)

    def _send_again(self, wake_up: WakeUp, hops: int, job_id: str, queue_name: str, *, use: str) -> None:
        """Have the RQ job that started a run worked again, unless it is on its way."""
        at_hand = self._at_hand
        current = get_current_job()
        if at_hand is not None and self._is_at_hand(current) and (current.id, at_hand.use) == (job_id, use):
            if current.get_status() is JobStatus.CANCELED:
                self._cancel(wake_up)
            # Where it was cancelled, to tell of that.
            at_hand.wake_itself(wake_up, hops)
            return
        queue = self._queue(queue_name)
        job = self._fetch(job_id)
        if job is None or notes.use_of(job) != use:
            self._go_on_without(wake_up, hops, job_id, queue, use=use, is_id_free=job is None)
        elif job.get_status() in _GIVEN_UP:
            self._cancel(wake_up)
            self._told(wake_up)
        elif wake_up.is_announcement and notes.was_told(job, wake_up.run_id):
            self._told(wake_up)
        elif not (wake_up.is_announcement and _is_being_worked(job, queue)):
            _enqueue_again(job, queue, wake_up, hops)

    def _go_on_without(
        self, wake_up: WakeUp, hops: int, job_id: str, queue: Queue, *, use: str, is_id_free: bool
    ) -> None:
        """Go on with a run whose RQ job is lost, and with it what waited for its end."""
        if wake_up.is_announcement:
            self._told(wake_up)
        elif is_id_free:
            self._enqueue(wake_up, hops, job_id, queue, {}, use=use)
        else:
            # The id was used again for something else.
            self._enqueue_ours(wake_up, queue.name, hops=hops)

    def _enqueue_ours(self, wake_up: WakeUp, queue_name: str, *, hops: int) -> None:
        job_id = f"{wake_up.run_id}-{uuid.uuid4().hex[:8]}"
        noted = {notes.RUN: wake_up.run_id}
        self._enqueue(wake_up, hops, job_id, self._queue(queue_name), noted, result_ttl=0)

    def _enqueue(
        self,
        wake_up: WakeUp,
        hops: int,
        job_id: str,
        queue: Queue,
        noted: Mapping[str, object],
        *,
        result_ttl: int | None = None,
        use: str | None = None,
    ) -> None:
        job = queue.create_job(
            path_of(self._attached.jobs[wake_up.job]),
            job_id=job_id,
            timeout=_NO_TIMEOUT,
            result_ttl=result_ttl,
            failure_ttl=_FAILURE_TTL_SECONDS,
            # A horse that is killed is no failure: worked again, the job finds its wake-up used and ends.
            retry=Retry(max=_RETRIES),
            description=_cut(f"{wake_up.job} run={wake_up.run_id} {wake_up.params}"),
        )
        if use is not None:
            notes.made_again_for(use, job)
        notes.note(job, **notes.of_wake_up(wake_up, hops), **noted)
        queue.enqueue_job(job)

    def _is_at_hand(self, current: Job | None) -> bool:
        """Tell whether the message at hand is of the RQ job that this process works now."""
        return current is not None and self._at_hand is not None and self._at_hand.is_delivered_as(current)

    def _fetch(self, job_id: str) -> Job | None:
        try:
            return Job.fetch(job_id, connection=self._connection, serializer=self._serializer)
        except NoSuchJobError:
            return None

    def _cancel(self, wake_up: WakeUp) -> None:
        """Cancel the run whose RQ job somebody has cancelled or stopped; a run that has ended stays as it is."""
        if not wake_up.is_announcement:
            self._attached.cancel_message("", wake_up.run_id)

    def _told(self, wake_up: WakeUp) -> None:
        self._attached.announced(wake_up.run_id)

    def _queue(self, name: str) -> Queue:
        return Queue(name, connection=self._connection, serializer=self._serializer)

    @property
    def _attached(self) -> Kit:
        if self._kit is None:
            message = "give the queue to a kit first: BatchKit(..., queue=RQQueue(connection))"
            raise RuntimeError(message)
        return self._kit


def _enqueue_again(job: Job, queue: Queue, wake_up: WakeUp, hops: int) -> None:
    notes.note(job, **notes.of_wake_up(wake_up, hops))
    job.save_meta()
    if job.get_status() is JobStatus.QUEUED and queue.get_job_position(job) is not None:
        return
    for registry in (job.failed_job_registry, queue.scheduled_job_registry):
        registry.remove(job)
    queue.started_job_registry.remove_executions(job)
    queue.enqueue_job(job)


def _is_being_worked(job: Job, queue: Queue) -> bool:
    """Tell whether a worker that is alive has the job in its hands, which may be in the middle of its callbacks."""
    if job.get_status() is not JobStatus.STARTED:
        return False
    registry = queue.started_job_registry
    alive = job.connection.zrangebyscore(registry.key, time.time(), "+inf")
    return any(execution.decode().rpartition(":")[0] == job.id for execution in alive)


def _place(connection: Redis) -> tuple[object, ...]:
    address = connection.connection_pool.connection_kwargs
    defaults = {"host": "localhost", "port": 6379, "path": None, "db": 0}
    return tuple(address.get(name, default) for name, default in defaults.items())


def _cut(text: str) -> str:
    """Keep what people read short: params can be long, and Redis holds them in memory."""
    return text if len(text) <= _LONGEST_DESCRIPTION else f"{text[:_LONGEST_DESCRIPTION]}..."


def eaten_params(job: Definition) -> list[str]:
    """Give the params of a job that `queue.enqueue(job, ...)` takes for its own options."""
    return sorted(_EATEN & set(job.signature.parameters))


def _warn_of_eaten_params(job: Definition) -> None:
    eaten = eaten_params(job)
    if eaten:
        _logger.warning(
            "RQ takes %s for itself in queue.enqueue(job, ...); start job %s with .start(...), or name them otherwise",
            ", ".join(eaten),
            job.name,
        )
