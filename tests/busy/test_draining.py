"""Draining the workers of an instance, and waiting until they are idle: what a platform's preStop does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from batchkit import Run, RunState
from batchkit.busy import BusySlice
from batchkit.draining import DrainNotice
from tests.busy.conftest import Fleet
from tests.queues.workers import QueueWorker
from tests.servers.rabbitmq import RabbitServer
from tests.waiting import eventually

#: Less than it takes a sweep to wake somebody up once more.
_WITHOUT_A_SWEEP_SECONDS = 12.0


def _on(instance: str) -> dict[str, str]:
    return {"BATCHKIT_INSTANCE": instance}


def _two_instances(fleet: Fleet) -> dict[str, QueueWorker]:
    return {name: fleet.worker(env=_on(name)) for name in ("pod-1", "pod-2")}


def _held(fleet: Fleet, run: Run) -> BusySlice:
    """Wait until somebody works the run."""
    busy = fleet.wait_busy(lambda busy: [each for each in busy.slices if each.run_id == run.id], "nobody works it")
    return next(each for each in busy.slices if each.run_id == run.id)


def _is_held_on(fleet: Fleet, instance: str) -> bool:
    return any(each.instance == instance for each in fleet.kit.busy().slices)


@pytest.mark.parametrize("hook", ["Recorder"])
def test_a_run_goes_on_elsewhere_at_once_when_its_instance_is_drained(fleet: Fleet):
    workers = _two_instances(fleet)
    run = fleet.start("count", pause=1.5)
    drained = _held(fleet, run).instance
    (other,) = workers.keys() - {drained}
    fleet.command("drain", env=_on(drained))
    eventually(
        lambda: _is_held_on(fleet, other),
        within=_WITHOUT_A_SWEEP_SECONDS,
        message=lambda: f"{other} does not go on: {run.history()}\n{fleet.crew.logs()}",
    )
    fleet.command("wait-idle", "--timeout", "20", env=_on(drained))
    fleet.check(run)
    # The other end of it: the drained one is told that it takes nothing, and takes nothing.
    assert any(each["is_draining"] and not each["is_stopping"] for each in fleet.told("changed"))
    assert not run.refresh().failures()


def test_a_drained_worker_that_is_the_only_one_leaves_all_work_until_the_drain_is_called_off(fleet: Fleet):
    fleet.worker()
    run = fleet.start("count", pause=1.5)
    _held(fleet, run)
    fleet.command("drain")
    fleet.command("wait-idle", "--timeout", "20")
    done = run.refresh().progress.done
    assert RunState.QUEUED == run.state
    later = fleet.start("count", pause=0.01)
    fleet.wait_busy(lambda busy: busy.queue("default").ready == 2, "not both wait")
    assert (0, done) == (later.refresh().progress.done, run.refresh().progress.done)
    fleet.command("drain", "--off")
    fleet.check(run, later)


def test_what_a_prestop_hook_does_loses_and_doubles_nothing(fleet: Fleet):
    workers = _two_instances(fleet)
    run = fleet.start("must-stay", pause=1.5)
    ended = _held(fleet, run).instance
    fleet.command("drain", env=_on(ended))
    fleet.command("wait-idle", "--timeout", "30", env=_on(ended))
    workers[ended].send_all(signal.SIGTERM)
    workers[ended].end()
    assert not _is_held_on(fleet, ended), "it was killed in the middle of something"
    fleet.check(run)


def test_an_instance_is_drained_from_afar_by_its_name(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BATCHKIT_RUN_DIR", fleet.crew.env["BATCHKIT_RUN_DIR"])
    workers = _two_instances(fleet)
    fleet.wait_busy(lambda busy: len(busy.workers) == len(workers), "not all are there")
    # They share a folder here; two machines do not.
    fleet.command("drain", "--instance", "pod-2", env=_on("pod-1"))
    eventually(
        lambda: DrainNotice("pod-2").look(),
        within=60,
        message=lambda: f"pod-2 did not see it: {fleet.crew.logs()}",
    )
    assert not DrainNotice("pod-1").look()
    run = fleet.start("count", pause=1.0)
    assert "pod-1" == _held(fleet, run).instance
    fleet.check(run)
    # Called off on the instance itself, it stays off.
    fleet.command("drain", "--off", env=_on("pod-2"))
    fleet.wait_busy(lambda busy: not any(each.is_draining for each in busy.workers), "pod-2 is still drained")
    assert not DrainNotice("pod-2").look()


class TestRabbitMQ:
    """A broker that pushes messages, where the others are asked for them."""

    @pytest.fixture
    def kind(self) -> str:
        return "celery"

    @pytest.fixture
    def settings(self, rabbit_server: RabbitServer) -> dict[str, str]:
        return {"TEST_BROKER": rabbit_server.url}

    def test_a_run_goes_on_elsewhere_at_once_there_as_well_and_here_after_the_drain(self, fleet: Fleet):
        workers = _two_instances(fleet)
        run = fleet.start("count", pause=1.5)
        drained = _held(fleet, run).instance
        (other,) = workers.keys() - {drained}
        fleet.command("drain", env=_on(drained))
        eventually(
            lambda: _is_held_on(fleet, other),
            within=_WITHOUT_A_SWEEP_SECONDS,
            message=lambda: f"{other} does not go on: {run.history()}\n{fleet.crew.logs()}",
        )
        fleet.command("drain", "--off", env=_on(drained))
        fleet.command("drain", env=_on(other))
        eventually(
            lambda: _is_held_on(fleet, drained),
            within=_WITHOUT_A_SWEEP_SECONDS,
            message=lambda: f"{drained} does not take it up: {run.history()}\n{fleet.crew.logs()}",
        )
        fleet.check(run)


# The command by itself


def _run(*arguments: str, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "batchkit", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BATCHKIT_")}
    return subprocess.run(
        command, env={**environment, **env}, cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )


class TestLeases:
    """They are the same for all queues."""

    @pytest.fixture
    def kind(self) -> str:
        return "local"

    def test_wait_idle_gives_up_with_75_while_somebody_works(self, fleet: Fleet):
        fleet.worker()
        run = fleet.start("count", pause=1.5)
        _held(fleet, run)
        fleet.command("wait-idle", "--timeout", "0.5", expected=75)
        fleet.command("wait-idle", "--timeout", "0", "--instance", "pod-2")
        fleet.check(run)


def test_wait_idle_needs_to_be_told_whose_database(tmp_path: Path):
    done = _run("wait-idle", "--timeout", "0", env={}, cwd=tmp_path)
    assert 2 == done.returncode
    assert "-A module:kit" in done.stderr
    assert [] == list(tmp_path.iterdir())


def test_wait_idle_says_so_while_the_database_is_away_and_waits_on(tmp_path: Path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql+psycopg://127.0.0.1:{nobody.getsockname()[1]}/app"
        done = _run("wait-idle", "--timeout", "1", env={"BATCHKIT_DATABASE_URL": url}, cwd=tmp_path)
    assert 75 == done.returncode, done.stderr
    assert "an unknown number of slices" in done.stderr
    assert "Traceback" not in done.stderr


def test_draining_needs_neither_an_app_nor_a_database(tmp_path: Path):
    env = {"BATCHKIT_RUN_DIR": str(tmp_path / "run"), "BATCHKIT_INSTANCE": "dyno.1"}
    assert 0 == _run("drain", env=env, cwd=tmp_path).returncode
    (notice,) = (tmp_path / "run").iterdir()
    assert json.loads(notice.read_text())["ends_at"] > time.time()
    assert 0 == _run("drain", "--off", env=env, cwd=tmp_path).returncode
    assert [] == list((tmp_path / "run").iterdir())


# Notices


@pytest.fixture
def notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DrainNotice:
    """Give a notice that is up."""
    monkeypatch.setenv("BATCHKIT_RUN_DIR", str(tmp_path))
    made = DrainNotice("pod-1")
    made.put_up(seconds=60)
    assert made.look()
    return made


@pytest.mark.parametrize(
    "changed",
    [{"boot": "of another machine/1"}, {"ends_at": time.time() - 1}, {"ends_at": "soon"}, {"ends_at": None}],
    ids=["another boot", "ended", "no number", "nothing"],
)
def test_a_notice_that_is_stale_is_ignored(notice: DrainNotice, changed: dict[str, object]):
    notice.path.write_text(json.dumps({**json.loads(notice.path.read_text()), **changed}))
    assert not notice.look()


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "\0"])
def test_a_notice_that_cannot_be_read_is_ignored(notice: DrainNotice, text: str):
    notice.path.write_text(text)
    assert not notice.look()


def test_a_notice_of_another_instance_is_not_ours(notice: DrainNotice):
    assert not DrainNotice("pod-2").look()


def test_a_notice_that_is_a_folder_or_no_file_at_all_is_ignored(notice: DrainNotice):
    notice.take_down()
    notice.take_down()
    assert not notice.look()
    notice.path.mkdir()
    assert not notice.look()
