"""
Draining an instance: its workers stop at their next checkpoint, and take nothing more.

It is said by a file, which every process of the instance can look at for nothing: a command that a platform runs before
it stops a worker has no other way to all of them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from batchkit.errors import DrainImpossible
from batchkit.instance import instance_name

_logger = logging.getLogger("batchkit")

#: The folder of the file, where the one for temporary files will not do.
VARIABLE = "BATCHKIT_RUN_DIR"
_LOOK_EVERY_SECONDS = 0.2
_ROOT = 0
_MEND = f"name another folder by {VARIABLE}, for the workers and for `batchkit drain` alike"


class DrainNotice:
    """
    The notice that an instance is being drained.

    It is good until it ends, and only in the boot of the machine or container that it was written in: one that was left
    behind must not keep the next workers from their work.
    """

    def __init__(self, instance: str | None = None) -> None:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", instance or instance_name())
        self._file = f"drain-{name}.json"
        self._looks_at = 0.0
        self._is_there = False
        self._has_warned = False

    @property
    def path(self) -> Path:
        """
        The file.

        Raises:
            DrainImpossible: there is no folder for it.
        """
        return run_folder() / self._file

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
            path = self.path
            if path.lstat().st_uid not in {os.getuid(), _ROOT}:
                # The folder is one that everybody can write to.
                return False
            _check(path.parent)
            notice = json.loads(path.read_text())
            return bool(notice["boot"] == _boot() and notice["ends_at"] > time.time())
        except DrainImpossible as error:
            self._warn(error)
            return False
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def put_up(self, *, seconds: float) -> None:
        """
        Have the instance drained, for so long at the most.

        Raises:
            DrainImpossible: the notice cannot be written, or not where only this user and root can.
        """
        path = self.path
        new = path.with_suffix(f".{os.getpid()}.new")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check(path.parent)
            with suppress(FileNotFoundError):
                new.unlink()
            # Nothing that somebody has laid there is followed or written to.
            number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            with os.fdopen(number, "w") as file:
                file.write(json.dumps({"boot": _boot(), "ends_at": time.time() + seconds}))
            new.replace(path)
        except OSError as error:
            raise DrainImpossible(f"the notice {path} cannot be written: {error}; {_MEND}") from error

    def take_down(self) -> None:
        """
        Let the instance work again.

        Raises:
            DrainImpossible: there is no folder for the notice.
        """
        with suppress(FileNotFoundError):
            self.path.unlink()

    def _warn(self, error: DrainImpossible) -> None:
        if not self._has_warned:
            self._has_warned = True
            _logger.warning("a drain would not be seen here: %s", error)


def run_folder() -> Path:
    """
    Give the folder for what the processes of an instance tell each other.

    Raises:
        DrainImpossible: there is no folder that can be written to.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    try:
        return Path(tempfile.gettempdir()) / f"batchkit-{os.getuid()}"
    except OSError as error:
        raise DrainImpossible(f"there is no folder for temporary files: {error}; {_MEND}") from error


def _check(folder: Path) -> None:
    """Refuse a folder, where nobody has named it, in which others could put up notices, or take them down."""
    if os.environ.get(VARIABLE):
        return
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid in {os.getuid(), _ROOT}
    if not is_ours or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DrainImpossible(f"{folder} is not this user's alone; remove it, or {_MEND}")


def _boot() -> str:
    """Name the boot of this machine and the life of this container: its first process began at some time."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Behind the name of the program, which may hold anything, the time of its start is the 20th.
        began = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{boot}/{began}"
