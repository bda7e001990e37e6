"""What each system adds to a chunk, and what it stores for it."""

from __future__ import annotations

import functools
import os
import random
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.peers import environment
from benchmarks.peers.figures import Figures, Found, Pair, Stored
from benchmarks.peers.roster import LIMIT, Peer
from benchmarks.peers.rows import Work
from benchmarks.peers.scene import FAILURES, Scene, Servers, Warm, servers, warm

_WARM_UP = 20
#: How often a system is measured while its processes run.
_PAIRS = 2
_STORED_WORK = Work(1000, 5)


def print_peers(peers: Sequence[Peer], *, works: Sequence[Work], rounds: int) -> None:
    """Measure all, in rounds in which they come in another order each time, and print the tables."""
    figures = Figures(peers, [work.size for work in works])
    with servers(environment.make()) as at, warm(at, LIMIT) as limit:
        print(f"\nSystems on the same rows ({machine(at)})\n")
        print_versions(at, peers)
        try:
            _measure(at, limit, peers, figures, works=works, rounds=rounds)
        except KeyboardInterrupt:
            print("\nInterrupted; this is what was measured until then")
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    for work in works:
        times = rounds * _PAIRS
        print(f"\n{work.size} rows to a chunk, {work.chunks} chunks, {times} times each; load at the end {load}\n")
        figures.print_speed(work.size)
    print("\nBytes per chunk, waiting for a worker and left after the end; and what is durable when\n")
    figures.print_stored()


def print_versions(at: Servers, peers: Sequence[Peer]) -> None:
    """Print what is measured."""
    names = sorted({name for each in (*peers, LIMIT) for name in each.packages})
    found = environment.versions(at.python, names)
    print(", ".join(f"{name} {version or 'NOT INSTALLED'}" for name, version in found.items()), flush=True)


def machine(at: Servers) -> str:
    """Say what they run on."""
    with at.postgres.connect() as connection:
        row = connection.execute("SHOW server_version").fetchone()
    postgres = row[0] if row else "?"
    return f"Python {sys.version.split()[0]}, PostgreSQL {postgres} with fsync on, {os.cpu_count()} processors"


def missing(at: Servers, peer: Peer) -> str | None:
    """Say which package of a system is not there."""
    found = environment.versions(at.python, peer.packages)
    return next((f"{name} is not installed" for name in peer.packages if not found[name]), None)


def _measure(
    at: Servers, limit: Warm, peers: Sequence[Peer], figures: Figures, *, works: Sequence[Work], rounds: int
) -> None:
    dice = random.Random(6)
    for number in range(1, rounds + 1):
        for peer in dice.sample(list(peers), len(peers)):
            do = functools.partial(_round, at, limit, peer, works, figures.found[peer.label])
            _try(at, peer, figures, f"round {number} of {rounds}", do)
    for peer in peers:
        _try(at, peer, figures, "what is stored", functools.partial(_store, at, peer, figures))


def _try(at: Servers, peer: Peer, figures: Figures, what: str, do: Callable[[], None]) -> None:
    """Do something with a system; where that fails, note why and leave the others to go on."""
    if peer.label in figures.failed:
        return
    print(f"{what}: {peer.label}", file=sys.stderr)
    reason = missing(at, peer)
    try:
        if reason is None:
            do()
    except FAILURES as error:
        reason = f"failed: {str(error).splitlines()[0]}"
        print(error, file=sys.stderr)
    if reason is not None:
        figures.failed[peer.label] = reason


def _round(at: Servers, limit: Warm, peer: Peer, works: Sequence[Work], found: dict[int, Found]) -> None:
    """Start a system, and measure it right after the loop, with each size of chunk."""
    with warm(at, peer) as system:
        for work in works:
            system.run(Work(_WARM_UP, work.size))
            scaled = _scaled(work, peer)
            found[work.size].pairs.extend(_pair(limit, system, scaled) for _ in range(_PAIRS))


def _pair(limit: Warm, system: Warm, work: Work) -> Pair:
    loop, ours = limit.run(work), system.run(work)
    each = 1000 / work.chunks
    return Pair(loop.total * each, ours.total * each, ours.between * 1000 / (work.chunks - 1), ours.first)


def _store(at: Servers, peer: Peer, figures: Figures) -> None:
    """Measure what a system stores for each chunk."""
    work = _scaled(_STORED_WORK, peer)
    scene = Scene(at, peer)
    try:
        starter = scene.starter()
        scene.fill(work)
        before, waiting = scene.stored(), None
        scene.begin(starter, work)
        if peer.worker:
            waiting = _per_chunk(before, scene.stored(), work)
            scene.workers()
        scene.wait_all(work)
        # What is there once is no chunk's: so it is the second time that counts.
        before = _settled(scene)
        scene.fill(work)
        scene.run(starter, work)
        figures.stored[peer.label] = Stored(waiting, _per_chunk(before, _settled(scene), work))
    finally:
        scene.close()


def _settled(scene: Scene) -> tuple[int, int]:
    """Give what is stored once all is acknowledged and settled that comes after the last commit."""
    time.sleep(1)
    return scene.stored()


def _per_chunk(before: tuple[int, int], after: tuple[int, int], work: Work) -> tuple[float, float]:
    return (after[0] - before[0]) / work.chunks, (after[1] - before[1]) / work.chunks


def _scaled(work: Work, peer: Peer) -> Work:
    return Work(max(_WARM_UP, int(work.chunks * peer.share)), work.size)
