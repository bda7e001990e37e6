"""Workers are killed, stopped and cut off from their database, and every item is done exactly once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url

from batchkit import Run, RunState
from tests.acceptance import app, origins
from tests.acceptance.gate import Gate
from tests.acceptance.workers import Worker, crew
from tests.servers.mariadb import MariaDbServer
from tests.servers.postgres import PostgresServer
from tests.waiting import eventually

_KILLS = 50
_FEWER_KILLS = 15
# Several times what is done until a kill falls, so that most kills fall into work and not at the gate.
_ITEMS_FOR_A_KILL = 500
_KILLS_OF_RESUMABLES = 8
_KILLS_OF_A_SOURCE = 2


def _done(run: Run) -> int:
    return run.refresh().progress.done


def _moved(run: Run, *, beyond: int, workers: list[Worker]) -> int:
    return eventually(
        lambda: _done(run) > beyond and _done(run),
        within=60,
        message=lambda: f"nothing moves beyond {beyond}: {run}, {run.history()[-3:]}, {workers[-1].log()}",
    )


def _holder(run: Run, workers: list[Worker]) -> Worker | None:
    for partition in run.partitions():
        # Not only while its lease is live: SQLite's only writer, at a gate in its transaction, cannot have it renewed.
        if partition.worker is not None:
            pid = int(partition.worker.rsplit(":", 1)[1])
            return next((worker for worker in workers if worker.pid == pid and worker.is_alive), None)
    return None


def _held(run: Run, workers: list[Worker]) -> Worker:
    found = eventually(
        lambda: _holder(run, workers), within=60, message=lambda: f"nobody holds {run}: {workers[-1].log()}"
    )
    assert found is not None
    return found


def _kill(
    run: Run,
    workers: list[Worker],
    *,
    kills: int,
    gate: Gate,
    chance: random.Random,
    start: Callable[[], Worker] | None = None,
    every_third_asked: bool = False,
) -> None:
    """Kill whoever works, at random moments, so often; ask every third to stop instead, and start another for each."""
    done = 0
    for number in range(1, kills + 1):
        done = _moved(run, beyond=done, workers=workers)
        time.sleep(chance.uniform(0, 0.05))  # not to wait for anything: the kill is to fall at any moment
        holder = _held(run, workers)
        holder.signal(signal.SIGTERM if every_third_asked and number % 3 == 0 else signal.SIGKILL)
        gate.open(after_kills=number)
        holder.wait()
        workers.remove(holder)
        if start is not None:
            workers.append(start())


def _check(run: Run, url: str, *, items: int, workers: list[Worker]) -> None:
    eventually(
        lambda: run.refresh().has_ended,
        within=120,
        message=lambda: f"{run}, {run.history()[-3:]}, {workers[-1].log()}",
    )
    assert (RunState.SUCCEEDED, items, items) == (run.state, run.progress.done, run.progress.total), run.error
    assert {1: items} == app.times(url)


def _kills_on(url: str, testrun_uid: str) -> int:
    """Say how many workers to kill: all on one database, which differs from run to run, and fewer on the others."""
    chosen = random.Random(testrun_uid).choice(("sqlite", "postgresql", "mysql"))
    is_chosen = os.environ.get("BATCHKIT_TEST_ALL_KILLS") == "1" or make_url(url).get_backend_name() == chosen
    return _KILLS if is_chosen else _FEWER_KILLS


@pytest.mark.timeout(600)
def test_every_item_is_done_once_though_one_worker_after_another_is_killed_at_random_moments(
    database_url: str, tmp_path: Path, testrun_uid: str
):
    wanted = _kills_on(database_url, testrun_uid)
    items = wanted * _ITEMS_FOR_A_KILL
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    gate = Gate(tmp_path, items=items, kills=wanted)
    with closing(app.prepare(database_url, items=items)), crew(database_url, tmp_path) as start:
        run = app.count_items.start(str(tmp_path))
        workers = [start(), start()]
        _kill(run, workers, kills=wanted, gate=gate, chance=chance, start=start)
        _check(run, database_url, items=items, workers=workers)
        assert run.progress.interruptions >= wanted, f"seed {seed}"


@pytest.mark.timeout(300)
def test_every_step_of_a_resumable_is_done_once_though_its_workers_are_killed_at_random_moments(
    database_url: str, tmp_path: Path
):
    items = 6_000
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    gate = Gate(tmp_path, items=items, kills=_KILLS_OF_RESUMABLES)
    with closing(app.prepare(database_url, items=items)), crew(database_url, tmp_path) as start:
        run = app.count_in_steps.start(items, str(tmp_path))
        workers = [start(), start()]
        _kill(run, workers, kills=_KILLS_OF_RESUMABLES, gate=gate, chance=chance, start=start, every_third_asked=True)
        eventually(
            lambda: run.refresh().has_ended,
            within=120,
            message=lambda: f"seed {seed}: {run}, {run.history()[-3:]}, {workers[-1].log()}",
        )
        assert (RunState.SUCCEEDED, items) == (run.state, run.progress.done), f"seed {seed}: {run.error}"
        assert {1: items} == app.times(database_url), f"seed {seed}"
        assert run.progress.interruptions >= _KILLS_OF_RESUMABLES, f"seed {seed}"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", origins.KINDS)
def test_every_item_of_each_kind_of_source_is_done_once_though_its_workers_are_killed(
    kind: str, postgres_url: str, tmp_path: Path
):
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    gate = Gate(tmp_path, items=origins.ITEMS, kills=_KILLS_OF_A_SOURCE)
    with (
        closing(app.prepare(postgres_url, items=origins.ITEMS)),
        origins.origin(tmp_path) as place,
        crew(postgres_url, tmp_path) as start,
    ):
        run = app.count_from_source.start(kind, place)
        # One more than are killed: none has to be started anew meanwhile.
        workers = [start() for _ in range(_KILLS_OF_A_SOURCE + 1)]
        _kill(run, workers, kills=_KILLS_OF_A_SOURCE, gate=gate, chance=chance)
        eventually(
            lambda: run.refresh().has_ended,
            within=60,
            message=lambda: f"seed {seed}: {run}, {run.history()[-3:]}, {workers[-1].log()}",
        )
        progress = run.progress
        assert (RunState.SUCCEEDED, origins.ITEMS, 0) == (run.state, progress.done, progress.failed), run.error
        assert {1: origins.ITEMS} == app.times(postgres_url), f"seed {seed}"
        assert progress.interruptions >= _KILLS_OF_A_SOURCE, f"seed {seed}"


@pytest.mark.timeout(180)
def test_a_worker_stopped_past_its_lease_between_chunks_cannot_commit_when_it_goes_on(
    database_url: str, tmp_path: Path
):
    _stop_and_go_on(database_url, tmp_path, app.STOPS_BETWEEN_CHUNKS)


@pytest.mark.timeout(180)
def test_a_worker_stopped_past_its_lease_in_a_chunk_loses_its_locks_and_its_chunk(server_url: str, tmp_path: Path):
    # Not on SQLite: a process that is stopped inside a transaction keeps the whole file locked until it goes on.
    _stop_and_go_on(server_url, tmp_path, app.STOPS_IN_CHUNK)


def _stop_and_go_on(url: str, folder: Path, fault: str) -> None:
    items = 3_000
    with closing(app.prepare(url, items=items)), crew(url, folder) as start:
        run = app.count_items.start()
        sleeper = start(fault)
        sleeper.wait_until_stopped()
        committed = _done(run)
        assert committed >= 40
        second = start()
        _moved(run, beyond=committed, workers=[second])
        fence = run.partitions()[0].fence
        assert fence >= 2
        sleeper.signal(signal.SIGCONT)
        _check(run, url, items=items, workers=[second, sleeper])
        assert any("taken over" in change.reason or "ran out" in change.reason for change in run.history())


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_after_the_chunk_in_flight_and_fails_nothing(
    database_url: str, tmp_path: Path, number: signal.Signals
):
    items = 3_000
    with closing(app.prepare(database_url, items=items)), crew(database_url, tmp_path) as start:
        run = app.count_items.start()
        worker = start()
        _moved(run, beyond=100, workers=[worker])
        worker.signal(number)
        assert 0 == worker.wait()
        assert (RunState.QUEUED, 0) == (run.refresh().state, run.progress.workers)
        assert {1: run.progress.done, 0: items - run.progress.done} == app.times(database_url)
        second = start()
        _check(run, database_url, items=items, workers=[second])
        assert 1 == run.progress.interruptions


@pytest.mark.timeout(180)
def test_a_database_that_restarts_in_the_middle_of_a_run_loses_and_doubles_nothing(
    server: PostgresServer | MariaDbServer, server_url: str, tmp_path: Path
):
    items = 6_000
    with closing(app.prepare(server_url, items=items)), crew(server_url, tmp_path) as start:
        run = app.count_items.start()
        workers = [start(), start()]
        done = 0
        for immediate in (True, False, True):
            done = _moved(run, beyond=done + 500, workers=workers)
            server.restart(immediate=immediate)
        _check(run, server_url, items=items, workers=workers)
        assert all(worker.is_alive for worker in workers)


@pytest.mark.timeout(180)
def test_connections_that_are_cut_again_and_again_lose_and_double_nothing(
    server: PostgresServer | MariaDbServer, server_url: str, tmp_path: Path
):
    items = 6_000
    name = str(make_url(server_url).database)
    with closing(app.prepare(server_url, items=items)), crew(server_url, tmp_path) as start:
        run = app.count_items.start()
        workers = [start()]
        done = 0
        for _ in range(15):
            if run.refresh().has_ended:
                break
            done = _moved(run, beyond=done, workers=workers)
            server.disconnect(name)
        _check(run, server_url, items=items, workers=workers)


@pytest.mark.timeout(60)
def test_a_pause_gets_through_while_a_run_works_at_full_speed(database_url: str, tmp_path: Path):
    with closing(app.prepare(database_url, items=20_000)), crew(database_url, tmp_path) as start:
        run = app.count_items.start()
        worker = start()
        _moved(run, beyond=50, workers=[worker])
        run.pause()
        eventually(lambda: run.refresh().state is RunState.PAUSED, within=10, message=lambda: f"{run} {worker.log()}")
        paused_at = run.progress.done
        assert {1: paused_at, 0: 20_000 - paused_at} == app.times(database_url)
        run.cancel()
        assert RunState.CANCELLED == run.state
