"""What systemd is told, read from a real socket as it reads it."""

from __future__ import annotations

import os
import signal
import socket
import struct
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from batchkit.busy import Busy
from batchkit.contrib.systemd import Notify
from batchkit.hooks import HookContext, WorkerState
from tests.busy.conftest import Fleet
from tests.waiting import eventually

IDLE = WorkerState("pod-1:7", "pod-1", 0, 0, None, is_draining=False, sequence=1)
BUSY = replace(IDLE, interruptible=1, remaining=3.0, sequence=2)
_CREDENTIALS = struct.Struct("3i")


@dataclass
class Manager:
    """Systemd's end of the socket."""

    address: str
    socket: socket.socket
    #: the lines that came, with the process that sent each
    heard: list[tuple[int, str]] = field(default_factory=list)

    def hear(self, *, within: float = 0.0) -> bool:
        """Take in what has come; say whether anything has, *within* so many seconds."""
        self.socket.settimeout(within)
        before = len(self.heard)
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
            except (BlockingIOError, TimeoutError):
                return len(self.heard) > before
            pid = _CREDENTIALS.unpack(ancillary[0][2])[0]
            self.heard += [(pid, line) for line in data.decode().splitlines()]
            self.socket.settimeout(0)

    def lines(self) -> list[str]:
        """Give all that came so far."""
        self.hear()
        return [line for _, line in self.heard]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """Give a socket by a path, or by an abstract name."""
    is_abstract = request.param == "abstract"
    address = f"@batchkit-{uuid.uuid4().hex}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{address[1:]}" if is_abstract else address)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        yield Manager(address, listening)


@pytest.fixture
def settings(manager: Manager) -> dict[str, str]:
    """Have workers tell systemd."""
    return {
        "TEST_HOOK": "batchkit.contrib.systemd:Notify",
        "TEST_HOOK_ARGUMENT": manager.address,
        "WATCHDOG_USEC": "1000000",
    }


def _context(repeat: float = 10.0) -> HookContext:
    return HookContext("pod-1:7", "pod-1", "local", _nobody, max_protect=None, repeat_seconds=repeat)


def _nobody() -> Busy:
    return Busy(datetime.now(timezone.utc), (), (), ())


# Workers


def _wait_for(fleet: Fleet, manager: Manager, start: str) -> None:
    eventually(
        lambda: any(line.startswith(start) for line in manager.lines()),
        within=60,
        message=lambda: f"no {start}: {manager.heard}\n{fleet.crew.logs()}",
    )


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_a_worker_says_that_it_is_ready_what_it_does_and_that_it_stops(fleet: Fleet, manager: Manager):
    worker = fleet.worker()
    _wait_for(fleet, manager, "READY=1")
    run = fleet.start("count", pause=1.5)
    _wait_for(fleet, manager, "STATUS=1 slice")
    fleet.command("drain")
    _wait_for(fleet, manager, "STATUS=draining")
    assert "STOPPING=1" not in manager.lines(), "a drain may be called off"
    fleet.command("drain", "--off")
    worker.send(signal.SIGTERM)
    # It is read all the time, as systemd does: a socket holds ten messages.
    eventually(lambda: manager.lines() and not worker.is_alive, within=60, message=fleet.crew.logs)
    _wait_for(fleet, manager, "STOPPING=1")
    assert {worker.pid} == {pid for pid, _ in manager.heard}, "systemd hears the main process only"
    lines = manager.lines()
    assert 1 == lines.count("READY=1") == lines.count("STOPPING=1")
    assert "READY=1" == lines[0]
    assert "WATCHDOG=1" in lines
    fleet.worker()
    fleet.check(run)


# The hook by itself


def test_stopping_is_told_once_and_only_checkpoints_extend_it(manager: Manager):
    hook = Notify(manager.address, extend=20)
    hook.begin(_context())
    hook.changed(BUSY)
    hook.checkpointed(replace(BUSY, sequence=3))
    hook.changed(replace(BUSY, sequence=4, is_draining=True))
    assert ["READY=1", "STATUS=idle", "STATUS=1 slice, next checkpoint in 3 s"] == manager.lines()[:3]
    assert not {"STOPPING=1", "EXTEND_TIMEOUT_USEC=20000000"} & set(manager.lines())
    stopping = replace(BUSY, sequence=5, is_draining=True, is_stopping=True)
    hook.changed(stopping)
    hook.repeated(replace(stopping, sequence=6))
    assert "EXTEND_TIMEOUT_USEC=20000000" not in manager.lines()
    hook.checkpointed(replace(stopping, sequence=7))
    hook.checkpointed(replace(stopping, sequence=8, interruptible=0))
    hook.end()
    lines = manager.lines()
    assert (1, 1) == (lines.count("STOPPING=1"), lines.count("EXTEND_TIMEOUT_USEC=20000000"))
    assert lines.index("STOPPING=1") < lines.index("EXTEND_TIMEOUT_USEC=20000000")


@pytest.fixture
def watched(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notify]:
    """Give a hook of a unit that has a watchdog of 0.1 s, told by the environment."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    hook = Notify(longest_chunk=0.5)
    yield hook
    hook.end()


def _is_silent(manager: Manager) -> bool:
    return not manager.hear(within=1.0)


def test_the_watchdog_is_kept_quiet_while_checkpoints_come_and_not_by_one_that_hangs(manager: Manager, watched: Notify):
    watched.begin(_context())
    for _ in range(15):
        assert manager.hear(within=30.0), "an idle worker is alive"
    watched.changed(BUSY)
    eventually(lambda: _is_silent(manager), within=30, message="a chunk that hangs keeps the watchdog quiet")
    watched.repeated(replace(BUSY, sequence=3))
    assert _is_silent(manager), "to hear of it again is no progress"
    watched.checkpointed(replace(BUSY, sequence=4))
    assert manager.hear(within=30.0)
    watched.changed(replace(IDLE, sequence=5))
    eventually(lambda: manager.lines()[-3:] == ["WATCHDOG=1"] * 3, within=30, message=lambda: str(manager.lines()))


def test_a_worker_whose_tracking_has_ended_keeps_no_watchdog_quiet(manager: Manager, watched: Notify):
    watched.begin(_context(repeat=0.1))
    assert manager.hear(within=30.0)
    eventually(lambda: _is_silent(manager), within=30, message="nobody knows how it stands, and it counts as alive")


@pytest.mark.parametrize("changed", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}])
def test_a_watchdog_that_waits_for_somebody_else_is_told_nothing(
    manager: Manager, watched: Notify, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str]
):
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    watched.begin(_context())
    assert manager.hear(within=30.0)
    assert _is_silent(manager)
    assert ["READY=1", "STATUS=idle"] == manager.lines()


def test_where_nobody_listens_it_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    hook = Notify(str(tmp_path / "nobody"))
    hook.begin(_context())
    hook.changed(BUSY)
    hook.end()
    assert 1 == len(caplog.records)
    assert "cannot be told" in caplog.text


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_a_stop_that_could_not_be_told_is_told_later(manager: Manager):
    hook = Notify(manager.address)
    hook.begin(_context())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                other.sendto(b"STATUS=of somebody else", manager.address)
    stopping = replace(IDLE, sequence=2, is_draining=True, is_stopping=True)
    hook.changed(stopping)
    assert "STOPPING=1" not in manager.lines()
    hook.repeated(replace(stopping, sequence=3))
    assert "STOPPING=1" in manager.lines()


def test_outside_of_a_unit_nothing_is_done(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    hook = Notify()
    hook.begin(_context())
    hook.changed(BUSY)
    hook.checkpointed(BUSY)
    hook.end()
    assert "NOTIFY_SOCKET is not set" in caplog.text


@pytest.mark.parametrize("wrong", [{"extend": 0}, {"longest_chunk": -1}, {"longest_chunk": float("inf")}])
def test_a_duration_that_is_none_is_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Notify("@x", **wrong)
