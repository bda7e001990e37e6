"""RQ: its version, its serializer, its Redis, and what it does to jobs that are enqueued."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq import Queue

from batchkit.doctor.findings import Finding, Level, listed, named
from batchkit.doctor.redis import check_redis
from batchkit.job import Definition
from batchkit.queues.rq.queue import eaten_params

if TYPE_CHECKING:
    from redis import Redis

_OLDEST, _TOO_NEW = 2, 4
#: How every pickle begins from protocol 2 on
_PICKLED = b"\x80"


def check_rq(
    connection: Redis,
    serializer: Any,  # noqa: ANN401  RQ takes anything with dumps and loads
    jobs: Collection[Definition],
    chunk_seconds: Mapping[str, float],
) -> Iterator[Finding]:
    """Check RQ, the jobs that it may be given, and its Redis."""
    yield from version_findings(version("rq"))
    yield from serializer_findings(serializer)
    yield from eaten_findings(jobs)
    yield from timeout_findings(jobs, chunk_seconds)
    address = connection.connection_pool.connection_kwargs
    subject = f"Redis {address.get('host', address.get('path', ''))}:{address.get('port', '')}/{address.get('db', 0)}"
    try:
        connection.ping()
    except RedisError as error:
        yield Finding(
            check="redis-unreachable",
            level=Level.FAIL,
            subject=subject,
            problem=f"It cannot be reached: {named(error)}.",
            danger="Runs are kept, but no worker is woken up; and how Redis is set could not be checked.",
            mend="See that it runs and that the address is right.",
        )
        return
    yield from check_redis(connection, subject=subject)


def version_findings(installed: str) -> Iterator[Finding]:
    """Look whether this is an RQ that batchkit is made for."""
    major = int(installed.split(".", maxsplit=1)[0])
    if _OLDEST <= major < _TOO_NEW:
        return
    yield Finding(
        check="rq-version",
        level=Level.FAIL,
        subject=f"rq {installed}",
        problem=f"batchkit is made for RQ {_OLDEST} and later, before {_TOO_NEW}.",
        danger="How it stops its workers and retries jobs is not known, so slices may be lost or stay where they are.",
        mend=f"Install 'rq>={_OLDEST},<{_TOO_NEW}'.",
    )


def serializer_findings(serializer: Any) -> Iterator[Finding]:  # noqa: ANN401  RQ takes anything with dumps and loads
    """Look whether workers unpickle what they are sent."""
    # Its name says less: others that pickle, such as dill's, may be given as well.
    if not bytes(serializer.dumps("")).startswith(_PICKLED):
        return
    yield Finding(
        check="rq-pickle",
        level=Level.WARN,
        subject="serializer",
        problem="Jobs are pickled, as RQ does by default.",
        danger="Whoever can write to Redis can run any code in the workers.",
        mend=(
            "Use rq.serializers.JSONSerializer everywhere: RQQueue(..., serializer=JSONSerializer), your own queues, "
            "and the workers."
        ),
    )


def eaten_findings(jobs: Iterable[Definition]) -> Iterator[Finding]:
    """Look for params that never reach the job."""
    for job in jobs:
        eaten = eaten_params(job)
        if eaten:
            yield Finding(
                check="rq-eaten-params",
                level=Level.WARN,
                subject=f"job {job.name}",
                problem=f"RQ takes {listed(eaten)} for itself in queue.enqueue(job, ...).",
                danger="The value does not reach the job, and changes how RQ treats it instead.",
                mend="Name them otherwise, or start the job with .start(...) only.",
            )


def timeout_findings(jobs: Iterable[Definition], chunk_seconds: Mapping[str, float]) -> Iterator[Finding]:
    """Look whether a slice of a job that is enqueued outlasts RQ's default timeout."""
    for job in jobs:
        lasts = job.options.slice_time + chunk_seconds.get(job.name, 0.0)
        if lasts < Queue.DEFAULT_TIMEOUT:
            continue
        yield Finding(
            check="rq-timeout",
            level=Level.WARN,
            subject=f"job {job.name}",
            problem=(
                f"Its slices last {lasts:g} s with the chunk that they end with, and RQ gives what is enqueued without "
                f"a job_timeout {Queue.DEFAULT_TIMEOUT} s."
            ),
            danger="A slice of queue.enqueue(job, ...) is cut in the middle of a chunk, which is then done again.",
            mend="Give the job a shorter slice_time, enqueue it with job_timeout=-1, or start it with .start(...).",
        )
