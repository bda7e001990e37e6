"""Whether two workers are twice as fast as one: chunks that use the processor, in one partition and in two."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import environment
from benchmarks.peers.roster import Peer, chosen
from benchmarks.peers.rows import BURN, Work
from benchmarks.peers.scene import servers, warm
from benchmarks.peers.speed import machine, print_versions
from benchmarks.tables import print_table

_CHUNK_SECONDS = 0.02
_SIZE = 50
_ROOT = Path(__file__).resolve().parents[2]
_WANTED = 1.8
_SLOW_WORK = 20_000_000
_PROGRAM = """
import os, sys, time
os.environ["BENCH_BURN"] = sys.argv[1]
from benchmarks.peers.rows import burn
began = time.perf_counter()
burn()
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Sped:
    """One round: how many times as fast two bare processes are, two workers from first to last chunk, and in all."""

    bare: float
    between: float
    total: float


def print_cores(*, chunks: int, rounds: int) -> None:
    """Print how many times as fast two workers are."""
    turns = _turns()
    work = Work(chunks, _SIZE)
    one, two = _pair()
    found: list[Sped] = []
    with servers(environment.make()) as at:
        cost = f"{_CHUNK_SECONDS * 1000:.0f} ms of Python"
        print(f"\nTwo workers against one, {chunks} chunks of {cost} ({machine(at)})\n")
        print_versions(at, [one])
        env = {BURN: str(turns)}
        with warm(at, one, env=env) as alone, warm(at, two, env=env) as together:
            for each in (alone, together):
                each.run(Work(10, _SIZE))
            for _ in range(rounds):
                first, second = alone.run(work), together.run(work)
                found.append(
                    Sped(_bare(turns * chunks // 4), first.between / second.between, first.total / second.total)
                )
    print()
    columns = ("two of", "times as fast", "from", "to", "wanted")
    lines = (
        ("bare processes: the most there is", [each.bare for each in found], ""),
        ("workers, from the first chunk to the last", [each.between for each in found], f"{_WANTED}"),
        ("workers, from the start", [each.total for each in found], ""),
    )
    print_table(columns, [_line(*line) for line in lines])


def _line(label: str, values: Sequence[float], wanted: str) -> list[str]:
    return [label, f"{statistics.median(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}", wanted]


def _pair() -> tuple[Peer, Peer]:
    (one,) = chosen("built-in queue")
    (two,) = chosen("2 partitions")
    return one, two


def _turns() -> int:
    """Give how many turns of the loop a chunk takes, by the best of some tries."""
    return int(_SLOW_WORK * _CHUNK_SECONDS / min(_burn(_SLOW_WORK) for _ in range(3)))


def _burn(turns: int) -> float:
    return float(subprocess.check_output([sys.executable, "-c", _PROGRAM, str(turns)], cwd=_ROOT))


def _bare(turns: int) -> float:
    """Give how many times as fast two processes are that have nothing to do with each other."""
    alone = _burn(turns)
    command = [sys.executable, "-c", _PROGRAM, str(turns)]
    both = [subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    return 2 * alone / max(float(each.communicate()[0]) for each in both)
