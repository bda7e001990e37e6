"""
Simulate a fleet and print what was found: `python3 dev.py simulate [QUESTIONS...]`.

What is found is kept beside this, and the pictures of docs/scale.md are drawn of it. `full`, which works a thousand
million items, takes ten minutes of a processor, all others together as long; `reality` counts what a small fleet of
real workers sends to a real PostgreSQL.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.fleet import scenarios
from benchmarks.fleet.measuring import measure_all
from benchmarks.fleet.pictures import draw_all
from benchmarks.fleet.reality import reality
from benchmarks.fleet.scenarios import Row

RESULTS = Path(__file__).with_name("results.json")
QUESTIONS: dict[str, Callable[[], list[Row]]] = {
    "statements": scenarios.statements,
    "waste": scenarios.waste,
    "takeovers": scenarios.takeovers,
    "slow-10": partial(scenarios.slow, 10.0),
    "slow-100": partial(scenarios.slow, 100.0),
    "deploy-messages-1": partial(scenarios.deploy, "messages", 1),
    "deploy-messages-20": partial(scenarios.deploy, "messages", 20),
    "deploy-polling-1": partial(scenarios.deploy, "polling", 1),
    "deploy-polling-20": partial(scenarios.deploy, "polling", 20),
    "full": scenarios.full,
    "reality": reality,
}


def main() -> None:
    """Answer the questions."""
    parser = argparse.ArgumentParser(prog="benchmarks.fleet", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"{', '.join(QUESTIONS)}; by default all")
    parser.add_argument("--measure", action="store_true", help="measure the prices of statements anew, before that")
    parser.add_argument("--print", action="store_true", help="print and draw what was found before, and no more")
    given = parser.parse_args()
    for name in given.questions:
        if name not in QUESTIONS:
            parser.error(f"there is no question {name}; there are {', '.join(QUESTIONS)}")
    if given.measure:
        measure_all()
    for name in given.questions or QUESTIONS:
        if not given.print:
            began = time.monotonic()
            _keep(name, QUESTIONS[name]())
            print(f"\n{name}, {time.monotonic() - began:.0f} s")
        _print(_kept().get(name, []))
    draw_all(_kept())


def _print(rows: Sequence[Row]) -> None:
    """Print rows with the same columns as a table; those by time are for the pictures."""
    for row in rows:
        if "at" not in row:
            print("  ".join(f"{name} {_short(value)}" for name, value in row.items()))


def _short(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _kept() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def _keep(name: str, answer: list[Row]) -> None:
    RESULTS.write_text(json.dumps({**_kept(), name: answer}, indent=1) + "\n")


if __name__ == "__main__":
    main()
