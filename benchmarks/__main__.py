"""Print what batchkit costs, and what others do: `python3 dev.py bench [SECTION...] [--quick]`."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks import growth, hooks, queues, safety, scale, stealing, wear
from benchmarks.distance import away
from benchmarks.peers import roster
from benchmarks.peers.cores import print_cores
from benchmarks.peers.kills import print_kills
from benchmarks.peers.rows import Work
from benchmarks.peers.speed import print_peers
from benchmarks.sizes import print_sizes
from benchmarks.tables import print_table
from tests.servers.postgres import PostgresServer

_WANTED = {
    ("postgresql", 500): 1.05,
    ("postgresql", 50): 1.15,
    ("postgresql", 5): 1.20,
    ("postgresql, 1 ms away", 500): 0.75,
    ("postgresql, 1 ms away", 50): 0.75,
    ("postgresql, 1 ms away", 5): 0.75,
    ("sqlite", 500): 1.05,
}
#: What is added to each round trip to the database that is away, in seconds.
_DISTANCE = 0.001
#: They take many minutes by their nature.
_NEVER_QUICK = {"kills", "scale", "wear"}


@dataclass(frozen=True)
class Options:
    """What the command line says of all sections."""

    quick: bool
    rounds: int | None
    only: str | None

    def rounds_or(self, usual: int) -> int:
        """Give how often to measure."""
        return self.rounds or (1 if self.quick else usual)


def main() -> int:
    """Measure what was asked for, each section on servers of its own; one that fails leaves the others to go on."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all without any")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of the chunks, one round, no large runs, and no kills unless they are asked for",
    )
    parser.add_argument("--rounds", type=int, help="how often peers and cores measure")
    parser.add_argument("--only", help="of peers and kills only those with one of these words in them: celery,rq")
    given = parser.parse_args()
    unknown = [each for each in given.sections if each not in SECTIONS]
    if unknown:
        parser.error(f"there is no section {unknown[0]}; there are {', '.join(SECTIONS)}")
    packages = ("sqlalchemy", "psycopg")
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}")
    usual = [each for each in SECTIONS if not (given.quick and each in _NEVER_QUICK)]
    failed = [each for each in given.sections or usual if not _measured(each, given)]
    if failed:
        print(f"\nnot measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _measured(section: str, given: argparse.Namespace) -> bool:
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"\n# {section} (load before it: {load})", flush=True)
    try:
        SECTIONS[section](Options(given.quick, given.rounds, given.only))
    except Exception:  # noqa: BLE001  whatever it is, the other sections have nothing to do with it
        traceback.print_exc()
        return False
    return True


@contextmanager
def _databases() -> Iterator[list[str]]:
    """Give the URLs of a PostgreSQL of our own and of an SQLite."""
    with tempfile.TemporaryDirectory() as folder, closing(PostgresServer(as_in_production=True)) as server:
        server.start()
        yield [server.create_database("bench"), f"sqlite:///{Path(folder) / 'bench.db'}"]


def print_safety(options: Options) -> None:
    """Print the cost of safety, also where the database is a millisecond away."""
    lines = []
    with _databases() as (postgres, sqlite), away(postgres, seconds=_DISTANCE) as far:
        for name, url in (("postgresql", postgres), ("postgresql, 1 ms away", far), ("sqlite", sqlite)):
            for chunk_size in (500, 50, 5):
                found = safety.measure(url, chunk_size=chunk_size, chunks=200 if options.quick else 1000)
                wanted = _WANTED.get((name, chunk_size))
                numbers = (f"{found.loop:.2f}", f"{found.batchkit:.2f}", f"{found.ratio:.2f}")
                lines.append((name, str(chunk_size), *numbers, "" if wanted is None else f"{wanted:.2f}"))
    print()
    print_table(("database", "rows to a chunk", "loop, ms", "batchkit, ms", "ratio", "wanted"), lines)


def print_growth(options: Options) -> None:
    """Print whether large runs cost more per chunk, or more memory."""
    sizes = [(20_000, 500), (200_000, 500)] if options.quick else growth.RUNS
    lines = []
    with _databases() as urls:
        for url in urls:
            for items, chunk_size in sizes:
                growth.prepare(url, items=items)
                found = growth.measure(url, items=items, chunk_size=chunk_size)
                name = url.partition(":")[0].partition("+")[0]
                numbers = (f"{found.milliseconds:.2f}", f"{found.seconds:.1f} s", f"{found.megabytes:.1f}")
                lines.append((name, f"{items:,}", str(chunk_size), *numbers))
    print()
    print_table(("database", "rows", "rows to a chunk", "ms per chunk at the end", "whole run", "peak MB"), lines)


def print_hooks(options: Options) -> None:
    """Print what busy hooks cost, whatever they do."""
    with closing(PostgresServer()) as server:
        server.start()
        took = hooks.measure(
            server.create_database("hooks"), chunks=300 if options.quick else 4000, rounds=3 if options.quick else 7
        )
    none = took["no hook"]
    print("\nbusy hook   ms per chunk of 50   ratio to none   ms of CPU   ratio to none")
    for way in hooks.WAYS:
        taken = took[way]
        print(
            f"{way:<12}{taken.clock:>18.3f}{taken.clock / none.clock:>16.3f}"
            f"{taken.cpu:>12.3f}{taken.cpu / none.cpu:>16.3f}"
        )


def print_queues(options: Options) -> None:
    """Print what a queue costs."""
    print(
        "\nqueue     ms per chunk of 10: worker  inline  ratio   first chunk  after SIGTERM  after SIGKILL (lease 5 s)"
    )
    for queue in ("celery", "rq"):
        found = queues.measure(queue, chunks=100 if options.quick else 1000)
        ratio = found.worker_chunk / found.inline_chunk
        print(
            f"{queue:<10}{found.worker_chunk:>26.2f}{found.inline_chunk:>8.2f}{ratio:>7.2f}"
            f"{found.first_chunk:>11.3f} s{found.after_sigterm:>13.2f} s{found.after_sigkill:>13.2f} s"
        )


def print_import(_: Options) -> None:
    """Print how long the import takes."""
    program = "import time; t = time.perf_counter(); import batchkit; print(time.perf_counter() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(11)]
    print(f"\nimport batchkit: {statistics.median(times) * 1000:.1f} ms (wanted: under 150)")


def print_stealing(options: Options) -> None:
    """Print how soon four workers end a run of which one has nearly everything."""
    with closing(PostgresServer()) as server:
        server.start()
        stealing.print_measured(server.create_database("stealing"), seconds=12.0 if options.quick else 60.0)


def print_scale(_: Options) -> None:
    """Print what workers and people do in a store in which much is going on."""
    with _databases() as (postgres, sqlite):
        scale.print_scale(postgres, failures=10_000_000)
        scale.print_scale(sqlite, failures=300_000)


def print_wear(_: Options) -> None:
    """Print what a million checkpoints do to the table."""
    with _databases() as (postgres, _sqlite):
        wear.print_wear(postgres, checkpoints=1_000_000)


def _print_peers(options: Options) -> None:
    works = [Work(200, 50)] if options.quick else [Work(200, 500), Work(600, 50)]
    print_peers(roster.chosen(options.only), works=works, rounds=options.rounds_or(2))


def _print_kills(options: Options) -> None:
    print_kills(roster.chosen(options.only))


def _print_cores(options: Options) -> None:
    print_cores(chunks=50 if options.quick else 300, rounds=options.rounds_or(5))


SECTIONS: dict[str, Callable[[Options], None]] = {
    "safety": print_safety,
    "growth": print_growth,
    "hooks": print_hooks,
    "queues": print_queues,
    "stealing": print_stealing,
    "scale": print_scale,
    "wear": print_wear,
    "sizes": lambda _: print_sizes(),
    "import": print_import,
    "peers": _print_peers,
    "kills": _print_kills,
    "cores": _print_cores,
}


if __name__ == "__main__":
    sys.exit(main())
