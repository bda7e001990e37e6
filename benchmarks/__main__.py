"""Print what batchkit costs: `python3 dev.py bench [--quick]`."""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from benchmarks import growth, hooks, queues, safety, scale, wear
from benchmarks.sizes import print_sizes
from tests.servers.postgres import PostgresServer

_WANTED = {
    ("postgresql", 500): 1.07,
    ("postgresql", 50): 1.25,
    ("postgresql", 5): 1.30,
    ("sqlite", 500): 1.05,
}


def main() -> None:
    """Measure everything, on a PostgreSQL of our own and on SQLite."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the chunks, and no large runs")
    parser.add_argument("--scale", action="store_true", help="instead: a store in which much is going on; 20 minutes")
    arguments = parser.parse_args()
    quick = arguments.quick
    packages = ("sqlalchemy", "psycopg")
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}")
    with tempfile.TemporaryDirectory() as folder, closing(PostgresServer()) as server:
        server.start()
        if arguments.scale:
            scale.print_scale(server.create_database("scale"), failures=10_000_000)
            scale.print_scale(f"sqlite:///{Path(folder) / 'scale.db'}", failures=300_000)
            wear.print_wear(server.create_database("wear"), checkpoints=1_000_000)
            return
        urls = [server.create_database("bench"), f"sqlite:///{Path(folder) / 'bench.db'}"]
        print_safety(urls, chunks=200 if quick else 1000)
        if not quick:
            print_growth(urls)
        print_hooks(server.create_database("hooks"), chunks=300 if quick else 3000)
    print_queues(chunks=100 if quick else 1000)
    print_sizes()
    print_import()


def print_queues(*, chunks: int) -> None:
    """Print what a queue costs."""
    print(
        "\nqueue     ms per chunk of 10: worker  inline  ratio   first chunk  after SIGTERM  after SIGKILL (lease 5 s)"
    )
    for queue in ("celery", "rq"):
        found = queues.measure(queue, chunks=chunks)
        ratio = found.worker_chunk / found.inline_chunk
        print(
            f"{queue:<10}{found.worker_chunk:>26.2f}{found.inline_chunk:>8.2f}{ratio:>7.2f}"
            f"{found.first_chunk:>11.3f} s{found.after_sigterm:>13.2f} s{found.after_sigkill:>13.2f} s"
        )


def print_hooks(url: str, *, chunks: int) -> None:
    """Print what busy hooks cost, whatever they do."""
    took = hooks.measure(url, chunks=chunks, rounds=3)
    print("\nbusy hook   ms per chunk of 50   ratio to none")
    for way in hooks.WAYS:
        print(f"{way:<12}{took[way]:>18.2f}{took[way] / took['no hook']:>16.3f}")


def print_safety(urls: list[str], *, chunks: int) -> None:
    """Print the cost of safety."""
    print("\nms per chunk (medians of chunks in turn)       loop  batchkit  ratio  wanted")
    for url in urls:
        for chunk_size in (500, 50, 5):
            found = safety.measure(url, chunk_size=chunk_size, chunks=chunks)
            wanted = _WANTED.get((found.database, chunk_size))
            label = f"{found.database}, {chunk_size} rows, {found.chunks} chunks"
            limit = "" if wanted is None else f"{wanted:.2f}"
            print(f"{label:45} {found.loop:6.2f} {found.batchkit:9.2f} {found.ratio:6.2f}  {limit:>6}")


def print_growth(urls: list[str]) -> None:
    """Print whether large runs cost more per chunk."""
    print("\nruns of 500 rows a chunk                    ms per chunk  peak MB")
    for url in urls:
        for items in (20_000, 200_000, 2_000_000):
            growth.prepare(url, items=items)
            found = growth.measure(url, items=items)
            label = f"{url.partition(':')[0].partition('+')[0]}, {items:,} items"
            print(f"{label:45} {found.milliseconds:10.2f} {found.megabytes:8.1f}")


def print_import() -> None:
    """Print how long the import takes."""
    program = "import time; t = time.perf_counter(); import batchkit; print(time.perf_counter() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(11)]
    print(f"\nimport batchkit: {statistics.median(times) * 1000:.1f} ms (wanted: under 150)")


if __name__ == "__main__":
    main()
