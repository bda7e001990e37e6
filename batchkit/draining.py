"""
Draining an instance: its workers stop at their next checkpoint, and take nothing more.

It is said by a file, which every process of the instance can look at for nothing: a command that a platform runs before
it stops a worker has no other way to all of them.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from batchkit.instance import instance_name

#: The folder of the file, where the one for temporary files will not do.
VARIABLE = "BATCHKIT_RUN_DIR"
_LOOK_EVERY_SECONDS = 0.2
_ROOT = 0


class DrainNotice:
    """
    The notice that an instance is being drained.

    It is good until it ends, and only in the boot of the machine or container that it was written in: one that was left
    behind must not keep the next workers from their work.
    """

    def __init__(self, instance: str | None = None) -> None:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", instance or instance_name())
        self._path = run_folder() / f"drain-{name}.json"
        self._looks_at = 0.0
        self._is_there = False

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def is_there(self) -> bool:
        """Whether the instance is being drained, as it was a moment ago."""
        now = time.monotonic()
        if now >= self._looks_at:
            self._looks_at = now + _LOOK_EVERY_SECONDS
            self._is_there = self.look()
        return self._is_there

    def look(self) -> bool:
        """Look whether the instance is being drained."""
        try:
            if self._path.stat().st_uid not in {os.getuid(), _ROOT}:
                # The folder is one that everybody can write to.
                return False
            notice = json.loads(self._path.read_text())
            return bool(notice["boot"] == _boot() and notice["ends_at"] > time.time())
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def put_up(self, *, seconds: float) -> None:
        """Have the instance drained, for so long at the most."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        notice = {"boot": _boot(), "ends_at": time.time() + seconds}
        new = self._path.with_suffix(f".{os.getpid()}.new")
        new.write_text(json.dumps(notice))
        new.replace(self._path)

    def take_down(self) -> None:
        """Let the instance work again."""
        with suppress(FileNotFoundError):
            self._path.unlink()


def run_folder() -> Path:
    """Give the folder for what the processes of an instance tell each other."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path(tempfile.gettempdir()) / f"batchkit-{os.getuid()}"


def _boot() -> str:
    """Name the boot of this machine and the life of this container: its first process began at some time."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Behind the name of the program, which may hold anything, the time of its start is the 20th.
        began = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{boot}/{began}"
