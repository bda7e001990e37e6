"""Platforms: who reads what, and by which rule a worker is chosen to be stopped."""

from __future__ import annotations

import fcntl
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from batchkit.busy import Busy
from batchkit.hooks import BusyHook, WorkerState
from batchkit.instance import instance_name

FREE, PROTECTED, STOPPING = "free", "protected", "stopping"


class Rule(Protocol):
    """Chooses whom to stop, by the last report."""

    def victim(self, report: Busy, instances: Sequence[str], chance: random.Random) -> str | None:
        """Give an instance that may be stopped; None where none may."""
        ...


class WholeFleet:
    """As Judoscale: nobody is stopped while the report says that anybody is busy; then anybody."""

    def victim(self, report: Busy, instances: Sequence[str], chance: random.Random) -> str | None:
        """Give one."""
        busy = sum(queue.protected for queue in report.queues)
        return None if busy else chance.choice(instances)


class Blind:
    """As a platform that nobody tells of anything: anybody, at any time."""

    def victim(self, report: Busy, instances: Sequence[str], chance: random.Random) -> str | None:
        """Give one."""
        return chance.choice(instances)


class EachInstance:
    """As a Kubernetes that is told of deletion costs: an idle one goes first, then one that may be interrupted."""

    def victim(self, report: Busy, instances: Sequence[str], chance: random.Random) -> str | None:
        """Give one."""
        costs = dict.fromkeys(instances, 0)
        for held in report.slices:
            costs[held.instance] = max(costs.get(held.instance, 0), 1 if held.is_interruptible else 2)
        least = min(costs[instance] for instance in instances)
        return None if least > 1 else chance.choice([each for each in instances if costs[each] == least])


class Granted:
    """As ECS: anybody, but for those whom the platform has promised to leave alone."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def victim(self, report: Busy, instances: Sequence[str], chance: random.Random) -> str | None:
        """Give one, and refuse it any protection from now on."""
        for instance in chance.sample(list(instances), len(instances)):
            with _standing(self._folder, instance) as file:
                if file.read_text() != PROTECTED:
                    file.write_text(STOPPING)
                    return instance
        return None


class GrantingPlatform(BusyHook):
    """The platform's agent beside a worker: it grants protection, unless the worker is being stopped already."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def protect(self, state: WorkerState) -> bool | None:
        """Grant it or refuse it."""
        with _standing(self._folder, instance_name()) as file:
            if file.read_text() == STOPPING:
                return False
            file.write_text(PROTECTED)
            return True

    def changed(self, state: WorkerState) -> None:
        """Give it back."""
        if not state.is_protected:
            with _standing(self._folder, instance_name()) as file:
                if file.read_text() == PROTECTED:
                    file.write_text(FREE)


@contextmanager
def _standing(folder: str, instance: str) -> Iterator[Path]:
    """Give the file that says how an instance stands, with nobody else at it."""
    path = Path(folder) / instance
    path.touch()
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield path
