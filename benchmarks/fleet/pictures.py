"""The pictures of docs/scale.md, drawn of what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet.scenarios import WARM_SECONDS, Row

DOCS = Path(__file__).parents[2] / "docs"

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 300, 64, 14, 34, 56
_COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed")
_STEPS = 6


@dataclass(frozen=True)
class Picture:
    """Lines over time."""

    title: str
    below: str
    lines: Mapping[str, Sequence[tuple[float, float]]]

    def draw(self) -> str:
        """Draw it as SVG."""
        points = [point for line in self.lines.values() for point in line]
        (first, last), most = (min(x for x, _ in points), max(x for x, _ in points)), max(y for _, y in points)
        high = _round_up(most)

        def x(value: float) -> float:
            return _LEFT + (value - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

        def y(value: float) -> float:
            return _HEIGHT - _BOTTOM - value / high * (_HEIGHT - _TOP - _BOTTOM)

        box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            f'<text x="{_LEFT}" y="20">{self.title}</text>',
        ]
        for step in range(5):
            value = high * step / 4
            across = f'x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"'
            parts += [
                f'<line {across} stroke="#e5e5e5"/>',
                f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,.4g}</text>',
            ]
        apart = _round_up((last - first) / _STEPS)
        for step in range(math.ceil(first / apart), math.floor(last / apart) + 1):
            value = step * apart
            place = f'x="{x(value):.1f}" y="{_HEIGHT - _BOTTOM + 18}"'
            parts.append(f'<text {place} text-anchor="middle">{value:.4g}</text>')
        parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">{self.below}</text>')
        for number, (name, line) in enumerate(self.lines.items()):
            drawn, colour = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in line), _COLOURS[number]
            parts += [
                f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.6"/>',
                f'<text x="{_LEFT + number * 135}" y="{_HEIGHT - 8}" fill="{colour}">{name}</text>',
            ]
        return "\n".join([*parts, "</svg>", ""])


def draw_all(found: Mapping[str, Sequence[Row]]) -> None:
    """Draw what there is."""
    _draw(
        "scale-deploy",
        "workers at work on one run, of 1,000 that are all deployed at once",
        "seconds after SIGTERM",
        {
            "messages": _line(found.get("deploy-messages-1", []), "working"),
            "polling": _line(found.get("deploy-polling-1", []), "working"),
            # What was found first, and mended: kept to be compared with.
            "polling, one of 20": _line(found.get("deploy-polling-1-of-20", []), "working"),
        },
    )
    _draw(
        "scale-slow",
        "items per second of 1,000 workers, on a database that is slower from 0 to 300 s",
        "seconds",
        {f"{times} times slower": _line(found.get(f"slow-{times}", []), "items") for times in (10, 100)},
    )
    hours = [(at / 3600, items / 10) for at, items in _line(found.get("full", []), "items", begins=0.0)]
    _draw(
        "scale-run",
        "items per second of 1,000 workers on 1,000,000,000 items: two deploys, and a kill every three minutes",
        "hours",
        {"items per second": hours},
    )


def _draw(name: str, title: str, below: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    known = {line: points for line, points in lines.items() if points}
    if known:
        (DOCS / f"{name}.svg").write_text(Picture(title, below, known).draw())


def _line(rows: Sequence[Row], what: str, *, begins: float = WARM_SECONDS) -> list[tuple[float, float]]:
    return [(_number(row["at"]) - begins, _number(row[what])) for row in rows if "at" in row]


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        message = f"{value!r} is no number"
        raise TypeError(message)
    return float(value)


def _round_up(value: float) -> float:
    unit = 10 ** math.floor(math.log10(value or 1))
    return float(next(unit * step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if unit * step >= value))
