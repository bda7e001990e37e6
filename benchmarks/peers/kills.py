"""What each system loses and does again when its worker is killed in the middle of a chunk, and when it goes on."""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.peers import environment, rows
from benchmarks.peers.roster import Peer
from benchmarks.peers.rows import PAUSE, Work
from benchmarks.peers.scene import FAILURES, Scene, Servers, servers
from benchmarks.peers.speed import machine, missing, print_versions
from benchmarks.tables import print_table

#: In a chunk's transaction, before its commit, and right after that commit, before the system can know of it.
MOMENTS = ("inside", "after")
_WORK = Work(100, 5)
_PAUSE_SECONDS = 0.05
_DONE_BEFORE = 0.2
#: A little more than what several wait by default.
_LIMIT_SECONDS = 125.0
_POLL_SECONDS = 0.1
_QUIET_SECONDS = 2.0


@dataclass(frozen=True)
class Killed:
    """
    What came of one kill; seconds are from the restart, None is not in the time that was waited.

    Args:
        first: when the first chunk after it was done.
        all: when all rows, and a callback, were.
        lost: rows that were not done in that time.
        repeated: rows that were done twice.
        callback: whether what is to come after all chunks came; None where nothing is.
    """

    first: float | None
    all: float | None
    lost: int
    repeated: int
    callback: bool | None


def print_kills(peers: Sequence[Peer]) -> None:
    """Kill the worker of each system in both moments, start it again, and print what came of it."""
    # What was called in place ends with its process; whoever goes on with it is a worker, and those have their lines.
    peers = [each for each in peers if not each.in_place]
    with servers(environment.make()) as at:
        print(f"\nkill -9 of every process of the worker, which is then started again ({machine(at)})\n")
        print_versions(at, peers)
        found: dict[tuple[str, str], Killed | str] = {}
        # One after the other until the worker is started again, so that this is not slow; then all wait at once.
        turn = threading.Lock()
        with ThreadPoolExecutor(len(peers) * len(MOMENTS)) as pool:
            waits = {
                (each.label, moment): pool.submit(_tried, at, each, moment, turn)
                for each in peers
                for moment in MOMENTS
            }
            for key, wait in waits.items():
                found[key] = wait.result()
    columns = ("system", "first new chunk", "all done", "rows not done", "rows twice", "rows not done", "rows twice")
    work = f"{_WORK.chunks} chunks of {_WORK.size} rows"
    print(f"\n{work}; killed before the commit of a chunk, and in the last two columns right after it\n")
    print_table(columns, [_line(each, found) for each in peers])


def kill(at: Servers, peer: Peer, moment: str, turn: threading.Lock) -> Killed:
    """Kill a worker when a fifth of the rows is done, start it again, and wait."""
    gate = at.folder / f"{uuid.uuid4()}.gate"
    pause = json.dumps({"moment": moment, "seconds": _PAUSE_SECONDS, "gate": str(gate)})
    scene = Scene(at, peer, env={PAUSE: pause})
    try:
        with turn:
            scene.fill(_WORK)
            starter = scene.starter()
            scene.workers()
            scene.begin(starter, _WORK)
            scene.wait(lambda: scene.done() >= _WORK.items * _DONE_BEFORE)
            gate.touch()
            scene.wait(rows.reached(gate).exists)
            scene.kill()
            gate.unlink()
            killed_at = scene.now()
            scene.restart()
            while scene.first_done_after(killed_at) is None and scene.now() < killed_at + _QUIET_SECONDS:
                time.sleep(_POLL_SECONDS)
        return _wait(scene, killed_at)
    finally:
        scene.close()


def _wait(scene: Scene, killed_at: float) -> Killed:
    def is_awaited() -> bool:
        # Who still does something is waited for.
        until = max(killed_at + _LIMIT_SECONDS, _last(scene) + _QUIET_SECONDS * 2)
        return not scene.all_done(_WORK) and scene.now() < until

    while is_awaited():
        time.sleep(_POLL_SECONDS * 5)
    # Whoever does a row again does it before or soon after the last.
    time.sleep(_QUIET_SECONDS)
    first, last = scene.first_done_after(killed_at), _last(scene)
    lost, repeated = scene.lost_and_repeated(_WORK)
    is_done = scene.all_done(_WORK)
    return Killed(
        first=None if first is None else first - killed_at,
        all=last - killed_at if is_done else None,
        lost=lost,
        repeated=repeated,
        callback=scene.has_called_back(),
    )


def _last(scene: Scene) -> float:
    """Give the time of the last commit."""
    return scene.last_done() or 0.0


def _tried(at: Servers, peer: Peer, moment: str, turn: threading.Lock) -> Killed | str:
    try:
        return missing(at, peer) or kill(at, peer, moment, turn)
    except FAILURES as error:
        print(f"{peer.label}: {error}", file=sys.stderr)
        return f"failed: {str(error).splitlines()[0]}"


def _line(peer: Peer, found: dict[tuple[str, str], Killed | str]) -> list[str]:
    inside, after = (found[peer.label, moment] for moment in MOMENTS)
    if isinstance(inside, str):
        return [peer.label, inside, "", "", "", "", ""]
    first = _seconds(inside.first)
    everything = _seconds(inside.all) + ("" if inside.callback is not False else ", callback never")
    ends = ["", ""] if isinstance(after, str) else [str(after.lost), str(after.repeated)]
    return [peer.label, first, everything, str(inside.lost), str(inside.repeated), *ends]


def _seconds(found: float | None) -> str:
    return f"not within {_LIMIT_SECONDS:.0f} s" if found is None else f"{found:.1f} s"
