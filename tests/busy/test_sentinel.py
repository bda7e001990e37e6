"""The file that is there while a worker is busy."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from batchkit.contrib.sentinel import SentinelFile, is_busy
from batchkit.hooks import WorkerState
from tests.busy.conftest import Fleet
from tests.waiting import eventually

IDLE = WorkerState("pod-1:7", "pod-1", 0, 0, None, is_draining=False, sequence=1)
INTERRUPTIBLE = replace(IDLE, interruptible=1, remaining=0.5)
PROTECTED = replace(IDLE, protected=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give the path of the file, in a folder that is not there."""
    return tmp_path / "busy" / "worker.json"


@pytest.fixture
def settings(path: Path) -> dict[str, str]:
    """Have workers keep the file."""
    return {"TEST_HOOK": "batchkit.contrib.sentinel:SentinelFile", "TEST_HOOK_ARGUMENT": str(path)}


def _exit_code(path: Path) -> int:
    command = [sys.executable, "-m", "batchkit.contrib.sentinel", str(path)]
    return subprocess.run(command, check=False, timeout=60).returncode


# Workers


def test_the_file_is_there_while_the_worker_is_busy(fleet: Fleet, path: Path):
    worker = fleet.worker()
    run = fleet.start("count", pause=1.0)
    eventually(lambda: is_busy(path), within=60, message=fleet.crew.logs)
    assert worker.pid == json.loads(path.read_text())["pid"]
    fleet.check(run)
    eventually(lambda: not path.exists(), within=60, message=fleet.crew.logs)
    assert worker.is_alive
    assert [] == list(path.parent.iterdir()), "something was left behind"


def test_the_file_of_a_worker_that_was_killed_is_known_to_be_stale(fleet: Fleet, path: Path):
    worker = fleet.worker()
    run = fleet.start("must-stay", pause=1.5)
    eventually(lambda: is_busy(path), within=60, message=fleet.crew.logs)
    assert 0 == _exit_code(path)
    # Not buried yet, it is a zombie.
    worker.send_all(signal.SIGKILL)
    eventually(lambda: not is_busy(path), within=60, message="the killed worker counts as busy")
    worker.wait()
    assert path.exists()
    assert 1 == _exit_code(path)
    fleet.kit.end_leases_of(json.loads(path.read_text())["worker"])
    fleet.worker()
    fleet.check(run)
    eventually(lambda: not path.exists(), within=60, message=fleet.crew.logs)


def test_a_worker_that_ends_removes_its_file(fleet: Fleet, path: Path):
    worker = fleet.worker()
    run = fleet.start("count", pause=1.0)
    eventually(path.exists, within=60, message=fleet.crew.logs)
    worker.send(signal.SIGTERM)
    worker.wait()
    assert not path.exists()
    fleet.worker()
    fleet.check(run)


# The hook by itself


@pytest.mark.parametrize(
    ("only_protected", "state", "is_there"),
    [
        (False, IDLE, False),
        (False, INTERRUPTIBLE, True),
        (False, PROTECTED, True),
        (True, IDLE, False),
        (True, INTERRUPTIBLE, False),
        (True, PROTECTED, True),
    ],
)
def test_the_file_is_there_for_the_states_that_were_asked_for(
    path: Path, only_protected: bool, state: WorkerState, is_there: bool
):
    hook = SentinelFile(path, only_protected=only_protected)
    hook.changed(replace(PROTECTED, sequence=0))
    hook.changed(state)
    assert is_there is path.exists() is is_busy(path)
    hook.end()
    assert not path.exists()


def test_a_state_that_comes_late_changes_nothing(path: Path):
    hook = SentinelFile(path)
    hook.changed(replace(PROTECTED, sequence=5))
    hook.changed(replace(IDLE, sequence=4))
    assert is_busy(path)


def test_a_file_that_somebody_removed_is_there_again_with_the_next_repetition(path: Path):
    hook = SentinelFile(path)
    hook.changed(PROTECTED)
    path.unlink()
    hook.repeated(replace(PROTECTED, sequence=2))
    assert is_busy(path)


@pytest.mark.parametrize(
    "changed",
    [{"boot": "another"}, {"began": "1"}, {"began": None}, {"pid": 2**30}, {"pid": None}],
    ids=["another boot", "another process", "no beginning", "no such process", "no number"],
)
def test_a_file_that_names_no_living_worker_is_stale(path: Path, changed: dict[str, object]):
    SentinelFile(path).changed(PROTECTED)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    assert not is_busy(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "\0"])
def test_a_file_that_says_nothing_is_stale(path: Path, text: str):
    path.parent.mkdir()
    path.write_text(text)
    assert not is_busy(path)
    assert 1 == _exit_code(path)


def test_the_command_needs_a_path():
    command = [sys.executable, "-m", "batchkit.contrib.sentinel"]
    done = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
    assert 1 == done.returncode
    assert "PATH" in done.stderr
