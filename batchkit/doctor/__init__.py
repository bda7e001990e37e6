"""The doctor: reads a kit's queue and database, and names each unsafe setting with its danger and its mend."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, cast

from batchkit.app import BatchKit
from batchkit.doctor.database import check_database
from batchkit.doctor.findings import Finding, Level, not_checked
from batchkit.doctor.hooks import hook_findings
from batchkit.doctor.jobs import RECENT_SECONDS, grace_findings, place_findings, stuck_findings
from batchkit.doctor.platform import platform_findings
from batchkit.doctor.runs import UNSWEPT_SECONDS, WAITED_SECONDS, backlog_findings
from batchkit.job import Definition
from batchkit.platforms import platform_of

__all__ = ["Finding", "Level", "examine"]

_QUEUES = frozenset({"CeleryQueue", "InlineQueue", "LocalQueue", "RQQueue"})


def examine(kit: BatchKit) -> list[Finding]:
    """
    Check the settings of *kit*, its queue, database and jobs; the worst findings come first.

    Nothing is changed. What could not be checked is a finding as well.
    """
    return sorted(_Examination(kit).findings(), key=lambda finding: list(Level).index(finding.level))


class _Examination:
    """One look at a kit, with what the checks have in common."""

    def __init__(self, kit: BatchKit) -> None:
        self._kit = kit
        self._chunk_seconds: dict[str, float] = {}

    def findings(self) -> Iterator[Finding]:
        """Make all checks, those of the database first, since others want what is kept there."""
        if self._queue_kind == "CeleryQueue":
            yield from self._attempted("tasks of the Celery app", self._import_tasks)
        is_usable = True
        for finding in self._attempted("database", self._of_database):
            is_usable = is_usable and not finding.check.startswith("database-")
            yield finding
        if is_usable:
            yield from self._attempted("runs", self._of_runs)
        yield from self._attempted("jobs", self._of_jobs)
        yield from self._attempted(type(self._kit.queue).__name__, self._of_queue)

    def _attempted(self, subject: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001  the other checks are wanted all the same
            yield not_checked(subject, error)

    def _import_tasks(self) -> Iterator[Finding]:
        from batchkit.doctor.celery import import_tasks  # noqa: PLC0415  an extra

        import_tasks(cast("Any", self._kit.queue).app)
        return iter(())

    def _of_database(self) -> Iterator[Finding]:
        yield from check_database(self._kit, queue=self._queue_kind, slices_at_once=self._slices_at_once())

    def _of_runs(self) -> Iterator[Finding]:
        self._chunk_seconds = self._kit.health.chunk_seconds(within=RECENT_SECONDS)
        backlog = self._kit.health.backlog(waited=WAITED_SECONDS, unswept=UNSWEPT_SECONDS)
        yield from backlog_findings(backlog, queue=self._queue_kind, keeps_messages=self._kit.queue.keeps_messages)

    def _of_jobs(self) -> Iterator[Finding]:
        yield from platform_findings(platform_of(os.environ), grace=self._kit.grace)
        yield from hook_findings(self._kit.busy_hooks, grace=self._kit.grace, queue=self._queue_kind)
        yield from grace_findings(self._jobs, self._chunk_seconds, grace=self._kit.grace)
        yield from stuck_findings(self._jobs, self._chunk_seconds)
        yield from place_findings(self._jobs, crosses_processes=self._kit.queue.crosses_processes)

    def _of_queue(self) -> Iterator[Finding]:
        queue = cast("Any", self._kit.queue)  # one of two that may not be installed both
        if self._queue_kind == "CeleryQueue":
            from batchkit.doctor.broker import check_broker  # noqa: PLC0415  an extra
            from batchkit.doctor.celery import check_celery  # noqa: PLC0415  an extra

            yield from check_celery(queue.app, self._jobs, self._chunk_seconds, grace=self._kit.grace)
            yield from check_broker(queue.app, self._jobs)
        elif self._queue_kind == "RQQueue":
            from batchkit.doctor.rq import check_rq  # noqa: PLC0415  an extra

            yield from check_rq(queue.connection, queue.serializer, self._jobs, self._chunk_seconds)

    def _slices_at_once(self) -> int:
        if self._queue_kind != "CeleryQueue":
            return 1
        from batchkit.doctor.celery import slices_at_once  # noqa: PLC0415  an extra

        return slices_at_once(cast("Any", self._kit.queue).app)

    @property
    def _jobs(self) -> list[Definition]:
        return [job for _, job in sorted(self._kit.jobs.items())]

    @property
    def _queue_kind(self) -> str:
        """The name of the queue's class, or of the one of ours that it is made from."""
        names = [kind.__name__ for kind in type(self._kit.queue).__mro__]
        return next((name for name in names if name in _QUEUES), names[0])
