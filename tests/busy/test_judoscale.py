"""Judoscale's own adapter in real workers, and what it reports to a server that writes it down."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from judoscale.rq.collector import RQMetricsCollector
from redis import Redis
from rq import Queue

from batchkit import BatchKit
from batchkit.busy import Busy, BusySlice, summed_up
from batchkit.contrib.judoscale import JudoscaleHook, adapter, track_busy_jobs
from batchkit.contrib.judoscale.collectors import BusyCollector
from batchkit.contrib.judoscale.counting import CountingCelery
from batchkit.contrib.judoscale.pushing import Edges
from batchkit.errors import InvalidHook
from batchkit.hooks import HookContext
from batchkit.model import RunId
from batchkit.queues import CeleryQueue, InlineQueue
from tests.busy.conftest import Fleet
from tests.queues.workers import QueueWorker
from tests.waiting import eventually

APP = "tests.busy.judoscale_app"


@dataclass
class Judoscale:
    """The server that adapters report to."""

    url: str = ""
    #: each with the time at which it came
    reports: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def busy(self, queue: str) -> list[tuple[float, int]]:
        """Give what was said of a queue, and when."""
        return [
            (at, value)
            for at, report in list(self.reports)
            for _, value, measurement, name in report["metrics"]
            if (measurement, name) == ("busy", queue)
        ]

    def wait_busy(self, queue: str, count: int, log: Callable[[], str], *, since: float | None = None) -> float:
        """Wait for a report that comes since then, or from now on, and says so; give when it came."""
        since = time.time() if since is None else since
        found = eventually(
            lambda: [at for at, value in self.busy(queue) if at >= since and value == count],
            within=60,
            message=lambda: f"nobody reported {count} busy in {queue}: {self.busy(queue)}\n{log()}",
        )
        return found[0]


@pytest.fixture
def judoscale() -> Iterator[Judoscale]:
    """Run a server that writes reports down."""
    made = Judoscale()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.endswith("/v3/reports"):
                made.reports.append((time.time(), body))
            self.send_response(202)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}/api/some-app"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()


@pytest.fixture(params=["celery", "rq"])
def kind(request: pytest.FixtureRequest) -> str:
    """Say which queue's workers they are."""
    return str(request.param)


@pytest.fixture
def settings(judoscale: Judoscale) -> dict[str, str]:
    """Report to the server."""
    return {
        "JUDOSCALE_URL": judoscale.url,
        "DYNO": "worker.1",
        "TEST_INTERVAL": "0.5",
        "TEST_HOOK": "tests.busy.judoscale_hook:Hook",
        "TEST_HOOK_ARGUMENT": "0.2",
        "BATCHKIT_APP": f"{APP}:kit",
    }


def start_workers(fleet: Fleet, *, slots: int, **env: str) -> list[QueueWorker]:
    """Start workers that can do so much at once: a Celery worker, or as many of RQ's, of which one reports."""
    if fleet.kind == "celery":
        return [fleet.crew.celery("-c", str(slots), app=APP, env=env)]
    return [
        fleet.crew.rq(kind="batchkit.queues.rq.Worker", env={"DYNO": f"worker.{number}", **env})
        for number in range(1, slots + 1)
    ]


def queue_of(fleet: Fleet) -> str:
    """Give the name that the broker has for batchkit's default queue."""
    return fleet.crew.env["TEST_QUEUE"] if fleet.kind == "celery" else "default"


def send_ordinary(fleet: Fleet, until: Path) -> None:
    """Have a worker do what is no batch work."""
    broker = fleet.crew.env["TEST_BROKER"]
    if fleet.kind == "celery":
        with Celery(broker=broker, set_as_current=False) as celery:
            # As a program that has the adapter does: so the adapter learns of the queue.
            celery.conf.task_send_sent_event = True
            celery.send_task("ordinary", args=[str(until)], queue=queue_of(fleet))
    else:
        Queue("default", connection=Redis.from_url(broker)).enqueue(f"{APP}.wait_for_file", str(until))


def is_interruptible(fleet: Fleet, *jobs: str) -> bool:
    """Tell whether just the slices of these jobs can be stopped."""
    return sorted(jobs) == sorted(each.job for each in fleet.kit.busy().slices if each.is_interruptible)


@contextmanager
def all_at_once(fleet: Fleet) -> Iterator[None]:
    """Have an ordinary task, a run that can be stopped and one that cannot worked, for the length of the block."""
    gate = fleet.folder / "gate"
    send_ordinary(fleet, gate)
    with both_runs(fleet):
        yield
    gate.touch()


@contextmanager
def both_runs(fleet: Fleet) -> Iterator[None]:
    """Have a run that can be stopped and one that cannot worked, for the length of the block."""
    start = "from tests.busy.app import count, must_stay; count.start(pause=2); must_stay.start(pause=2)"
    subprocess.run([sys.executable, "-c", start], env={**os.environ, **fleet.crew.env}, check=True)
    fleet.wait_busy(
        lambda busy: {"count", "must-stay"} == {each.job for each in busy.slices} and is_interruptible(fleet, "count"),
        "both are worked, and one of them can be stopped",
    )
    yield
    for run in fleet.kit.runs():
        run.cancel()


def test_ordinary_and_protected_work_is_busy_and_interruptible_work_is_not(fleet: Fleet, judoscale: Judoscale):
    start_workers(fleet, slots=3)
    queue = queue_of(fleet)
    with all_at_once(fleet):
        since = judoscale.wait_busy(queue, 2, fleet.crew.logs)
        judoscale.wait_busy(queue, 2, fleet.crew.logs)
        assert is_interruptible(fleet, "count"), "it was over too soon"
        assert 0 not in {value for at, value in judoscale.busy(queue) if at >= since}
    judoscale.wait_busy(queue, 0, fleet.crew.logs)
    # The workers behind the first report as well, but no numbers.
    report = next(each for _, each in reversed(judoscale.reports) if each["metrics"])
    assert {"qt", "qd", "busy"} <= {measurement for _, _, measurement, name in report["metrics"] if name == queue}
    assert f"judoscale-{fleet.kind}" in report["adapters"]
    assert {"worker.1"} == {each["container"] for _, each in judoscale.reports if each["metrics"]}


def test_with_the_stock_meaning_all_that_is_worked_is_busy(fleet: Fleet, judoscale: Judoscale):
    start_workers(fleet, slots=3, TEST_STOCK="1")
    with all_at_once(fleet):
        judoscale.wait_busy(queue_of(fleet), 3, fleet.crew.logs)
    judoscale.wait_busy(queue_of(fleet), 0, fleet.crew.logs)


def test_edges_are_reported_long_before_the_timer_comes_round(fleet: Fleet, judoscale: Judoscale):
    workers = start_workers(fleet, slots=1, TEST_INTERVAL="3600")
    eventually(lambda: fleet.kit.busy().workers, within=30, message=fleet.crew.logs)
    run = fleet.start("must-stay", pause=0.5)
    at = judoscale.wait_busy(queue_of(fleet), 1, fleet.crew.logs, since=0.0)
    run.cancel()
    judoscale.wait_busy(queue_of(fleet), 0, fleet.crew.logs, since=at)
    workers[0].send(signal.SIGTERM)
    workers[0].wait()


@pytest.mark.parametrize("kind", ["rq"])
def test_a_supervisor_reports_for_stock_workers_of_rq(fleet: Fleet, judoscale: Judoscale):
    supervisor = fleet.crew.supervisor(f"{APP}:kit")
    for _ in range(2):
        fleet.crew.rq(env={"DYNO": "worker.2"})
    with both_runs(fleet):
        judoscale.wait_busy("default", 1, fleet.crew.logs)
        assert () == fleet.kit.busy().workers, "a supervisor is no worker"
    assert {supervisor.pid} == {each["pid"] for _, each in judoscale.reports if each["metrics"]}
    judoscale.wait_busy("default", 0, fleet.crew.logs)


# What cannot be seen from outside: faults of the store, other names of queues, and edges


@dataclass
class Reported:
    """A metric, as the adapter has it."""

    queue_name: str
    value: int
    measurement: str = "busy"


class Answers:
    """Workers of Celery, as the adapter asks them."""

    def __init__(self, *tasks: tuple[str, str]) -> None:
        self.tasks = tasks

    def active(self) -> dict[str, list[dict[str, Any]]]:
        return {
            "w@host": [{"id": "x", "name": name, "delivery_info": {"routing_key": key}} for name, key in self.tasks]
        }


class Stock:
    """The adapter's collector for Celery: its workers work an ordinary task, and one whose name says it is a job's."""

    def __init__(self, *tasks: tuple[str, str]) -> None:
        self.inspect: Any = Answers(*tasks)
        self.adapter_config = {"QUEUES": [], "MAX_QUEUES": 20}
        self.should_collect = True

    def collect(self) -> list[Reported]:
        active = self.inspect.active()["w@host"]
        return [Reported("batch", len(active)), Reported("batch", 7, "qd")]


def counted(stock: Stock, busy: Busy | None, **routes: str) -> dict[tuple[str, str], int]:
    """Give what is reported where the store says so; None where it cannot be read."""
    with closing(Celery("counted", broker="memory://", set_as_current=False)) as celery:
        celery.conf.update(task_default_queue="batch", task_routes={job: {"queue": to} for job, to in routes.items()})
        collector = BusyCollector(stock, CountingCelery(stock, CeleryQueue(celery), lambda: busy))
        return {(each.queue_name, each.measurement): each.value for each in collector.collect()}


def busy_with(*slices: tuple[str, str, bool]) -> Busy:
    """Make a fleet that works such slices: job, queue, and whether it can be stopped."""
    now = datetime.now(timezone.utc)
    made = [
        BusySlice(RunId("r"), job, queue, 0, "host:1", "host", now, now, 1.0, is_interruptible=can_stop)
        for job, queue, can_stop in slices
    ]
    return summed_up(now, queues=["default"], waiting=[], slices=made, workers=[])


def test_a_task_is_never_hidden_by_a_slice_that_the_workers_did_not_tell_of():
    stock = Stock(("mail", "batch"))
    assert 1 == counted(stock, busy_with(("count", "default", True)))["batch", "busy"]


def test_a_job_that_this_process_does_not_know_is_known_by_the_store():
    stock = Stock(("mail", "batch"), ("count", "batch"))
    assert {("batch", "busy"): 1, ("batch", "qd"): 7} == counted(stock, busy_with(("count", "default", True)))


def test_the_stock_count_is_reported_where_the_store_cannot_be_read():
    assert {("batch", "busy"): 2, ("batch", "qd"): 7} == counted(Stock(("mail", "batch"), ("count", "batch")), None)


def test_no_child_is_forked_with_a_lock_that_the_adapter_has():
    lock, is_locked, may_end = threading.Lock(), threading.Event(), threading.Event()

    class Locking(Stock):
        def collect(self) -> list[Reported]:
            with lock:
                is_locked.set()
                may_end.wait(1)
            return []

    thread = threading.Thread(target=BusyCollector(Locking(), None).collect)
    thread.start()
    assert is_locked.wait(10)
    # As soon as the fork waits, or has gone by without that.
    threading.Timer(0.1, may_end.set).start()
    child = os.fork()
    if not child:
        os._exit(0 if lock.acquire(blocking=False) else 1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "the child waits for a thread that it has not"
    thread.join()


def test_protected_slices_are_reported_in_the_queue_that_celery_has_for_them():
    busy = busy_with(("count", "default", False), ("export", "default", False), ("crawl", "slow", False))
    found = counted(Stock(), busy, export="exports")
    assert {"batch": 1, "exports": 1, "slow": 1} == {name: value for (name, what), value in found.items() if value < 7}


def test_a_queue_is_protected_at_once_and_free_after_a_moment():
    edges = Edges(linger=5.0)
    assert [False, True, False, False, True, False] == [
        edges.seen({"batch": count}, now) for count, now in ((0, 0), (2, 1), (1, 2), (0, 3), (0, 7.1), (0, 8))
    ]


def test_the_adapter_must_be_there_and_count_jobs(sqlite_url: str, monkeypatch: pytest.MonkeyPatch):
    reporter = adapter.reporter()
    monkeypatch.setattr(reporter, "collectors", [])
    with closing(BatchKit(sqlite_url, queue=InlineQueue())) as kit:
        monkeypatch.setitem(reporter.config, "API_BASE_URL", None)
        track_busy_jobs(kit)
        monkeypatch.setitem(reporter.config, "API_BASE_URL", "http://127.0.0.1:9/api")
        with pytest.raises(InvalidHook, match="before track_busy_jobs"):
            track_busy_jobs(kit)
        monkeypatch.setattr(reporter, "collectors", [RQMetricsCollector(reporter.config, Redis())])
        with pytest.raises(InvalidHook, match=r"RQ.*TRACK_BUSY_JOBS"):
            track_busy_jobs(kit)


def test_a_release_of_the_adapter_that_cannot_report_early_is_left_to_its_timer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    reporter = adapter.reporter()
    monkeypatch.setitem(reporter.config, "API_BASE_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(reporter, "collectors", [BusyCollector(Stock(), None)])
    monkeypatch.setattr(type(reporter), "_report_metrics", None)

    def busy() -> Busy:
        raise AssertionError("nobody is to look")

    JudoscaleHook().begin(HookContext("host:1", "host", "rq", busy, None, 10.0))
    assert "cannot report early" in caplog.text
    assert "batchkit-judoscale" not in {each.name for each in threading.enumerate()}


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "judoscale.core.reporter", None)
    with pytest.raises(InvalidHook, match=r"pip install 'batchkit-jobs\[judoscale\]'"):
        adapter.reporter()


def test_what_the_page_shows_runs():
    page = (Path(__file__).parents[2] / "docs" / "hooks" / "judoscale.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert 2 == len(blocks)
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], check=True)
