"""A file that is there while the worker is busy, for whoever decides by a file whether it may be stopped."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from batchkit.hooks import BusyHook, WorkerState


class SentinelFile(BusyHook):
    """
    Keeps a file at *path* while the worker is busy, with JSON about who wrote it; it is whole whenever it is there.

    It is removed a moment after the last slice, and when the worker ends. One that a killed worker has left behind
    names a process that is no more: `is_busy(path)` tells it from a true one, and so does
    `python -m batchkit.contrib.sentinel PATH`. Each worker needs a path of its own.

    Args:
        path: the file; its folder is made where it is not there.
        only_protected: have it there only while the worker must not be stopped.
    """

    def __init__(self, path: str | os.PathLike[str], *, only_protected: bool = False) -> None:
        self._path = Path(path)
        self._only_protected = only_protected
        self._newest = 0

    def changed(self, state: WorkerState) -> None:
        """Write the file, or remove it."""
        if state.sequence < self._newest:
            return
        self._newest = state.sequence
        if state.is_protected or (state.is_busy and not self._only_protected):
            self._write(state)
        else:
            self._remove()

    def end(self) -> None:
        """Remove it."""
        self._remove()

    def _write(self, state: WorkerState) -> None:
        facts = {
            "pid": os.getpid(),
            "began": _began(os.getpid()),
            "boot": _boot(),
            "worker": state.worker,
            "protected": state.protected,
            "interruptible": state.interruptible,
            "remaining": state.remaining,
            "draining": state.is_draining,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_name(f".{self._path.name}.{os.getpid()}.new")
        new.write_text(json.dumps(facts) + "\n")
        new.replace(self._path)

    def _remove(self) -> None:
        with suppress(FileNotFoundError):
            self._path.unlink()


def is_busy(path: str | os.PathLike[str]) -> bool:
    """
    Tell whether the worker that wrote the file is there, and busy.

    It has to be asked in the same container, or on the same machine: process ids mean nothing elsewhere.
    """
    try:
        facts = json.loads(Path(path).read_text())
        return bool(facts["boot"] == _boot() and facts["began"] is not None and facts["began"] == _began(facts["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """Say when a process began: another one with its number began at another time. None where there is none."""
    try:
        # Behind the name of the program, which may hold anything: its state, and as the 20th the time of its start.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    # A zombie is one that was killed and not yet buried.
    return None if state == "Z" else rest[18]


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004  itself and the path
        sys.exit(
            "usage: python -m batchkit.contrib.sentinel PATH; it ends with 0 while the worker is busy, else with 1"
        )
    sys.exit(0 if is_busy(sys.argv[1]) else 1)
