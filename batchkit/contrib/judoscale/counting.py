"""
What keeps a fleet from being scaled down: ordinary tasks, and batch work that must not be stopped.

The adapter counts all that workers have in their hands. Of that, batchkit's own messages are left out, which are told
from others by what they are and not by their number: to subtract one number from another, which was read a moment
before, would now and then hide an ordinary task. The protected slices are then added as the store knows them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from batchkit.busy import Busy
from batchkit.queues import CeleryQueue, RQQueue


@dataclass(frozen=True, slots=True)
class Counted:
    """What is busy, by the names that the queue gives its queues; those that are known are there with 0."""

    ordinary: Mapping[str, int]
    protected: Mapping[str, int]

    def busy(self, queue: str) -> int:
        """Say how much of it must not be stopped."""
        return self.ordinary.get(queue, 0) + self.protected.get(queue, 0)


class Counting(Protocol):
    """Counts for one of the adapter's collectors."""

    def collect(self) -> tuple[list[Any], Counted | None]:
        """Give the collector's own metrics, and what is busy; None where that is not known, so that its own holds."""
        ...


class CountingCelery:
    """Counts for the collector of Celery, which asks all workers for the tasks that they work."""

    def __init__(self, stock: Any, queue: CeleryQueue, read: Callable[[], Busy | None]) -> None:  # noqa: ANN401  judoscale ships no types
        self._queue = queue
        self._read = read
        self._stock = stock
        self._counted: Counted | None = None
        # It asks through this object, which is made with TRACK_BUSY_JOBS.
        self._inspect = stock.inspect
        stock.inspect = self

    def collect(self) -> tuple[list[Any], Counted | None]:
        """Have the collector ask, and count what the workers answer while it does."""
        self._counted = None
        return self._stock.collect(), self._counted

    def active(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  Celery's
        """Ask the workers, for the collector."""
        answers = self._inspect.active(*args, **kwargs)
        # After the answers: what was claimed meanwhile counts.
        busy = self._read()
        if busy is not None:
            ordinary = Counter(
                str(task["delivery_info"]["routing_key"])
                for tasks in (answers or {}).values()
                for task in tasks
                if not self._is_message(task, busy)
            )
            names = Counter({name: 0 for each in busy.queues for name in self._names(each.queue, busy)})
            names.update(self._queue.name_of(each.queue, each.job) for each in busy.slices if not each.is_interruptible)
            self._counted = Counted(ordinary, names)
        return answers

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  Celery's
        """Leave all else to what asks the workers."""
        return getattr(self._inspect, name)

    def _is_message(self, task: Mapping[str, Any], busy: Busy) -> bool:
        # A process that works no batch jobs may not know them all; the store knows those that are worked.
        known = {each.job for each in busy.slices} | {each.run_id for each in busy.slices}
        return self._queue.is_message(task["name"]) or task["name"] in known or task["id"] in known

    def _names(self, queue: str, busy: Busy) -> set[str]:
        jobs = {each.job for each in busy.slices if each.queue == queue} or {""}
        return {self._queue.name_of(queue, job) for job in jobs}


class CountingRQ:
    """Counts for the collector of RQ, which reads the registries of started jobs."""

    def __init__(self, stock: Any, queue: RQQueue, read: Callable[[], Busy | None]) -> None:  # noqa: ANN401  judoscale ships no types
        self._queue = queue
        self._read = read
        self._stock = stock

    def collect(self) -> tuple[list[Any], Counted | None]:
        """Have the collector read, and read the registries again for what the jobs in them are."""
        metrics = self._stock.collect()
        names = [each.queue_name for each in metrics if each.measurement == "busy"]
        ordinary = {name: self._ordinary(name) for name in names}
        # After the registries: what was claimed meanwhile counts.
        busy = self._read()
        if busy is None:
            return metrics, None
        protected = {each.queue: each.protected for each in busy.queues}
        return metrics, Counted(ordinary, protected)

    def _ordinary(self, name: str) -> int:
        from rq.registry import StartedJobRegistry  # noqa: PLC0415  with Celery it may not be there

        started = StartedJobRegistry(name, connection=self._queue.connection, serializer=self._queue.serializer)
        found = started.get_job_ids()
        messages = self._queue.messages_among(found)
        return sum(each not in messages for each in found)
