"""
How sizes of chunks follow what the items cost: a simulation, and its picture.

Three rules work the same curves of cost: a fixed size of 500, the rule that GitLab publishes for its batched background
migrations (docs.gitlab.com/development/database/batched_background_migrations: efficiency smoothed over 20 jobs with
0.4, aimed at 0.9 to 0.95, growth of 1.2 at most), and ours.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchkit.sizing import Adaptive, AdaptiveSizing, FixedSizing, Sizing

TARGET = 1.0
_OVERHEAD = 0.002
_FIRST = 10
_ITEMS_SECONDS = 120.0
#: What counts as having reached the target, and as an overrun.
_REACHED, _OVERRUN = 0.7, 1.5

PICTURE = Path(__file__).parents[1] / "docs" / "adaptive.svg"


class PublishedRule:
    """GitLab's rule, with a first size and no least one."""

    def __init__(self) -> None:
        self.size = _FIRST
        self._efficiencies: deque[float] = deque(maxlen=20)

    def took(self, items: int, seconds: float) -> None:
        """Multiply the size by what the smoothed efficiency says."""
        self._efficiencies.append(seconds / TARGET)
        smoothed = self._efficiencies[0]
        for each in list(self._efficiencies)[1:]:
            smoothed = 0.4 * each + 0.6 * smoothed
        if not 0.9 <= smoothed <= 0.95:  # noqa: PLR2004  the published bounds
            self.size = max(1, int(self.size * min(0.95 / smoothed, 1.2)))

    def shrink(self, size: int) -> None:
        """Take *size* items."""
        self.size = size


#: What an item costs, in seconds, at a moment of the run.
CURVES: dict[str, Callable[[float], float]] = {
    "0.1 ms an item": lambda _: 0.0001,
    "1 ms an item": lambda _: 0.001,
    "50 ms an item": lambda _: 0.05,
    "1 ms, then 100 ms, then 1 ms": lambda at: 0.1 if 40 <= at < 80 else 0.001,  # noqa: PLR2004  the steps
    "rising from 0.1 ms to 10 ms": lambda at: 0.0001 * 100 ** min(1.0, at / 100),
}
RULES: dict[str, Callable[[], Sizing]] = {
    "fixed, 500": lambda: FixedSizing(500),
    "GitLab's": PublishedRule,
    "Adaptive()": lambda: AdaptiveSizing(Adaptive(target=TARGET), longest=60, first=_FIRST),
}


@dataclass(frozen=True)
class Simulated:
    """Chunks of one rule on one curve: when each began and how long it took, in seconds."""

    chunks: list[tuple[float, float]]

    @property
    def reached_after(self) -> float | None:
        """Seconds until a chunk took about the target; None where none did."""
        return next((at for at, took in self.chunks if _REACHED <= took <= _OVERRUN), None)

    @property
    def overruns(self) -> int:
        """How many chunks took too long."""
        return sum(took > _OVERRUN * TARGET for _, took in self.chunks)

    @property
    def longest(self) -> float:
        """How long the longest took."""
        return max(took for _, took in self.chunks)

    @property
    def overhead(self) -> float:
        """The share of the time that went into transactions and not into items."""
        return len(self.chunks) * _OVERHEAD / sum(took for _, took in self.chunks)


def simulate(sizing: Sizing, cost: Callable[[float], float], *, seed: int = 1) -> Simulated:
    """Work chunks for two minutes of simulated time; items vary by a half."""
    noise = random.Random(seed)
    chunks: list[tuple[float, float]] = []
    at = 0.0
    while at < _ITEMS_SECONDS:
        items = sizing.size
        took = _OVERHEAD + items * cost(at) * noise.uniform(0.75, 1.25)
        chunks.append((at, took))
        sizing.took(items, took)
        at += took
    return Simulated(chunks)


def print_sizes() -> None:
    """Print the table, and draw the picture of the curve with steps."""
    print("\nchunk sizes, aimed at 1 s        rule          reached after  overruns  longest  overhead")
    for curve, cost in CURVES.items():
        for rule, make in RULES.items():
            found = simulate(make(), cost)
            reached = "never" if found.reached_after is None else f"{found.reached_after:.1f} s"
            print(
                f"{curve:32} {rule:12} {reached:>14} {found.overruns:>9} {found.longest:>6.1f} s {found.overhead:>8.1%}"
            )


_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 760, 300, 50, 40
_MOST_SECONDS = 6.0
_COLOURS = {"fixed, 500": "#999999", "GitLab's": "#d97706", "Adaptive()": "#2563eb"}


def draw() -> str:
    """Draw how long the chunks of each rule take on the curve with steps, as SVG."""
    cost = CURVES["1 ms, then 100 ms, then 1 ms"]

    def x(seconds: float) -> float:
        return _LEFT + seconds / _ITEMS_SECONDS * (_WIDTH - _LEFT - 10)

    def y(took: float) -> float:
        return _HEIGHT - _BOTTOM - min(took, _MOST_SECONDS) / _MOST_SECONDS * (_HEIGHT - _BOTTOM - 30)

    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12"'
    title = "seconds a chunk takes; items cost 1 ms, from 40 s to 80 s a hundred times that"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="18">{title}</text>',
    ]
    for seconds in range(int(_MOST_SECONDS) + 1):
        line = f'x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y(seconds):.1f}" y2="{y(seconds):.1f}"'
        parts += [
            f'<line {line} stroke="#e5e5e5"/>',
            f'<text x="{_LEFT - 20}" y="{y(seconds) + 4:.1f}">{seconds}</text>',
        ]
    parts += [f'<text x="{x(at) - 8:.1f}" y="{_HEIGHT - 20}">{at} s</text>' for at in range(0, 121, 20)]
    for number, (rule, make) in enumerate(RULES.items()):
        chunks = simulate(make(), cost).chunks
        points = " ".join(f"{x(at):.1f},{y(took):.1f}" for at, took in chunks)
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{_COLOURS[rule]}" stroke-width="1.5"/>',
            f'<text x="{_WIDTH - 330 + number * 110}" y="{_HEIGHT - 4}" fill="{_COLOURS[rule]}">{rule}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    print_sizes()
    PICTURE.write_text(draw())
