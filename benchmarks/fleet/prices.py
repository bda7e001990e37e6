"""What each call of the store costs a PostgreSQL server: its processor time, and how many statements it sends."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

#: What was measured last, by `python -m benchmarks.fleet --measure`.
MEASURED = Path(__file__).with_name("prices.json")


@dataclass(frozen=True, slots=True)
class Price:
    """Seconds of the server's processors, and statements, each of which is a round trip."""

    cpu: float
    statements: float

    def mixed(self, other: Price, share: float) -> Price:
        """Give what lies between two prices."""
        return Price(
            self.cpu + share * (other.cpu - self.cpu), self.statements + share * (other.statements - self.statements)
        )


@dataclass(frozen=True)
class Prices:
    """The prices of one database: by call, where so many partitions wait or are worked in so many runs."""

    by_call: Mapping[str, Price]

    def of(self, call: str) -> Price:
        """Give the price of one call."""
        return self.by_call[call]


@dataclass(frozen=True)
class Measured:
    """Prices that were measured with one number of runs and of partitions in each."""

    runs: int
    partitions: int
    workers: int
    by_call: dict[str, Price]


def write(measured: list[Measured]) -> None:
    """Keep what was measured."""
    MEASURED.write_text(json.dumps([asdict(each) for each in measured], indent=1) + "\n")


def read() -> list[Measured]:
    """Give what was measured last."""
    return [
        Measured(**{**each, "by_call": {call: Price(**price) for call, price in each["by_call"].items()}})
        for each in json.loads(MEASURED.read_text())
    ]


def prices_for(*, runs: int, partitions: int, measured: list[Measured] | None = None) -> Prices:
    """Give the prices with so many runs of so many partitions each, by what was measured with about as many."""
    known = measured or read()
    if runs > 1:
        nearest = min(known, key=lambda each: (abs(each.runs - runs), abs(each.partitions - partitions)))
        return _with_sending(nearest.by_call)
    alike = sorted((each for each in known if each.runs == 1), key=lambda each: each.partitions)
    sizes = [each.partitions for each in alike]
    # What scans grows with the number of rows: between two sizes in a straight line, and behind the last as before it.
    place = min(max(1, bisect_left(sizes, partitions)), len(sizes) - 1)
    below, above = alike[place - 1], alike[place]
    share = max(0.0, (partitions - below.partitions) / (above.partitions - below.partitions))
    return _with_sending({call: below.by_call[call].mixed(above.by_call[call], share) for call in below.by_call})


def _with_sending(by_call: Mapping[str, Price]) -> Prices:
    """Tell apart what it costs to look whether wake-ups are missing, and to send one."""
    both, look = by_call["share_one"], by_call["share"]
    sending = Price(max(0.0, both.cpu - look.cpu), both.statements - look.statements)
    # A mark at a suspect place is the lock of the run, a read and an UPDATE: about what a refused claim costs.
    return Prices({**by_call, "send_one": sending, "mark": by_call["claim_refused"]})
