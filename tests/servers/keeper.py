"""
Clean up after a test process that was killed, and so could not.

    python keeper.py PARENT_PID FOLDER

Wait until the process that started this one is gone. Then end the server that runs in FOLDER/data, if one still does,
and remove FOLDER. A test process that ends in good order removes the folder itself; then there is nothing to do.
Only the standard library is used, and nothing of tests/.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

_POLL_SECONDS = 0.2
_DEADLINE_SECONDS = 30


def main(parent: int, folder: Path) -> None:
    """Wait for the end of *parent*, then clean up."""
    # Asked by polling, and not by the end of a pipe, which forked children of the tests would hold open.
    while os.getppid() == parent:
        if not folder.exists():
            return
        time.sleep(_POLL_SECONDS)
    deadline = time.monotonic() + _DEADLINE_SECONDS
    # More than once, since an initdb that was under way goes on writing for a moment.
    while folder.exists() and time.monotonic() < deadline:
        end_server(folder / "data")
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_POLL_SECONDS)


def end_server(data: Path) -> None:
    """End the PostgreSQL that runs in *data*, at once."""
    pid = server_pid(data)
    if pid is None:
        return
    send(pid, signal.SIGQUIT)
    deadline = time.monotonic() + _DEADLINE_SECONDS / 2
    # Not whether there is such a process: until somebody asks for its end, a dead one is still there.
    while server_pid(data) is not None:
        if time.monotonic() >= deadline:
            send(pid, signal.SIGKILL)
            return
        time.sleep(_POLL_SECONDS / 4)


def server_pid(data: Path) -> int | None:
    """Give the pid that the server wrote down, if it is still the server's."""
    try:
        pid = int((data / "postmaster.pid").read_text().split(maxsplit=1)[0])
    except (OSError, ValueError, IndexError):
        return None
    # A server that was killed leaves its pid behind, and by now another process may have that number.
    directory = Path("/proc", str(pid), "cwd")
    try:
        return pid if directory.resolve(strict=True) == data.resolve() else None
    except OSError:
        return None if Path("/proc/self").exists() or not runs(pid) else pid


def runs(pid: int) -> bool:
    """Tell whether there is a process *pid*."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone by now."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
