"""Celery's broker: whether it answers, and what it does to messages that wait behind slices."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from batchkit.doctor.findings import Finding, Level, named
from batchkit.job import Definition

if TYPE_CHECKING:
    from celery import Celery

#: What Celery takes for Redis where nothing was set.
_DEFAULT_VISIBILITY_SECONDS = 3600.0
_CONNECT_SECONDS = 5.0


def check_broker(app: Celery, jobs: Collection[Definition]) -> Iterator[Finding]:
    """Check what the broker is, whether it answers, and how it is set."""
    try:
        with app.connection_for_write() as connection:
            subject = f"broker {connection.as_uri()}"
            kind = connection.transport.driver_type
            yield from visibility_findings(app, jobs, kind)
            if kind == "amqp":
                yield consumer_timeout(subject)
            if kind == "redis":
                # Else a host that does not answer is waited for as long as the system likes.
                connection.transport_options.setdefault("socket_connect_timeout", _CONNECT_SECONDS)
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_CONNECT_SECONDS)
            if kind == "redis":
                from batchkit.doctor.redis import check_redis  # noqa: PLC0415  only this transport needs the package

                yield from check_redis(connection.default_channel.client, subject=subject)
    except Exception as error:  # noqa: BLE001  each broker's driver has errors of its own
        yield Finding(
            check="celery-broker-unreachable",
            level=Level.FAIL,
            subject="broker",
            problem=f"It cannot be reached: {named(error)}.",
            danger="Runs are kept, but no worker is woken up; and how the broker is set could not be checked.",
            mend="See that it runs, that broker_url is right, and that the broker's package is installed.",
        )


def visibility_findings(app: Celery, jobs: Iterable[Definition], broker: str) -> Iterator[Finding]:
    """Look whether messages that wait behind slices are delivered a second time."""
    if broker != "redis":
        return
    visible_again = float(app.conf.broker_transport_options.get("visibility_timeout") or _DEFAULT_VISIBILITY_SECONDS)
    multiplier = 1 if app.conf.get("worker_disable_prefetch") else app.conf.worker_prefetch_multiplier
    longest = max(jobs, key=lambda job: job.options.slice_time, default=None)
    if longest is None or (multiplier and longest.options.slice_time * multiplier < visible_again):
        return
    waits = f"{longest.options.slice_time * multiplier:g} s" if multiplier else "as long as it takes"
    yield Finding(
        check="celery-visibility-timeout",
        level=Level.WARN,
        subject="visibility_timeout",
        problem=(
            f"It is {visible_again:g} s, but a message may wait {waits} in a worker: worker_prefetch_multiplier is "
            f"{multiplier}, and the slice_time of job {longest.name} is {longest.options.slice_time:g} s."
        ),
        danger="Redis delivers it a second time meanwhile. Slices see that; other tasks are done twice.",
        mend=(
            "Set worker_prefetch_multiplier = 1, a longer visibility_timeout (the same on all workers), or a shorter "
            "slice_time."
        ),
    )


def consumer_timeout(subject: str) -> Finding:
    """Tell that RabbitMQ does not let its clients see how long it waits for an acknowledgement."""
    return Finding(
        check="rabbitmq-consumer-timeout",
        level=Level.INFO,
        subject=subject,
        problem="RabbitMQ's consumer_timeout, 30 minutes by default, cannot be seen from here.",
        danger=(
            "A message that stays unacknowledged longer, by acks_late or by a long countdown, ends the whole worker. "
            "Slices are acknowledged early."
        ),
        mend="Compare it with your longest acks_late task and countdown: `rabbitmqctl environment`.",
    )
