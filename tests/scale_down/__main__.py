"""
Scale a fleet down at random by its reports, and count what that has cost.

    python -m tests.scale_down [--kind celery|rq] [--rule fleet|instance|granted|blind] [--stops 100] [--minutes 15]
                               [--job NAME] [--stock] [--scale-in] [--workers 4] [--seed N] [--json]

Ends with 1 if an item was lost or done twice, a part that must not be cut short was, or a report called a worker free
that was not. The seed decides whom the platform stops, and when; what that hits is up to the processes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from batchkit.grace import working_seconds
from tests.scale_down import ledger
from tests.scale_down.fleet import Fleet
from tests.scale_down.platform import Blind, EachInstance, Granted, Rule, WholeFleet
from tests.scale_down.simulator import Result, Simulation
from tests.scale_down.work import Batchkit, Stock
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

GRACE_SECONDS = 4.0


def main() -> int:
    """Do what the command line says."""
    asked = _arguments()
    seed = asked.seed if asked.seed is not None else int(time.time())
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(PostgresServer()) as postgres,
        closing(RedisServer()) as redis,
    ):
        postgres.start()
        env = {
            "TEST_KIND": asked.kind,
            "TEST_DATABASE": postgres.create_database("fleet"),
            "TEST_BROKER": redis.url(),
            "TEST_GRACE": str(GRACE_SECONDS),
            "TEST_MAX_PROTECT": str(asked.max_protect),
            "BATCHKIT_APP": "tests.scale_down.app:kit",
            "BATCHKIT_RUN_DIR": folder,
        }
        if asked.rule == "granted":
            env["TEST_PLATFORM"] = folder
        result = simulate(asked, env, Path(folder), seed)
    if asked.json:
        print(json.dumps({"seed": seed, "kind": asked.kind, "rule": asked.rule, **asdict(result)}))
    else:
        print(f"seed {seed}: {asked.kind}, rule {asked.rule}")
        for name, value in asdict(result).items():
            print(f"    {name.replace('_', ' ')}: {value}")
    return 0 if result.is_good else 1


def simulate(asked: argparse.Namespace, env: dict[str, str], folder: Path, seed: int) -> Result:
    """Run one simulation."""
    os.environ.update(env)
    app = importlib.import_module("tests.scale_down.app")
    ledger.metadata.create_all(app.engine)
    app.kit.migrate()
    fleet = Fleet(asked.kind, folder=folder, env=env, grace=GRACE_SECONDS)
    chance = random.Random(seed)
    jobs = tuple(job for job in app.JOBS if not asked.job or job.name in asked.job)
    batchkit, stock = Batchkit(app.kit, jobs, chance), Stock(asked.kind, app.app, app.broker, app.kit, app.engine)
    rules: dict[str, Rule] = {
        "blind": Blind(),
        "fleet": WholeFleet(),
        "instance": EachInstance(),
        "granted": Granted(str(folder)),
    }
    simulation = Simulation(
        stock if asked.stock else batchkit,
        app.engine,
        fleet,
        rules[asked.rule],
        workers=asked.workers,
        working=working_seconds(GRACE_SECONDS),
        chance=chance,
    )
    try:
        if asked.scale_in:
            result = simulation.scale_in(minutes=asked.minutes)
        else:
            result = simulation.run(stops=asked.stops, minutes=asked.minutes)
        if result.problems:
            print(fleet.logs(), file=sys.stderr)
        return result
    finally:
        fleet.end()
        app.kit.close()
        app.engine.dispose()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.scale_down")
    parser.add_argument("--kind", choices=("celery", "rq"), default="celery")
    parser.add_argument("--rule", choices=("fleet", "instance", "granted", "blind"), default="instance")
    parser.add_argument("--stops", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--job", action="append")
    parser.add_argument("--max-protect", type=float, default=20)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--stock", action="store_true", help="stock tasks and the stock adapter's reports")
    parser.add_argument("--scale-in", action="store_true", help="come down to one worker, and tell how long it took")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
