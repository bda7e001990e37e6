"""Server processes that end with the tests, however those end."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.servers import keeper

# Below the ports that the system gives to outgoing connections, so that none of those takes ours while we restart.
_PORTS = range(20_000, 32_000)

_MEMORY = Path("/dev/shm")  # noqa: S108  mkdtemp makes a folder there that is ours
_MEMORY_BYTES = 4 << 30


def folder(prefix: str, *, on_disk: bool = False) -> Path:
    """Make a folder for a server that many files are made in: in memory, where that is roomy, else on disk."""
    in_memory = not on_disk and _is_roomy(_MEMORY)
    # Not the place that TMPDIR says: it may be too long for a socket, or closed to other users.
    return Path(tempfile.mkdtemp(prefix=prefix, dir=_MEMORY if in_memory else "/tmp"))  # noqa: S108  the same


def keep(folder: Path) -> subprocess.Popen[bytes]:
    """Start what removes *folder*, and ends the PostgreSQL that runs there, if this process is killed."""
    return subprocess.Popen(
        [sys.executable, "-I", keeper.__file__, str(os.getpid()), str(folder)],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C and the end of a terminal are for the tests
    )


def _is_roomy(place: Path) -> bool:
    try:
        found = os.statvfs(place)
    except OSError:
        return False
    # A server's programs may have to be copied there as well.
    runs_programs = not found.f_flag & os.ST_NOEXEC
    return runs_programs and found.f_bavail * found.f_frsize >= _MEMORY_BYTES and os.access(place, os.W_OK | os.X_OK)


def free_port() -> int:
    """Give a port that nothing listens on."""
    for port in random.sample(_PORTS, k=100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"100 ports between {_PORTS.start} and {_PORTS.stop} are all taken")


def start(command: list[str], *, log: Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a server that is killed when this process is gone, and writes to *log*."""
    guard = shutil.which("setpriv")
    guarded = [guard, "--pdeathsig", "KILL", "--", *command] if guard else command
    with log.open("ab") as stream:
        return subprocess.Popen(
            guarded,
            cwd=cwd,
            # Nothing of the tests' environment, which may name other servers.
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "HOME": str(cwd), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def answers(port: int) -> bool:
    """Tell whether something accepts connections on *port*."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
