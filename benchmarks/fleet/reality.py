"""A small fleet of real workers on a real PostgreSQL, and the simulation of the same: what each sends in a minute."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass

from batchkit.store import Store
from benchmarks.fleet.fleet import Setting, fleet
from benchmarks.fleet.measuring import Meter, counted_database, counting_server
from benchmarks.fleet.scenarios import Row
from benchmarks.fleet.working import Job
from tests.servers.redis import RedisServer
from tests.waiting import eventually

_WORKERS = 8
_SETTLE_SECONDS, _SECONDS = 15.0, 60.0
#: The statement that each call sends once, and no other does.
_SIGNS = {
    "checkpoint": r"^UPDATE batchkit_partition SET cursor=",
    "claim": r"^UPDATE batchkit_run SET turn_at=",
    "release": r"^SELECT count\(CASE WHEN .*kind = .*FROM batchkit_partition\s+WHERE batchkit_partition.run_id = \S+$",
    "claimable": r"^SELECT anon_1.run_id, anon_1.number",
    "sweep": r"^SELECT batchkit_run.id\s+FROM batchkit_run\s+WHERE batchkit_run.state = .*NOT \(EXISTS",
    "send_one": r"^UPDATE batchkit_partition SET resend_at=\(clock.*patience_seconds=",
    "renew": r"^UPDATE batchkit_partition SET lease_expires_at=",
    "attend": r"^UPDATE batchkit_worker SET seen_at=",
}


@dataclass(frozen=True)
class _Fleet:
    queue: str
    partitions: int
    command: list[str]


_FLEETS = [
    _Fleet("polling", 6, ["batchkit", "-A", "benchmarks.fleet.app:kit", "work", "--processes", str(_WORKERS)]),
    _Fleet(
        "messages",
        12,
        ["celery", "-A", "benchmarks.fleet.app:celery", "worker", "-c", str(_WORKERS), "--without-gossip"],
    ),
]


def reality() -> list[Row]:
    """Count what both send in a minute."""
    found: list[Row] = []
    with counting_server() as server:
        for each in _FLEETS:
            url = counted_database(server, f"real_{each.queue}")
            real = _real(each, url, Meter(server, f"real_{each.queue}"))
            simulated = _simulated(each)
            found += [
                {"queue": each.queue, "call": call, "real": real[call], "simulated": simulated[call]}
                for call in (*_SIGNS, "all statements")
                if real[call] or simulated[call]
            ]
    return found


def _real(wanted: _Fleet, url: str, meter: Meter) -> Counter[str]:
    with ExitStack() as stack:
        env = {**os.environ, "FLEET_DATABASE": url}
        if wanted.queue == "messages":
            redis = stack.enter_context(closing(RedisServer()))
            env["FLEET_BROKER"] = redis.url()
        start = f"app.kit.migrate(); app.work.using(partitions={wanted.partitions}).start()"
        subprocess.run([sys.executable, "-c", f"from benchmarks.fleet import app; {start}"], env=env, check=True)
        workers = subprocess.Popen([sys.executable, "-m", *wanted.command], env=env, stderr=subprocess.DEVNULL)
        try:
            store = stack.enter_context(closing(Store(url)))
            busy = min(_WORKERS, wanted.partitions)
            (run,) = store.records.newest(limit=1)
            eventually(lambda: store.records.load(run.id).progress.workers >= busy, within=60, message="not all work")
            time.sleep(_SETTLE_SECONDS)
            before, began = Counter(meter.statements()), time.monotonic()
            time.sleep(_SECONDS)
            sent = Counter(meter.statements()) - before
            minutes = (time.monotonic() - began) / 60
        finally:
            workers.send_signal(signal.SIGTERM)
            workers.wait(timeout=60)
    if os.environ.get("FLEET_SHOW"):
        for query, count in sent.most_common():
            print(count, " ".join(query.split())[:300])
    found = Counter({"all statements": round(sum(sent.values()) / minutes)})
    for call, sign in _SIGNS.items():
        matching = (count for query, count in sent.items() if re.search(sign, " ".join(query.split())))
        found[call] = round(sum(matching) / minutes)
    return found


def _simulated(wanted: _Fleet) -> Counter[str]:
    from benchmarks.fleet import app  # noqa: PLC0415  it is made for an environment

    setting = Setting(
        workers=_WORKERS,
        per_instance=_WORKERS,
        queue="messages" if wanted.queue == "messages" else "polling",
        partitions=wanted.partitions,
        items=10**9,
        job=Job(
            item_seconds=app.ITEM_SECONDS,
            chunk_size=app.CHUNK_SIZE,
            lease=app.LEASE_SECONDS,
            slice_time=app.SLICE_SECONDS,
            varies=0.0,
            rows=0.0,
        ),
        sweeps_apart=0.0,
    )
    with fleet(setting) as made:
        made.start()
        made.run(until=15 + _SETTLE_SECONDS)
        calls, counts = Counter(made.database.calls), made.ours
        made.run(until=made.simulation.now + _SECONDS)
        found = Counter(made.database.calls) - calls
        found["all statements"] = made.ours - counts
        found["sweep"] = found["sweep_polling"] + found["sweep_messages"]
    return found
