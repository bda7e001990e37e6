"""The adapter's collectors, with a `busy` of another meaning."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from batchkit import BatchKit
from batchkit.busy import Busy
from batchkit.contrib.judoscale import adapter
from batchkit.contrib.judoscale.counting import Counted, Counting, CountingCelery, CountingRQ
from batchkit.errors import InvalidHook
from batchkit.forking import ForkGuard
from batchkit.queues import CeleryQueue, RQQueue

_logger = logging.getLogger("batchkit")
#: Long enough for what takes locks. In the second for which the adapter waits for its workers' answers it takes none;
#: and the thread that forks is the one that answers for its own worker, whose tasks would be missing.
_FORK_WAITS_SECONDS = 0.2


def track_busy_jobs(kit: BatchKit, *, interruptible_is_busy: bool = False) -> None:
    """
    Have Judoscale's adapter report as busy what must not be stopped, and no more.

    Call it behind `judoscale_celery(...)` or `judoscale_rq(...)`, wherever that is called: every process of an app
    that has the adapter reports on all queues, a web process too. Ordinary tasks stay busy, and so does batch work that
    cannot stop within the grace; batch work that can does not. Where the adapter is off, since it has no URL to report
    to, nothing is done. Where the store cannot be read, the adapter's own count is reported, which is no smaller.

    Args:
        kit: the kit; its queue is a `CeleryQueue` or an `RQQueue`.
        interruptible_is_busy: leave to `busy` the adapter's own meaning: all that is worked.

    Raises:
        InvalidHook: the adapter is not there, or was not told to track busy jobs.
    """
    if not adapter.is_enabled():
        return
    collectors: list[Any] = adapter.reporter().collectors
    if any(isinstance(each, BusyCollector) for each in collectors):
        return
    found = [index for index, each in enumerate(collectors) if type(each).__name__ in _COUNTINGS]
    if not found:
        raise InvalidHook(
            "Judoscale's adapter has nothing that counts jobs yet: call judoscale_celery(app, extra_config=...) or "
            "judoscale_rq(redis, extra_config=...) before track_busy_jobs(kit)"
        )
    for index in found:
        collectors[index] = _wrapped(collectors[index], kit, interruptible_is_busy=interruptible_is_busy)


def busy_collectors() -> list[BusyCollector]:
    """Give the collectors of this process that were changed."""
    return [each for each in adapter.reporter().collectors if isinstance(each, BusyCollector)]


class BusyCollector:
    """One of the adapter's collectors, whose `busy` says what must not be stopped; all else is as it was."""

    def __init__(self, stock: Any, counting: Counting | None) -> None:  # noqa: ANN401  judoscale ships no types
        self._stock = stock
        self._counting = counting
        # The timer's thread and ours would use the same connections at the same time.
        self._lock = threading.Lock()
        # The adapter's thread is there before Celery forks its children. One that is forked while the thread has the
        # lock of Redis' connections waits for ever to be free of them, and every task that it is given with it.
        self._forks = ForkGuard(waits=_FORK_WAITS_SECONDS)

    @property
    def should_collect(self) -> bool:
        """Whether this process is the one that reports: of several alike it is the first."""
        return bool(self._stock.should_collect)

    @property
    def report_metadata(self) -> Any:  # noqa: ANN401  the same
        """What goes with the report."""
        return self._stock.report_metadata

    @property
    def counts_interruptible(self) -> bool:
        """Whether `busy` has the adapter's own meaning."""
        return self._counting is None

    def collect(self) -> list[Any]:
        """Give the metrics of this moment."""
        with self._forks.at_work(), self._lock:
            if self._counting is None or not self.should_collect:
                stock: list[Any] = self._stock.collect()
                return stock
            metrics, counted = self._counting.collect()
            if counted is None:
                return metrics
            others = [each for each in metrics if each.measurement != "busy"]
            named = [each.queue_name for each in metrics if each.measurement == "busy"]
            return [adapter.busy_metric(name, counted.busy(name)) for name in self._queues(named, counted)] + others

    def _queues(self, named: Sequence[str], counted: Counted) -> list[str]:
        """Give the queues that the collector reports on, and those that the store knows, as far as it may have more."""
        settings = self._stock.adapter_config
        if settings["QUEUES"]:
            return list(named)
        more = sorted(
            {*counted.ordinary, *counted.protected} - {*named}, key=lambda name: (-counted.busy(name), len(name), name)
        )
        return [*named, *more][: max(len(named), settings["MAX_QUEUES"])]


#: The adapter's collectors by name: to import them takes Celery or RQ.
_COUNTINGS = {"CeleryMetricsCollector": "CELERY", "RQMetricsCollector": "RQ"}


def _wrapped(stock: Any, kit: BatchKit, *, interruptible_is_busy: bool) -> BusyCollector:  # noqa: ANN401  the same
    name = _COUNTINGS[type(stock).__name__]
    if not stock.adapter_config["TRACK_BUSY_JOBS"]:
        raise InvalidHook(
            f"Judoscale's adapter does not track busy jobs: give it "
            f'extra_config={{"{name}": {{"TRACK_BUSY_JOBS": True}}}}'
        )
    if interruptible_is_busy:
        return BusyCollector(stock, None)

    def read() -> Busy | None:
        try:
            return kit.busy()
        except Exception as error:  # noqa: BLE001  the adapter would leave all metrics out
            _logger.warning("all that is worked is reported as busy, since the store cannot be read: %s", error)
            return None

    queue = kit.queue
    if name == "CELERY" and isinstance(queue, CeleryQueue) and hasattr(stock, "inspect"):
        return BusyCollector(stock, CountingCelery(stock, queue, read))
    if name == "RQ" and isinstance(queue, RQQueue):
        return BusyCollector(stock, CountingRQ(stock, queue, read))
    # An app may have both queues, and the kit one of them; or the adapter is not the one that is known here.
    _logger.warning("Judoscale's %s keeps its own meaning of busy: it is not of this kit's queue", type(stock).__name__)
    return BusyCollector(stock, None)
