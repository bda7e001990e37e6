"""What became of the work: items, waste, and how long partitions and workers waited."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from batchkit.model import Lease, RunId
from batchkit.states import PartitionState
from batchkit.store import Store


class ItemsWrongError(Exception):
    """An item was done twice or not at all."""


@dataclass
class Tally:
    """Counts what the workers do. The positions are kept beside the store, so that it can be held against them."""

    #: seconds that workers have spent on chunks that were committed, and on such as were not
    worked: float = 0.0
    wasted: float = 0.0
    #: the items of the latter
    items: int = 0
    redone: int = 0
    #: seconds from when a partition was left to its next claim, by how it was left
    takeovers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    endings: Counter[str] = field(default_factory=Counter)
    positions: dict[tuple[RunId, int], int] = field(default_factory=dict)
    fences: dict[tuple[RunId, int], int] = field(default_factory=dict)
    #: how, and when, partitions were left that nobody has claimed since
    left: dict[tuple[RunId, int], tuple[str, float]] = field(default_factory=dict)

    def claimed(self, lease: Lease, *, now: float) -> None:
        """
        Take note of a claim.

        Raises:
            ItemsWrongError: its fence is not above all before it, or its cursor is not where the work stands.
        """
        place = (lease.run_id, lease.number)
        if lease.fence <= self.fences.get(place, 0):
            raise ItemsWrongError(f"fence {lease.fence} of {place} came behind {self.fences[place]}")
        self.fences[place] = lease.fence
        position = cursor_of(lease)
        if self.positions.setdefault(place, position) != position:
            raise ItemsWrongError(f"{place} was claimed at {position}, but stands at {self.positions[place]}")
        if place in self.left:
            how, since = self.left.pop(place)
            self.takeovers[how].append(now - since)

    def leaves(self, lease: Lease, how: str, *, now: float) -> None:
        """Take note that a worker leaves a partition."""
        self.endings[how] += 1
        self.left.setdefault((lease.run_id, lease.number), (how, now))

    def committed(self, before: Lease, items: int, *, seconds: float) -> None:
        """
        Take note of a chunk that is committed.

        Raises:
            ItemsWrongError: its items are not those behind what is done.
        """
        place = (before.run_id, before.number)
        if self.positions[place] != cursor_of(before):
            raise ItemsWrongError(f"{place} moved from {cursor_of(before)}, but stood at {self.positions[place]}")
        self.positions[place] += items
        self.items += items
        self.worked += seconds

    def undone(self, items: int, *, seconds: float) -> None:
        """Take note of a chunk that came to nothing."""
        self.redone += items
        self.wasted += seconds

    @property
    def waste(self) -> float:
        """The share of all work that came to nothing."""
        return self.wasted / max(1e-9, self.worked + self.wasted)

    def check(self, store: Store, runs: list[RunId]) -> None:
        """
        Hold the store against what was committed.

        Raises:
            ItemsWrongError: its counters or its cursors say something else.
        """
        for run_id in runs:
            for each in store.records.partitions(run_id):
                low, at = each.number, self.positions.get((run_id, each.number))
                if at is None:
                    continue
                if each.cursor != at:
                    raise ItemsWrongError(
                        f"partition {low} of {run_id} stands at {each.cursor}, and was worked to {at}"
                    )
        done = sum(store.records.load(run_id).progress.done for run_id in runs)
        if done != self.items:
            raise ItemsWrongError(f"the store counts {done:,} items, but {self.items:,} were committed")

    def unfinished(self, store: Store, runs: list[RunId]) -> int:
        """Count the partitions that are not worked to their ends."""
        return sum(each.state is not PartitionState.FINAL for run in runs for each in store.records.partitions(run))


class Ledger:
    """A table that each chunk writes its items to, as a user's would."""

    def __init__(self, store: Store) -> None:
        self._store = store
        with store.database.transaction() as tx:
            tx.execute(text("CREATE TABLE ledger (run TEXT, low INTEGER, high INTEGER)"))

    def writing(self, run_id: RunId, low: int, high: int) -> Callable[[Any], object]:
        """Give what writes the items from *low* to *high* as part of their chunk."""
        row = {"run": run_id, "low": low, "high": high}
        return lambda tx: tx.execute(text("INSERT INTO ledger VALUES (:run, :low, :high)"), row)

    def spans(self, run_id: RunId) -> list[tuple[int, int]]:
        """Give the items that were written, joined where one follows the other."""
        joined: list[tuple[int, int]] = []
        with self._store.database.reading() as tx:
            for low, high in tx.execute(
                text("SELECT low, high FROM ledger WHERE run = :run ORDER BY low"), {"run": run_id}
            ):
                if joined and joined[-1][1] == low:
                    joined[-1] = (joined[-1][0], high)
                else:
                    joined.append((low, high))
        return joined


def cursor_of(lease: Lease) -> int:
    """Give the number of the items in front of the cursor."""
    return int(json.loads(lease.cursor or "0"))


def end_of(lease: Lease) -> int:
    """Give the number of the last item of the partition."""
    return int(json.loads(lease.until or "0"))
