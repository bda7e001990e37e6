"""Workers that kill themselves at each point of a chunk in turn: each delivery keeps its promise wherever they die."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from batchkit import BatchKit, Chunk, Run, RunState, span
from batchkit.queues import LocalQueue
from batchkit.stopping import Stop
from batchkit.store.database import Database
from batchkit.store.held import HeldConnection
from tests.slices.conftest import Ledger, end_leases, job, ledger, let_leases_run_out, write

#: Some sixty processes one after the other, on a machine that may be busy.
pytestmark = pytest.mark.timeout(300)
_ITEMS = 3


class Points:
    """Counts the points that a worker comes by, and kills it at one of them."""

    def __init__(self) -> None:
        self._left = 0

    def die_at(self, point: int) -> None:
        """Have the process killed when it comes by so many points from now on."""
        self._left = point

    def __call__(self) -> None:
        """Come by a point."""
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Have a point in front of *step*."""

        def stepped(*args: Any, **kwargs: Any) -> Any:
            self()
            return step(*args, **kwargs)

        return stepped

    def behind(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Have a point behind *step*."""

        def stepped(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self()
            return result

        return stepped


class World:
    """What is outside: its effects are there at once, whatever becomes of the worker, and have the item's key."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, item: int, key: str) -> None:
        """Have an effect."""
        # One write to the end of a file: it outlives the process that made it.
        opened = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(opened, f"{item} {key}\n".encode())
        os.close(opened)

    def effects(self) -> list[tuple[int, str]]:
        """Give the effects with their keys."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        return [(int(item), key) for item, key in map(str.split, lines)]

    def clear(self) -> None:
        """Begin anew."""
        self._path.unlink(missing_ok=True)


@dataclass
class Place:
    """Where a run is worked, and what came of it."""

    kit: BatchKit
    done: Ledger
    world: World
    points: Points
    job: Any

    def crash_at_every_point(self) -> Iterator[Run]:
        """Give a run for each point: a worker was killed there, and another has worked the run to its end."""
        point = 0
        was_killed = True
        while was_killed:
            point += 1
            self.world.clear()
            with self.done.engine.begin() as tx:
                tx.execute(delete(ledger))
            self.done.engine.dispose()
            run = self.job.start()
            was_killed = self._work_in_child(run, point)
            # Some workers are known to be dead, and some leases run out.
            (end_leases if point % 2 else let_leases_run_out)(self.kit, run)
            with Stop() as stop:
                self.kit.work_run(run.id, stop=stop)
            assert RunState.SUCCEEDED == run.refresh().state, f"point {point}: {run.error}"
            yield run
        # Fewer would mean that the points are no longer where the commits are.
        assert point > _ITEMS * 6

    def _work_in_child(self, run: Run, point: int) -> bool:
        pid = os.fork()
        if pid == 0:
            # Nothing of pytest must run here, whatever happens.
            try:
                self.points.die_at(point)
                with Stop() as stop:
                    self.kit.work_run(run.id, stop=stop)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        return os.WIFSIGNALED(status)


@contextmanager
def _place(
    database_url: str, done: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Iterator[Place]:
    points, world = Points(), World(tmp_path / "effects")
    monkeypatch.setattr(HeldConnection, "begin", points.behind(HeldConnection.begin))
    monkeypatch.setattr(HeldConnection, "commit", points.before(points.behind(HeldConnection.commit)))
    ahead = HeldConnection.execute_and_commit
    monkeypatch.setattr(HeldConnection, "execute_and_commit", points.before(points.behind(ahead)))
    # In front of claims, plans and releases, and so behind those before them.
    monkeypatch.setattr(Database, "connect", points.before(Database.connect))

    def work(chunk: Chunk[int]) -> None:
        points()
        for item in chunk:
            world(item, chunk.key(item))
            points()
        write(chunk)
        points()

    with closing(BatchKit(database_url, queue=LocalQueue())) as kit:
        kit.migrate()
        yield Place(kit, done, world, points, job(span(_ITEMS), work, **options))


def _are_keys_stable(run: Run, effects: list[tuple[int, str]]) -> bool:
    keys = {key for _, key in effects}
    return len(keys) == len({item for item, _ in effects}) and all(key.startswith(run.id) for key in keys)


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_what_is_written_is_written_once_and_no_effect_is_lost_wherever_a_worker_is_killed(
    database_url: str, done: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, delivery: str
):
    repeated = 0
    with _place(database_url, done, tmp_path, monkeypatch, delivery=delivery, chunk_size=2) as place:
        for run in place.crash_at_every_point():
            progress = run.progress
            assert (_ITEMS, 0, 0, delivery) == (progress.done, progress.failed, progress.in_doubt, run.delivery)
            assert list(range(_ITEMS)) == done.items()
            effects = place.world.effects()
            assert set(range(_ITEMS)) == {item for item, _ in effects}
            assert _are_keys_stable(run, effects)
            repeated += len(effects) - _ITEMS
    # Else nobody was killed between an effect and its checkpoint.
    assert repeated


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_no_effect_happens_twice_and_every_item_is_accounted_for_wherever_a_worker_is_killed(
    database_url: str, done: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, chunk_size: int
):
    seen: Counter[int] = Counter()
    with _place(database_url, done, tmp_path, monkeypatch, delivery="at-most-once", chunk_size=chunk_size) as place:
        for run in place.crash_at_every_point():
            progress, written = run.progress, done.items()
            doubtful = [int(each.cursor) for each in run.failures() if each.in_doubt]
            assert (len(written), 0, len(doubtful)) == (progress.done, progress.failed, progress.in_doubt)
            assert list(range(_ITEMS)) == sorted(written + doubtful)
            effects = place.world.effects()
            assert len(effects) == len({item for item, _ in effects})
            assert set(written) <= {item for item, _ in effects}
            assert _are_keys_stable(run, effects)
            seen[len(doubtful)] += 1
    # At most the chunk in flight, and not always that.
    assert {0, chunk_size} <= set(seen) <= {0, 1, chunk_size}
