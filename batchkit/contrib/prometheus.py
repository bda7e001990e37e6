"""
Prometheus: metrics of the whole fleet, each from one reading of the store.

`BatchkitCollector(kit)` goes into a registry of the app's, `batchkit metrics` serves one by itself. What is read from
the store is the same in each process, so there is nothing to be added up over the children of a worker, and nothing to
be lost with them. `pip install 'batchkit-jobs[prometheus]'`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime

from batchkit import BatchKit
from batchkit.busy import Busy
from batchkit.errors import InvalidHook
from batchkit.states import RunState
from batchkit.totals import JobTotals

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "prometheus_client":
        raise
    raise InvalidHook(
        "batchkit.contrib.prometheus takes the package prometheus_client, which is not there: "
        "pip install 'batchkit-jobs[prometheus]'"
    ) from None

_logger = logging.getLogger("batchkit")

_SHARE = 0.05


class BatchkitCollector(Collector):
    """
    Gives the metrics of one kit to a registry of prometheus_client's.

    Its labels are the names of queues and jobs, and words of a fixed list: no run and no worker has a series of its
    own. It reads the store whenever the registry is read. Where the store cannot be read, only `batchkit_store_up` is
    there, as 0, so that the other metrics of the app's registry still are.

    Args:
        kit: whose runs they are.
        share: for how much of the time the database may sum up what the runs of each job have done, at the most: where
            there are so many that this takes long, the sums are kept for a while. 1 for always.
    """

    def __init__(self, kit: BatchKit, *, share: float = _SHARE) -> None:
        self._kit = kit
        self._share = share
        self._totals: tuple[JobTotals, ...] = ()
        self._totals_until = 0.0
        self._counters = _Rising()
        # An older reading that is counted after a newer one would look like runs that were removed.
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """Read the store, and give what it says."""
        with self._lock:
            return self._collected()

    def _collected(self) -> list[Metric]:
        up = GaugeMetricFamily("batchkit_store_up", "Whether the database of batchkit could be read.")
        try:
            busy, totals = self._kit.busy(), self._summed_up()
        except Exception as error:  # noqa: BLE001  the app's other metrics must not go with ours
            _logger.warning("metrics are left out, since the store cannot be read: %s", error)
            up.add_metric([], 0)
            return [up]
        up.add_metric([], 1)
        return [up, *_of_fleet(busy), *_of_jobs(totals, self._counters)]

    def _summed_up(self) -> tuple[JobTotals, ...]:
        began = time.monotonic()
        if began >= self._totals_until:
            self._totals = self._kit.totals()
            self._totals_until = began + (time.monotonic() - began) / self._share
        return self._totals

    def describe(self) -> Iterable[Metric]:
        """Give the names, without asking the store: to register it must not need a database."""
        now = Busy(read_at=datetime.min, queues=(), slices=(), workers=())  # noqa: DTZ901  nothing is compared with it
        return [GaugeMetricFamily("batchkit_store_up", ""), *_of_fleet(now), *_of_jobs((), _Rising())]


@contextmanager
def serving(kit: BatchKit, *, port: int = 9464, host: str = "0.0.0.0") -> Iterator[str]:  # noqa: S104  as exporters do
    """
    Serve the metrics of a kit over HTTP for the length of the block; give the address.

    Raises:
        OSError: nothing can listen there.
    """
    registry = CollectorRegistry()
    registry.register(BatchkitCollector(kit))
    server, thread = start_http_server(port, host, registry)
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Rising:
    """
    Keeps counters from falling while this process lives.

    Prometheus takes a counter that falls for one that has begun anew, and adds all of it once more; runs that are
    removed from the store would look like a great deal of work.
    """

    def __init__(self) -> None:
        self._read: dict[tuple[str, ...], int] = {}
        self._given: dict[tuple[str, ...], int] = {}

    def counted(self, name: tuple[str, ...], read: int) -> int:
        """Give what is shown for a sum as it was read."""
        before = self._read.get(name, 0)
        self._read[name] = read
        self._given[name] = self._given.get(name, 0) + max(0, read - before)
        return self._given[name]


def _of_fleet(busy: Busy) -> Iterable[Metric]:
    def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, text, labels=["queue", *labels])

    workers = gauge("batchkit_workers", "Workers that take from the queue, idle ones too.")
    slices = gauge("batchkit_busy_slices", "Slices that are worked now.", "interruptible")
    ready = gauge("batchkit_ready_partitions", "Partitions that wait for a worker.")
    wanted = gauge("batchkit_wanted_workers", "How many slices could be worked at once: busy and ready ones.")
    waiting = gauge(
        "batchkit_oldest_waiting_seconds", "How long the partition has waited that waits longest; 0 where none does."
    )
    checkpoint = gauge(
        "batchkit_oldest_checkpoint_age_seconds",
        "Seconds since the last checkpoint of the slice that has made none for longest; 0 where none is worked.",
    )
    for queue in busy.queues:
        label = [queue.queue]
        workers.add_metric(label, queue.workers)
        slices.add_metric([*label, "true"], queue.interruptible)
        slices.add_metric([*label, "false"], queue.protected)
        ready.add_metric(label, queue.ready)
        wanted.add_metric(label, queue.wanted)
        waiting.add_metric(label, queue.oldest_waiting.total_seconds() if queue.oldest_waiting is not None else 0)
        ages = [busy.read_at - each.checkpointed_at for each in busy.slices if each.queue == queue.queue]
        checkpoint.add_metric(label, max((age.total_seconds() for age in ages), default=0))
    return [workers, slices, ready, wanted, waiting, checkpoint]


def _of_jobs(totals: Iterable[JobTotals], rising: _Rising) -> Iterable[Metric]:
    runs = GaugeMetricFamily("batchkit_runs", "Runs in the store, by state.", labels=["job", "state"])
    done = GaugeMetricFamily(
        "batchkit_unfinished_items_done", "Items that are done of runs that have not ended.", labels=["job"]
    )
    planned = GaugeMetricFamily(
        "batchkit_unfinished_items_planned",
        "Items that the runs have in all that have not ended; not there while one of them does not know.",
        labels=["job"],
    )
    items = CounterMetricFamily("batchkit_items", "Items that chunks were committed with.", labels=["job", "outcome"])
    checkpoints = CounterMetricFamily("batchkit_checkpoints", "Checkpoints that were committed.", labels=["job"])
    interruptions = CounterMetricFamily(
        "batchkit_interruptions", "How often infrastructure has stopped a run's work.", labels=["job"]
    )
    for each in totals:
        for state in RunState:
            runs.add_metric([each.job, state.value], each.runs[state])
        done.add_metric([each.job], each.unfinished_done)
        if each.unfinished_items is not None:
            planned.add_metric([each.job], each.unfinished_items)
        outcomes = {"done": each.done, "failed": each.failed, "in_doubt": each.in_doubt}
        for outcome, count in outcomes.items():
            items.add_metric([each.job, outcome], rising.counted(("items", each.job, outcome), count))
        checkpoints.add_metric([each.job], rising.counted(("checkpoints", each.job), each.checkpoints))
        interruptions.add_metric([each.job], rising.counted(("interruptions", each.job), each.interruptions))
    return [runs, done, planned, items, checkpoints, interruptions]
