"""Wake-ups as RQ jobs."""

from __future__ import annotations

import json
import logging
import uuid
from typing import TYPE_CHECKING, Any

from rq import Queue, get_current_job
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus, Retry

from batchkit.delivery import Kit
from batchkit.errors import InvalidQueue
from batchkit.job import Definition
from batchkit.model import WakeUp
from batchkit.queues.rq.message import HOPS, PARTITION, RUN, WAKE, RQMessage, path_of

if TYPE_CHECKING:
    from redis import Redis

_logger = logging.getLogger("batchkit")
_RETRIES = 1_000_000
_FAILURE_TTL_SECONDS = 7 * 24 * 3600
#: RQ has no end of its own for our slices: a slice has its time, a chunk its timeout, and the lease ends what hangs.
_NO_TIMEOUT = -1
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
    """

    crosses_processes = True
    keeps_messages = True

    def __init__(self, connection: Redis, *, serializer: Any = None) -> None:  # noqa: ANN401  RQ takes a class or its path
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
        self._at_hand = None if current is None else RQMessage(current, job, send=self._send)
        return self._at_hand

    def _send(self, wake_up: WakeUp, hops: int) -> None:
        written = None if wake_up.message is None else json.loads(wake_up.message)
        if written is not None and "rq" in written:
            self._send_again(wake_up, written["id"], written["queue"])
        else:
            self._enqueue(wake_up, f"{wake_up.run_id}-{uuid.uuid4().hex[:8]}", self._queue(wake_up.queue), hops=hops)

    def _send_again(self, wake_up: WakeUp, job_id: str, queue_name: str) -> None:
        """Have the RQ job that started a run worked again, unless it is on its way."""
        current = get_current_job()
        if current is not None and current.id == job_id and self._at_hand is not None:
            self._at_hand.wake_itself(wake_up)
            return
        queue = self._queue(queue_name)
        try:
            job = Job.fetch(job_id, connection=self._connection, serializer=self._serializer)
        except NoSuchJobError:
            if wake_up.is_announcement:
                self._told(wake_up)
            else:
                # Redis has lost it, and with it what waited for its end; the work goes on all the same.
                self._enqueue(wake_up, job_id, queue)
            return
        status = job.get_status()
        if wake_up.is_announcement and status in {JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED}:
            self._told(wake_up)
            return
        job.meta.update({PARTITION: wake_up.partition, WAKE: wake_up.number})
        job.save_meta()
        if status is JobStatus.QUEUED and queue.get_job_position(job) is not None:
            return
        for registry in (job.failed_job_registry, queue.scheduled_job_registry):
            registry.remove(job)
        queue.started_job_registry.remove_executions(job)
        queue.enqueue_job(job)

    def _enqueue(self, wake_up: WakeUp, job_id: str, queue: Queue, *, hops: int = 0) -> None:
        is_ours = wake_up.message is None
        meta: dict[str, Any] = {PARTITION: wake_up.partition, WAKE: wake_up.number, HOPS: hops}
        queue.enqueue_call(
            path_of(self._attached.jobs[wake_up.job]),
            job_id=job_id,
            timeout=_NO_TIMEOUT,
            result_ttl=0 if is_ours else None,
            failure_ttl=_FAILURE_TTL_SECONDS,
            # A horse that is killed is no failure: worked again, the job finds its wake-up used and ends.
            retry=Retry(max=_RETRIES),
            description=f"{wake_up.job} run={wake_up.run_id} {wake_up.params}",
            meta={**meta, RUN: wake_up.run_id} if is_ours else meta,
        )

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
