"""Busy hooks: whether anybody calls them, and whether they can tell anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from batchkit.doctor.findings import Finding, Level, listed
from batchkit.grace import VARIABLE


def hook_findings(hooks: Sequence[str], *, grace: float | None, queue: str) -> Iterator[Finding]:
    """Look at the *hooks*, by their names, of a kit with this *queue*."""
    if hooks and grace is None:
        yield Finding(
            check="hooks-without-grace",
            level=Level.WARN,
            subject=listed(list(hooks)),
            problem="Hooks tell a platform who may be stopped, but nobody said how long the platform waits.",
            danger="All work counts as protected, so the platform scales nothing down while there is any.",
            mend=f"Set {VARIABLE} on the workers, or say BatchKit(..., grace=...).",
        )
    if hooks and queue == "RQQueue":
        yield Finding(
            check="hooks-of-stock-workers",
            level=Level.INFO,
            subject=listed(list(hooks)),
            problem="RQ's own workers run no code of batchkit's in their main process, so they call no hooks.",
            danger="With a stock `rq worker` the platform is never told that it is busy.",
            mend="Start workers with `rq worker -w batchkit.queues.rq.Worker` and BATCHKIT_APP=module:kit.",
        )
