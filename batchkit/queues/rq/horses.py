"""
Work horses that were killed, and whether their worker has seen it.

A horse notes in Redis that it is at a job, and takes that back at its end. A worker whose horse dies counts a failed
job and has the job done again, at once; where every process is killed nobody counts. So the next horse of the same job
can tell the one from the other. The job's own meta would not do: the worker writes that again as it took it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

from redis import Redis
from redis.exceptions import RedisError
from rq.job import Job

from batchkit.delivery import Kit
from batchkit.instance import worker_name
from batchkit.queues.rq import notes
from batchkit.suspicion import Death

_logger = logging.getLogger("batchkit")
_KEPT = timedelta(days=1)
_USE = "use"
#: What a worker keeps of itself that tells whether it is the same one, and has lived on.
_BIRTH, _FAILED, _STOPPING = "birth", "failed_job_count", "shutdown_requested_date"


@contextmanager
def noted(job: Job) -> Iterator[None]:
    """Note for the length of the block that this process is at *job*."""
    with suppress(RedisError):
        birth, failed, _ = _of_worker(job, job.worker_name)
        values = {
            "process": worker_name(),
            "worker": job.worker_name or "",
            _BIRTH: birth,
            _FAILED: failed,
            _USE: notes.use_of(job),
        }
        with job.connection.pipeline() as pipeline:
            pipeline.hset(_key(job.id), mapping=values)
            pipeline.expire(_key(job.id), _KEPT)
            pipeline.execute()
    try:
        yield
    finally:
        with suppress(RedisError):
            job.connection.delete(_key(job.id))


def noted_among(connection: Redis, jobs: Sequence[Job]) -> set[str]:
    """Give the ids of those of *jobs* that a process has noted to be at, in this use of the id."""
    with connection.pipeline(transaction=False) as pipeline:
        for job in jobs:
            pipeline.hget(_key(job.id), _USE)
        found = pipeline.execute()
    return {job.id for job, use in zip(jobs, found, strict=True) if use and use.decode() == notes.use_of(job)}


def bury_former(job: Job, kit: Kit) -> None:
    """End the leases of the horse that was at *job* before, where its worker has seen it die."""
    try:
        found = {name.decode(): value.decode() for name, value in job.connection.hgetall(_key(job.id)).items()}
        if not found or found["process"] == worker_name():
            return
        birth, failed, stopping = _of_worker(job, found["worker"])
        if birth and birth == found[_BIRTH] and int(failed) > int(found[_FAILED]):
            kit.end_leases_of(found["process"], death=Death.SHUTDOWN if stopping else Death.CHILD)
            job.connection.delete(_key(job.id))
    except Exception:
        # The lease of the dead one runs out all the same.
        _logger.warning("the leases of a killed work horse could not be ended", exc_info=True)


def _of_worker(job: Job, name: str | None) -> tuple[str, str, str]:
    key = f"{os.environ.get('RQ_KEY_PREFIX', 'rq')}:worker:{name}"
    birth, failed, stopping = job.connection.hmget(key, [_BIRTH, _FAILED, _STOPPING])
    return (birth or b"").decode(), (failed or b"0").decode(), (stopping or b"").decode()


def _key(job_id: str) -> str:
    return f"batchkit:rq:horse:{job_id}"
