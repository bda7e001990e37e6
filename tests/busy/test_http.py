"""Who is busy, and whether a worker is well, over HTTP: to KEDA's metrics-api, to probes, and in the user's own app."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import gjson
import pytest
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from batchkit import BatchKit, span
from batchkit.busy import Busy, busy_facts
from batchkit.contrib.http import BusyApp, BusyEndpoint, BusyServer, busy_app
from batchkit.contrib.http.endpoint import WorkerHealth
from batchkit.contrib.http.reading import CachedReading
from batchkit.hooks import HookContext, WorkerState
from batchkit.queues import LocalQueue
from tests.busy.asking import ask, served
from tests.busy.conftest import APP, Fleet
from tests.servers import programs
from tests.servers.postgres import PostgresServer
from tests.slices.conftest import job
from tests.waiting import eventually

_DOWN = "postgresql+psycopg://nobody@127.0.0.1:1/none"


@pytest.fixture
def kit(sqlite_url: str) -> Iterator[BatchKit]:
    """Give a kit with three runs that wait, in queues of awkward names."""
    with closing(BatchKit(sqlite_url, queue=LocalQueue())) as made:
        made.migrate()
        for name in ("mail", "mail", "eu.west/1 ü"):
            job(span(3), lambda chunk: None).using(queue=name).start()
        yield made


@pytest.fixture
def hook() -> str:
    """Have workers serve, where a test has workers."""
    return "endpoint"


@pytest.fixture
def port() -> int:
    """Give a port that is free."""
    return programs.free_port()


@pytest.fixture
def settings(port: int) -> dict[str, str]:
    """Give the workers the port."""
    return {"TEST_HOOK": "tests.busy.platform_hooks:endpoint", "TEST_HOOK_ARGUMENT": str(port)}


@pytest.fixture(autouse=True)
def waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer for the database than probes do: on a busy machine it takes seconds, and 503 would be right."""
    defaults = CachedReading.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "timeout", 30.0)


def _client(app: BusyApp) -> Client:
    # The validator raises where either side breaks WSGI's rules.
    return Client(validator(app))


def _get(client: Client, path: str) -> tuple[int, Any]:
    with client.get(path) as response:
        return response.status_code, response.json


# The application


def test_it_tells_what_the_command_does(kit: BatchKit):
    client = _client(busy_app(kit))
    status, told = _get(client, "/v1/busy")
    expected: dict[str, Any] = busy_facts(kit.busy())
    assert 200 == status
    for facts in (told, expected):
        del facts["read_at"]
        for queue in facts["queues"].values():
            # It goes on while both are read.
            queue["oldest_waiting"] = queue["oldest_waiting"] is not None
    assert expected == told


@pytest.mark.parametrize(("name", "path"), [("mail", "mail"), ("eu.west/1 ü", "eu.west/1%20%C3%BC")])
def test_keda_finds_a_queue_by_a_path_into_the_whole_and_on_a_page_of_its_own(kit: BatchKit, name: str, path: str):
    client = _client(busy_app(kit))
    _, whole = _get(client, "/v1/busy")
    status, flat = _get(client, f"/v1/queues/{path}")
    assert 200 == status
    waits = 2 if name == "mail" else 1
    escaped = name.replace(".", "\\.")
    assert [waits, waits] == [gjson.get(whole, f"queues.{escaped}.wanted"), gjson.get(flat, "wanted")]


def test_a_queue_of_the_apps_jobs_or_one_that_was_named_is_known_though_it_be_empty(kit: BatchKit):
    client = _client(busy_app(kit, queues=["night"]))
    for name in ("default", "night"):
        status, facts = _get(client, f"/v1/queues/{name}")
        assert (200, 0) == (status, facts["wanted"])
        assert 0 == _get(client, "/v1/busy")[1]["queues"][name]["wanted"]


def test_a_queue_that_nobody_knows_is_an_error_and_no_zero(kit: BatchKit):
    status, facts = _get(_client(busy_app(kit)), "/v1/queues/mial")
    assert 404 == status
    assert "mial" in facts["error"]
    assert "mail" in facts["error"]
    assert "wanted" not in facts


def test_a_store_that_cannot_be_read_is_an_error_and_no_zero():
    with closing(BatchKit(_DOWN, queue=LocalQueue())) as down:
        client = _client(busy_app(down))
        for path in ("/v1/busy", "/v1/queues/default", "/readyz"):
            status, facts = _get(client, path)
            assert 503 == status
            assert "cannot be reached" in facts["error"]
            assert not {"queues", "wanted"} & set(facts)
        assert (200, {"well": True}) == _get(client, "/healthz"), "a restart mends no database"


def test_where_the_database_is_and_its_password_are_told_to_nobody(caplog: pytest.LogCaptureFixture):
    with closing(BatchKit(f"{_DOWN}?password=hunter2", queue=LocalQueue())) as down:
        for path in ("/v1/busy", "/readyz"):
            status, facts = _get(_client(busy_app(down)), path)
            assert 503 == status
            assert not [secret for secret in ("hunter2", "127.0.0.1", "nobody") if secret in str(facts)]
    assert "127.0.0.1" in caplog.text
    assert "hunter2" not in caplog.text


def test_tables_of_another_version_are_told_with_the_mend(tmp_path: Path):
    with closing(BatchKit(f"sqlite:///{tmp_path}/empty.db", queue=LocalQueue())) as bare:
        status, facts = _get(_client(busy_app(bare)), "/v1/busy")
    assert 503 == status
    assert "batchkit db upgrade" in facts["error"]
    assert str(tmp_path) not in facts["error"]


def test_what_others_errors_say_is_told_to_the_log_alone():
    def fails() -> Busy:
        message = "password=secret"
        raise RuntimeError(message)

    status, facts = _get(_client(BusyApp(CachedReading(fails))), "/v1/busy")
    assert (503, {"error": "the database could not be read: RuntimeError"}) == (status, facts)


def test_only_reading_is_served(kit: BatchKit):
    client = _client(busy_app(kit))
    with client.post("/v1/busy") as response:
        assert (405, "GET, HEAD") == (response.status_code, response.headers["Allow"])
    with client.head("/v1/busy") as response:
        assert (200, b"") == (response.status_code, response.data)
    assert 404 == _get(client, "/v1/queues/")[0]
    assert 404 == _get(client, "/")[0]


def test_it_can_be_mounted_in_the_users_own_app(kit: BatchKit):
    mounted = Client(DispatcherMiddleware(Flask("shop"), {"/batchkit": busy_app(kit)}))
    assert 2 == _get(mounted, "/batchkit/v1/queues/mail")[1]["wanted"]


# How often the store is asked


def _counted(kit: BatchKit) -> tuple[Callable[[], Busy], list[float]]:
    calls: list[float] = []

    def read() -> Busy:
        calls.append(time.monotonic())
        return kit.busy()

    return read, calls


def test_however_many_ask_the_store_is_read_once_in_a_while(kit: BatchKit):
    read, calls = _counted(kit)
    reading = CachedReading(read, keep=3600, timeout=30)
    with closing(BusyServer(BusyApp(reading), port=0, host="127.0.0.1")) as server, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(server.port, "/v1/queues/mail"), range(200)))
    assert {(200, 2)} == {(status, facts["wanted"]) for status, facts in answers}
    assert 1 == len(calls)


def test_what_was_read_is_given_for_a_while_only(kit: BatchKit):
    read, calls = _counted(kit)
    client = _client(BusyApp(CachedReading(read, keep=0.05, timeout=30)))
    assert 2 == _get(client, "/v1/queues/mail")[1]["wanted"]
    job(span(3), lambda chunk: None).using(queue="mail").start()
    eventually(lambda: _get(client, "/v1/queues/mail")[1]["wanted"] == 3, message="what is told is old")
    assert 1 < len(calls)


def test_a_store_that_hangs_keeps_nobody_waiting_and_is_asked_once():
    hangs = threading.Event()
    calls: list[None] = []

    def read() -> Busy:
        calls.append(None)
        hangs.wait(60)
        raise AssertionError

    reading = CachedReading(read, timeout=0.2)
    with closing(BusyServer(BusyApp(reading), port=0)) as server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(server.port, "/v1/busy"), range(24)))
        hangs.set()
    assert {503} == {status for status, _ in answers}
    assert "not answered within 0.2 s" in answers[0][1]["error"]
    assert 1 == len(calls)


def test_a_store_in_trouble_is_not_asked_more_often_than_one_that_is_well():
    calls: list[None] = []

    def read() -> Busy:
        calls.append(None)
        raise RuntimeError

    client = _client(BusyApp(CachedReading(read, keep=3600)))
    assert {503} == {_get(client, "/v1/busy")[0] for _ in range(20)}
    assert 1 == len(calls)


# A worker's health


def _context(busy: Callable[[], Busy], *, repeat: float = 10.0) -> HookContext:
    return HookContext(
        worker="pod-1:7", instance="pod-1", kind="celery", busy=busy, max_protect=None, repeat_seconds=repeat
    )


def _state(*, is_draining: bool = False) -> WorkerState:
    return WorkerState("pod-1:7", "pod-1", 0, 0, None, is_draining, 1)


def _fails() -> Busy:
    message = "away"
    raise RuntimeError(message)


def test_a_worker_whose_main_process_says_nothing_any_more_is_not_well():
    endpoint = BusyEndpoint(0)
    endpoint.begin(_context(_fails, repeat=0.05))
    try:
        assert endpoint.port
        port = endpoint.port
        eventually(lambda: ask(port, "/healthz")[0] == 503, message="it is well for ever")
        assert "has said nothing for" in ask(port, "/healthz")[1]["error"]
        endpoint.changed(_state())
        endpoint.end()
        assert 0 == ask(port, "/healthz")[0], "it still listens"
    finally:
        endpoint.end()


def test_a_database_that_is_away_makes_a_worker_unwell_only_where_that_was_asked_for_and_after_its_time():
    context = _context(_fails)
    assert WorkerHealth(context, CachedReading(_fails), max_away=None).liveness().is_well
    patient = WorkerHealth(context, CachedReading(_fails), max_away=3600).liveness()
    assert patient.is_well
    assert "RuntimeError" in str(patient.facts["error"])
    assert not WorkerHealth(context, CachedReading(_fails), max_away=0).liveness().is_well


def test_a_port_that_another_has_is_named_and_tried_again():
    with closing(BusyServer(BusyApp(CachedReading(_fails)), port=0)) as other:
        endpoint = BusyEndpoint(other.port)
        with pytest.raises(OSError, match=rf"port {other.port} cannot be had .*BusyEndpoint\({other.port + 1}\)"):
            endpoint.begin(_context(_fails))
    endpoint.repeated(_state())
    try:
        assert 200 == ask(other.port, "/readyz")[0]
    finally:
        endpoint.end()


# In real workers


def test_a_worker_serves_the_fleet_and_its_health_until_it_is_drained(fleet: Fleet, port: int):
    worker = fleet.worker()
    eventually(lambda: ask(port, "/readyz")[0] == 200, within=60, message=fleet.crew.logs)
    assert 0 == served(port, "/v1/queues/default")["wanted"], "its queue is known before it is worked"
    fleet.start("must-stay", pause=1.0)
    eventually(lambda: served(port, "/v1/queues/default")["protected"], within=60, message=fleet.crew.logs)
    assert 200 == ask(port, "/healthz")[0]
    fleet.command("drain")
    eventually(lambda: ask(port, "/readyz")[0] == 503, within=60, message=fleet.crew.logs)
    status, facts = ask(port, "/healthz")
    assert (200, f"pod-1:{worker.pid}") == (status, facts["worker"]), "to be drained is no illness"
    # What is left of the run waits for another worker.
    assert 1 == served(port, "/v1/queues/default")["wanted"], fleet.kit.busy()
    worker.send(signal.SIGTERM)
    worker.wait()
    assert 0 == ask(port, "/healthz")[0]


@pytest.mark.parametrize("kind", ["celery", "rq"])
def test_children_do_not_keep_the_port_of_a_main_process_that_was_killed(fleet: Fleet, port: int):
    worker = fleet.worker(slots=2)
    eventually(lambda: ask(port, "/readyz")[0] == 200, within=60, message=fleet.crew.logs)
    fleet.start("must-stay", pause=5.0)
    # RQ has a child while it works, Celery has them all the time.
    eventually(worker.children, within=60, message=fleet.crew.logs)
    worker.children()
    worker.send(signal.SIGKILL)
    worker.wait()
    assert 0 == ask(port, "/healthz")[0]


@pytest.mark.parametrize("kind", ["local"])
def test_a_worker_is_well_while_its_database_is_away_and_no_queue_is_empty(
    fleet: Fleet, port: int, postgres_server: PostgresServer
):
    fleet.worker()
    run = fleet.start("count", pause=0.2)
    eventually(lambda: ask(port, "/v1/queues/default")[0] == 200, within=60, message=fleet.crew.logs)
    postgres_server.stop(immediate=True)
    try:
        eventually(lambda: ask(port, "/v1/queues/default")[0] == 503, within=60, message=fleet.crew.logs)
        seen = [ask(port, path)[0] for path in ("/healthz", "/readyz", "/v1/busy")]
    finally:
        postgres_server.start()
    assert [200, 200, 503] == seen
    fleet.check(run)
    assert 0 == served(port, "/v1/busy")["queues"]["default"]["busy"]


# As a command


@pytest.mark.parametrize("kind", ["rq"])
def test_the_command_serves_those_whose_workers_serve_nothing(fleet: Fleet, port: int):
    fleet.crew._start(  # noqa: SLF001  a service as the workers are
        "batchkit",
        *("-A", f"{APP}:kit", "serve-busy", "--port", str(port), "--queue", "night"),
        ready=f"serving on port {port}",
    )
    assert [200, 200] == [ask(port, path)[0] for path in ("/healthz", "/readyz")]
    assert 0 == served(port, "/v1/queues/night")["wanted"]
    run = fleet.start("count")
    assert 1 == eventually(lambda: served(port, "/v1/queues/default")["ready"])
    fleet.crew.rq()
    fleet.check(run)
    (server, _) = fleet.crew.workers
    server.send(signal.SIGTERM)
    assert 0 == server.wait()


def test_the_command_names_a_port_that_another_has(kit: BatchKit, sqlite_url: str):
    with closing(BusyServer(busy_app(kit), port=0)) as other:
        command = [sys.executable, "-m", "batchkit", "serve-busy", "--port", str(other.port)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={"BATCHKIT_DATABASE_URL": sqlite_url}
        )
    assert 2 == done.returncode
    assert f"port {other.port} cannot be had" in done.stderr
    assert "--port" in done.stderr
