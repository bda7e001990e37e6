"""What was measured of each system, and the tables of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.peers.roster import Peer
from benchmarks.tables import print_table

_WANTED = 0.25


@dataclass(frozen=True)
class Pair:
    """Milliseconds per chunk: the loop, and the system right after it, in all and from its first chunk to its last."""

    loop: float
    total: float
    between: float
    first: float

    @property
    def ratio(self) -> float:
        """How many times as long as the loop."""
        return self.total / self.loop

    @property
    def added(self) -> float:
        """What the system adds, its start included."""
        return self.total - self.loop

    @property
    def added_between(self) -> float:
        """What it adds once it has begun."""
        return self.between - self.loop


@dataclass(frozen=True)
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


class Figures:
    """What was measured of all systems; of one that failed, why."""

    def __init__(self, peers: Sequence[Peer], sizes: Sequence[int]) -> None:
        self._peers = peers
        self.found = {each.label: {size: Found() for size in sizes} for each in peers}
        self.stored: dict[str, Stored] = {}
        self.failed: dict[str, str] = {}

    def print_speed(self, size: int) -> None:
        """Print what each adds to a chunk of a size, and batchkit's as a share of the best durable one's."""
        columns = ("system", "ms/chunk", "ratio to the loop", "added ms/chunk", "once begun", "first chunk after")
        print_table(columns, [self._speed_line(each, self.found[each.label][size]) for each in self._peers])
        self._print_share("in all", size, lambda pair: pair.added)
        self._print_share("once begun", size, lambda pair: pair.added_between)

    def print_stored(self) -> None:
        """Print what each stores for a chunk."""
        columns = ("system", "Redis waiting", "left", "PostgreSQL waiting", "left", "what is durable")
        print_table(columns, [self._stored_line(each) for each in self._peers])

    def _speed_line(self, peer: Peer, found: Found) -> list[str]:
        if not found.pairs:
            return [peer.label, self.failed.get(peer.label, "not measured"), "", "", "", ""]
        low, high = found.spread(lambda pair: pair.ratio)
        return [
            peer.label,
            f"{found.median(lambda pair: pair.total):.2f} ({found.median(lambda pair: pair.loop):.2f})",
            f"{found.median(lambda pair: pair.ratio):.2f} ({low:.2f} to {high:.2f})",
            _added(found, lambda pair: pair.added),
            _added(found, lambda pair: pair.added_between),
            f"{found.median(lambda pair: pair.first):.3f} s",
        ]

    def _print_share(self, what: str, size: int, get: Callable[[Pair], float]) -> None:
        measured = [each for each in self._peers if self.found[each.label][size].pairs and each.workers == 1]
        durable = [each for each in measured if each.is_durable and not each.is_ours]
        if not durable:
            return
        best = min(durable, key=lambda each: self.found[each.label][size].median(get))
        theirs = self.found[best.label][size]
        print(f"\nAdded time {what}, as a share of that of the best durable system, {best.label}; wanted {_WANTED}:\n")
        for each in measured:
            if each.is_ours:
                print(f"* {each.label}: {_share(self.found[each.label][size], theirs, get)}")

    def _stored_line(self, peer: Peer) -> list[str]:
        found = self.stored.get(peer.label)
        if found is None:
            return [peer.label, self.failed.get(peer.label, "not measured"), "", "", "", peer.holds]
        waiting = ["", ""] if found.waiting is None else [f"{each:,.0f}" for each in found.waiting]
        left = [f"{each:,.0f}" for each in found.left]
        return [peer.label, waiting[0], left[0], waiting[1], left[1], peer.holds]


def _added(found: Found, get: Callable[[Pair], float]) -> str:
    low, high = found.spread(get)
    noise = ", less than the spread" if high - low > abs(found.median(get)) else ""
    return f"{found.median(get):.2f} ({low:.2f} to {high:.2f}{noise})"


def _share(ours: Found, theirs: Found, get: Callable[[Pair], float]) -> str:
    if theirs.median(get) <= 0:
        return "not to be told: the other added nothing that could be measured"
    (least, most), (their_least, their_most) = ours.spread(get), theirs.spread(get)
    spread = f"{least / their_most:.2f} to {most / their_least:.2f}" if their_least > 0 else "the spread hides it"
    return f"{ours.median(get) / theirs.median(get):.2f} ({spread})"
