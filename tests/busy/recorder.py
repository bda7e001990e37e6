"""A busy hook that writes down what it is told, and one for each way in which a hook goes wrong."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from batchkit.hooks import BusyHook, HookContext, WorkerState


class Recorder(BusyHook):
    """Writes each call as a line of JSON, with the process that made it."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def begin(self, context: HookContext) -> None:
        """Write it down."""
        self._note("begin", worker=context.worker, kind=context.kind)

    def changed(self, state: WorkerState) -> None:
        """Write it down."""
        self._note("changed", **asdict(state))

    def repeated(self, state: WorkerState) -> None:
        """Write it down."""
        self._note("repeated", **asdict(state))

    def checkpointed(self, state: WorkerState) -> None:
        """Write it down."""
        self._note("checkpointed", **asdict(state))

    def end(self) -> None:
        """Write it down."""
        self._note("end")

    def _note(self, method: str, **facts: object) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"method": method, "pid": os.getpid(), "at": time.time(), **facts}) + "\n")


class Granting(Recorder):
    """Protects, and writes that down."""

    def protect(self, state: WorkerState) -> bool | None:
        """Grant it."""
        self._note("protect", **asdict(state))
        return True


class Refusing(Recorder):
    """Never protects."""

    def protect(self, state: WorkerState) -> bool | None:
        """Refuse it."""
        self._note("protect", **asdict(state))
        return False


class Failing(Recorder):
    """Raises whatever it is called for."""

    def protect(self, state: WorkerState) -> bool | None:
        """Raise."""
        self._note("protect", **asdict(state))
        message = "the platform is not there"
        raise OSError(message)

    def changed(self, state: WorkerState) -> None:
        """Raise."""
        super().changed(state)
        message = "the platform is not there"
        raise OSError(message)


class Hanging(Recorder):
    """Never returns."""

    def protect(self, state: WorkerState) -> bool | None:
        """Hang."""
        self._note("protect", **asdict(state))
        time.sleep(3600)
        return True

    def changed(self, state: WorkerState) -> None:
        """Hang."""
        super().changed(state)
        time.sleep(3600)


class Slow(Recorder):
    """Takes its time."""

    def protect(self, state: WorkerState) -> bool | None:
        """Take its time."""
        self._note("protect", **asdict(state))
        time.sleep(0.5)
        return True

    def changed(self, state: WorkerState) -> None:
        """Take its time."""
        super().changed(state)
        time.sleep(0.5)


def read(path: Path) -> list[dict[str, object]]:
    """Give what was written down, in order."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
