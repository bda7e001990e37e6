"""The runs that wait: whether somebody works them, and somebody sweeps for them."""

from __future__ import annotations

from collections.abc import Iterator

from batchkit.doctor.findings import Finding, Level
from batchkit.store import Backlog

#: A wake-up that is overdue by so much has been seen to by no sweep: those come every few seconds.
UNSWEPT_SECONDS = 60.0
#: A run that has waited so long was not taken at the next best moment.
WAITED_SECONDS = 60.0
#: Where sweeps see to it, waiting may be nothing but a long queue.
_LONG_QUEUE_SECONDS = 600.0

_SWEEPERS = {
    "CeleryQueue": "Start a Celery worker of this app, which sweeps by itself, or run `batchkit supervise`.",
    "RQQueue": "Run `batchkit supervise` beside the workers, or `batchkit recover` from cron: RQ sweeps for nobody.",
}
_WORKERS = {
    "CeleryQueue": "Start more Celery workers of this app, for the queues of these jobs (-Q).",
    "RQQueue": "Start more RQ workers, for the queues of these jobs.",
    "LocalQueue": "Start workers with `batchkit work`.",
    "InlineQueue": "Work them here with `batchkit resume ID`, or give the kit a queue that has workers.",
}


def backlog_findings(backlog: Backlog, *, queue: str, keeps_messages: bool) -> Iterator[Finding]:
    """Look at what waits for a worker for too long; where nothing is sent, no sweep has to send it again."""
    if not backlog.waiting:
        return
    waits = f"{backlog.waiting} {_runs(backlog.waiting)} for a worker, the oldest for {backlog.longest_seconds:.0f} s"
    if keeps_messages and backlog.unswept:
        yield Finding(
            check="runs-overdue",
            level=Level.WARN,
            subject=queue,
            problem=f"{waits}, and no sweep has seen to {backlog.unswept} of them though they are overdue.",
            danger="A run whose worker was killed, or whose message was lost, stays where it is.",
            mend=_SWEEPERS.get(queue, "Run `batchkit supervise`."),
        )
    elif not keeps_messages or backlog.longest_seconds > _LONG_QUEUE_SECONDS:
        yield Finding(
            check="runs-wait",
            level=Level.WARN,
            subject=queue,
            problem=f"{waits}.",
            danger="There are too few workers, or none listens to their queue or knows their job.",
            mend=_WORKERS.get(queue, "Start workers.") + " `batchkit show ID` says why if a worker declined a run.",
        )


def _runs(number: int) -> str:
    return "run waits" if number == 1 else "runs wait"
