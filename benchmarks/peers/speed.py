"""What each system adds to a chunk, and what it stores for it."""

from __future__ import annotations

import functools
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.peers import environment
from benchmarks.peers.roster import LIMIT, Peer
from benchmarks.peers.rows import Work
from benchmarks.peers.scene import FAILURES, Scene, Servers, Warm, servers, warm
from benchmarks.tables import print_table

_WARM_UP = 20
#: How often a system is measured while its processes run.
_PAIRS = 2
_STORED_WORK = Work(1000, 5)
_WANTED = 0.25


@dataclass(frozen=True)
class Pair:
    """Milliseconds per chunk: the loop, and the system right after it, in all and from its first chunk to its last."""

    loop: float
    total: float
    between: float
    first: float

    @property
    def added(self) -> float:
        """What the system adds, its start included."""
        return self.total - self.loop

    @property
    def added_between(self) -> float:
        """What it adds once it has begun."""
        return self.between - self.loop


@dataclass
class Found:
    """What was measured of a system with one size of chunk."""

    pairs: list[Pair] = field(default_factory=list)

    def median(self, get: Callable[[Pair], float]) -> float:
        """Give the median of something."""
        return statistics.median(map(get, self.pairs))

    def spread(self, get: Callable[[Pair], float]) -> tuple[float, float]:
        """Give the least and the most of something."""
        values = [get(each) for each in self.pairs]
        return min(values), max(values)


@dataclass(frozen=True)
class Stored:
    """Bytes per chunk in Redis and in PostgreSQL, while all waits for a worker, and after all was done."""

    waiting: tuple[float, float] | None
    left: tuple[float, float]


Results = dict[str, dict[int, Found]]


def print_peers(peers: Sequence[Peer], *, works: Sequence[Work], rounds: int) -> None:
    """Measure all, in rounds in which they come in another order each time, and print the tables."""
    found: Results = {each.label: {work.size: Found() for work in works} for each in peers}
    failed: dict[str, str] = {}
    stored: dict[str, Stored] = {}
    with servers(environment.make()) as at, warm(at, LIMIT) as limit:
        print(f"\nSystems on the same rows ({machine(at)})\n")
        print_versions(at, peers)
        dice = random.Random(6)
        for number in range(rounds):
            for peer in dice.sample(list(peers), len(peers)):
                if peer.label not in failed:
                    print(f"round {number + 1} of {rounds}: {peer.label}", file=sys.stderr)
                    _try(at, peer, failed, functools.partial(_round, limit, at, peer, works, found[peer.label]))
        for peer in peers:
            if peer.label not in failed:
                print(f"what is stored: {peer.label}", file=sys.stderr)
                _try(at, peer, failed, functools.partial(_store, at, peer, stored))
        load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    for work in works:
        times = rounds * _PAIRS
        print(f"\n{work.size} rows to a chunk, {work.chunks} chunks, {times} times each; load at the end {load}\n")
        _print_speed(peers, work.size, found, failed)
        _print_comparison(peers, work.size, found, failed)
    print("\nBytes per chunk, waiting for a worker and left after the end; and what is durable when\n")
    _print_stored(peers, stored, failed)


def print_versions(at: Servers, peers: Sequence[Peer]) -> None:
    """Print what is measured."""
    names = sorted({name for each in (*peers, LIMIT) for name in each.packages})
    found = environment.versions(at.python, names)
    print(", ".join(f"{name} {version or 'NOT INSTALLED'}" for name, version in found.items()))


def machine(at: Servers) -> str:
    """Say what they run on."""
    with at.postgres.connect() as connection:
        row = connection.execute("SHOW server_version").fetchone()
    postgres = row[0] if row else "?"
    return f"Python {sys.version.split()[0]}, PostgreSQL {postgres} with fsync on, {os.cpu_count()} processors"


def store(at: Servers, peer: Peer) -> Stored:
    """Measure what a system stores for each chunk."""
    work = _scaled(_STORED_WORK, peer)
    scene = Scene(at, peer)
    try:
        scene.fill(work)
        starter = scene.starter()
        before = scene.stored()
        waiting = None
        scene.begin(starter, work)
        if peer.worker:
            waiting = _per_chunk(before, scene.stored(), work)
            scene.workers()
        scene.wait_all(work)
        # What is acknowledged or settled after the last commit.
        time.sleep(1)
        return Stored(waiting, _per_chunk(before, scene.stored(), work))
    finally:
        scene.close()


def _store(at: Servers, peer: Peer, stored: dict[str, Stored]) -> None:
    stored[peer.label] = store(at, peer)


def missing(at: Servers, peer: Peer) -> str | None:
    """Say which package of a system is not there."""
    found = environment.versions(at.python, peer.packages)
    return next((f"{name} is not installed" for name in peer.packages if not found[name]), None)


def _round(limit: Warm, at: Servers, peer: Peer, works: Sequence[Work], found: dict[int, Found]) -> None:
    """Start a system, and measure it right after the loop, with each size of chunk."""
    with warm(at, peer) as system:
        for work in works:
            scaled = _scaled(work, peer)
            system.run(Work(_WARM_UP, work.size))
            for _ in range(_PAIRS):
                found[work.size].pairs.append(_pair(limit, system, scaled))


def _pair(limit: Warm, system: Warm, work: Work) -> Pair:
    loop, ours = limit.run(work), system.run(work)
    each = 1000 / work.chunks
    return Pair(loop.total * each, ours.total * each, ours.between * 1000 / (work.chunks - 1), ours.first)


def _scaled(work: Work, peer: Peer) -> Work:
    return Work(max(_WARM_UP, int(work.chunks * peer.share)), work.size)


def _try(at: Servers, peer: Peer, failed: dict[str, str], do: Callable[[], None]) -> None:
    """Do something with a system; where that fails, say so and leave the others to go on."""
    reason = missing(at, peer)
    try:
        if reason is None:
            do()
    except FAILURES as error:
        reason = f"failed: {str(error).splitlines()[0]}"
        print(f"{peer.label}: {error}", file=sys.stderr)
    if reason is not None:
        failed[peer.label] = reason


def _print_speed(peers: Sequence[Peer], size: int, found: Results, failed: Mapping[str, str]) -> None:
    columns = ("system", "ms/chunk", "ratio to the loop", "added ms/chunk", "once begun", "first chunk after")
    print_table(columns, [_speed_line(each, found[each.label][size], failed.get(each.label)) for each in peers])


def _speed_line(peer: Peer, found: Found, reason: str | None) -> list[str]:
    if not found.pairs:
        return [peer.label, reason or "not measured", "", "", "", ""]
    ratio = found.median(lambda pair: pair.total / pair.loop)
    low, high = found.spread(lambda pair: pair.total / pair.loop)
    return [
        peer.label,
        f"{found.median(lambda pair: pair.total):.2f} ({found.median(lambda pair: pair.loop):.2f})",
        f"{ratio:.2f} ({low:.2f} to {high:.2f})",
        _added(found, lambda pair: pair.added),
        _added(found, lambda pair: pair.added_between),
        f"{found.median(lambda pair: pair.first):.3f} s",
    ]


def _added(found: Found, get: Callable[[Pair], float]) -> str:
    low, high = found.spread(get)
    noise = ", less than the spread" if high - low > abs(found.median(get)) else ""
    return f"{found.median(get):.2f} ({low:.2f} to {high:.2f}{noise})"


def _print_comparison(peers: Sequence[Peer], size: int, found: Results, failed: Mapping[str, str]) -> None:
    """Print batchkit's added time as a share of the best durable system's."""
    measured = [
        each for each in peers if found[each.label][size].pairs and each.label not in failed and each.workers == 1
    ]
    durable = [each for each in measured if each.is_durable and not each.is_ours]
    if not durable:
        return
    for what, get in (("in all", _total), ("once begun", _between)):
        best = min(durable, key=lambda each: found[each.label][size].median(get))
        theirs = found[best.label][size]
        print(f"\nAdded time {what}, as a share of that of the best durable system, {best.label}; wanted {_WANTED}:\n")
        for each in measured:
            if each.is_ours:
                ours = found[each.label][size]
                (least, most), (their_least, their_most) = ours.spread(get), theirs.spread(get)
                share = ours.median(get) / theirs.median(get)
                print(f"* {each.label}: {share:.2f} ({least / their_most:.2f} to {most / their_least:.2f})")


def _total(pair: Pair) -> float:
    return pair.added


def _between(pair: Pair) -> float:
    return pair.added_between


def _print_stored(peers: Sequence[Peer], stored: Mapping[str, Stored], failed: Mapping[str, str]) -> None:
    columns = ("system", "Redis waiting", "left", "PostgreSQL waiting", "left", "what is durable")
    print_table(columns, [_stored_line(each, stored.get(each.label), failed.get(each.label)) for each in peers])


def _stored_line(peer: Peer, found: Stored | None, reason: str | None) -> list[str]:
    if found is None:
        return [peer.label, reason or "not measured", "", "", "", peer.holds]
    waiting = ("", "") if found.waiting is None else tuple(f"{each:,.0f}" for each in found.waiting)
    left = tuple(f"{each:,.0f}" for each in found.left)
    return [peer.label, waiting[0], left[0], waiting[1], left[1], peer.holds]


def _per_chunk(before: tuple[int, int], after: tuple[int, int], work: Work) -> tuple[float, float]:
    return (after[0] - before[0]) / work.chunks, (after[1] - before[1]) / work.chunks
