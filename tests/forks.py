"""
Start Python programs by forking a process that has imported what they import.

Tests start more than a thousand programs, and imports take most of what each start costs. `start` runs a module as
`python -m` does: the first time by that very command, and from then on in a fork of one process, which has imported the
packages that we depend on and ours, and done nothing else. BATCHKIT_TEST_FORKS=0 has every program started anew.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

_ROOT = Path(__file__).resolve().parents[1]
_LONGEST_REQUEST = 1 << 20
#: What workers and commands import, but for what reads the environment: no app and no job.
_IMPORTED = (
    "alembic.command",
    "batchkit.cli.working",
    "batchkit.queues.celery",
    "batchkit.queues.rq",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.worker.worker",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "pymysql",
    "rq.cli",
    "sqlalchemy.dialects.mysql.pymysql",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
)


class Process(Protocol):
    """What tests need of a `subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """The process id."""

    def poll(self) -> int | None:
        """Give the exit code, or None while the process runs."""

    def wait(self, timeout: float) -> int:
        """Wait for the exit code."""

    def kill(self) -> None:
        """Send SIGKILL."""


class _Fork:
    """A program in a fork: as a `subprocess.Popen`, but that another process is its parent."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told
        self.pid = int(self._line())
        self._code: int | None = None

    def poll(self) -> int | None:
        """Give the exit code, or None while the process runs."""
        if self._code is None and select.select([self._told], [], [], 0)[0]:
            self._code = int(self._line())
            self._told.close()
        return self._code

    def wait(self, timeout: float) -> int:
        """Wait for the exit code."""
        if self._code is None:
            select.select([self._told], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout)
        return code

    def kill(self) -> None:
        """Send SIGKILL."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _line(self) -> str:
        line = self._told.recv(64).decode()
        assert line, "the process that is forked has ended; its log is what this test's process wrote to stderr"
        return line


class _Forker:
    """The process that is forked; it ends with this one, or when it is closed."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", str(theirs.fileno())],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Ctrl-C is for the tests.
                start_new_session=True,
            )

    def start(self, request: dict[str, Any], output: int, errors: int) -> _Fork:
        """Start a program that writes to *output* and *errors*."""
        told, tells = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with tells:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [output, errors, tells.fileno()])
        return _Fork(told)

    def close(self) -> None:
        """End it, but not its forks."""
        self._socket.close()
        self._process.wait()


_lock = threading.Lock()
_begun: set[str] = set()
_forker: _Forker | None = None


def start(
    module: str,
    *arguments: str,
    output: int,
    env: Mapping[str, str],
    errors: int | None = None,
    new_session: bool = False,
    may_fork: bool = True,
) -> Process:
    """Run *module*, as `python -m` does, in the project's folder; it writes to *output*, and to *errors* if given."""
    global _forker  # noqa: PLW0603  one for this test process
    with _lock:
        if not may_fork or module not in _begun or os.environ.get("BATCHKIT_TEST_FORKS") == "0":
            _begun.add(module)
            command = [sys.executable, "-m", module, *arguments]
            return execute(command, output=output, errors=errors, env=env, new_session=new_session)
        if _forker is None:
            _forker = _Forker()
            atexit.register(_forker.close)
        request = {"module": module, "arguments": arguments, "env": dict(env), "new_session": new_session}
        return _forker.start(request, output, output if errors is None else errors)


def execute(
    command: Sequence[str | Path],
    *,
    output: int,
    env: Mapping[str, str],
    errors: int | None = None,
    new_session: bool = False,
) -> Process:
    """Run a command in the project's folder."""
    return subprocess.Popen(
        command,
        cwd=_ROOT,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output if errors is None else errors,
        start_new_session=new_session,
    )


# The process that is forked


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request, and tell of each end; return what to do in the forks alone."""
    running: dict[int, socket.socket] = {}
    ended: dict[socket.socket, int] = {}
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    while True:
        readable, _, _ = select.select([requests, woken, *ended], [], [])
        for told in ended.keys() & set(readable):
            # Whoever was told has read it. Until then the pid stays taken, as that of a child does.
            os.waitpid(ended.pop(told), 0)
            told.close()
        if woken in readable:
            woken.recv(4096)
            _tell_of_ends(running, ended)
        if requests not in readable:
            continue
        message, fds, _, _ = socket.recv_fds(requests, _LONGEST_REQUEST, 3)
        if not message:
            sys.exit()
        output, errors, tells = fds
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (requests, woken, wakes, *running.values(), *ended):
                each.close()
            os.dup2(output, 1)
            os.dup2(errors, 2)
            for number in fds:
                os.close(number)
            request: dict[str, Any] = json.loads(message)
            return request
        os.close(output)
        os.close(errors)
        running[pid] = socket.socket(fileno=tells)
        running[pid].send(str(pid).encode())


def _tell_of_ends(running: dict[int, socket.socket], ended: dict[socket.socket, int]) -> None:
    for pid in list(running):
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if end is None:
            continue
        told = running.pop(pid)
        ended[told] = pid
        code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        # Nobody may wait for it any more.
        with contextlib.suppress(OSError):
            told.send(str(code).encode())


def _main(number: int) -> None:
    for name in _IMPORTED:
        import_module(name)
    with socket.socket(fileno=number) as requests:
        request = _serve(requests)
    if request["new_session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv[1:] = request["arguments"]
    # From here on it is the program, with that one's end.
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
