"""The questions that are asked of the simulation, each with the figures that answer it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal, TypeAlias

from batchkit.sizing import Adaptive
from benchmarks.fleet.fleet import Fleet, Instance, Sample, Setting, fleet
from benchmarks.fleet.kernel import Steps
from benchmarks.fleet.working import Job

#: A line of a table, by the names of its columns.
Row: TypeAlias = dict[str, object]

#: When a fleet has started, and its work is going on.
WARM_SECONDS = 40.0
#: Sums of seconds are not exact.
_NEARLY = 0.999
_KINDS = ("checkpoints", "claims", "releases", "wake-ups", "messages", "looks", "sweeps", "attendance", "renewals")
_MANY = Setting(workers=1000, partitions=1200, items=10**10)
_DEPLOYED = Job(item_seconds=0.02, chunk_size=Adaptive(target=5.0))
_QUEUES: tuple[Literal["messages", "polling"], ...] = ("messages", "polling")


def statements() -> list[Row]:
    """Count statements per second, by the number of workers and the length of chunks."""
    wanted: list[tuple[Literal["messages", "polling"], int, int]]
    wanted = [("messages", workers, seconds) for workers in (10, 100) for seconds in (1, 10)]
    wanted += [("polling", 100, 10), ("messages", 1000, 10)]
    found = []
    for queue, workers, seconds in wanted:
        setting = replace(
            _MANY,
            queue=queue,
            workers=workers,
            partitions=int(1.2 * workers),
            job=Job(item_seconds=0.02, chunk_size=seconds * 50),
        )
        found.append(_steady(setting, label=f"{workers:,} workers, {queue}, {seconds} s"))
        print(found[-1], flush=True)
    return found


def _steady(setting: Setting, *, label: str) -> Row:
    with fleet(setting) as made:
        made.start()
        made.run(until=40)
        before, spent = Counter(made.database.counts), made.database.processors.spent
        made.run(until=100)
        made.check()
        per_second = {kind: (made.database.counts[kind] - before[kind]) / 60 for kind in (*_KINDS, "user")}
        busy = (made.database.processors.spent - spent) / 60
    ours = sum(per_second[kind] for kind in _KINDS)
    return {"fleet": label, "all": ours, **{kind: per_second[kind] for kind in _KINDS}, "cores": busy}


def waste() -> list[Row]:
    """Weigh what deploys and kills undo, by the length of chunks and the grace."""
    found: list[Row] = []
    for seconds in (1, 15, 30, 60):
        row: Row = {"chunk s": seconds}
        for grace in (10.0, 30.0):
            row[f"deploy, {grace:g} s"] = _undone(seconds, grace, Fleet.deploy)
        row["kill"] = _undone(seconds, 30.0, _kill_all)
        found.append(row)
    return found


def _undone(seconds: int, grace: float, happens: Callable[[Fleet], None]) -> float:
    """Give the seconds of work that are undone by what *happens*, per worker."""
    setting = Setting(
        workers=24, partitions=28, items=10**9, grace=grace, job=Job(item_seconds=0.1, chunk_size=seconds * 10)
    )
    with fleet(setting) as made:
        made.start()
        made.run(until=WARM_SECONDS + seconds)
        happens(made)
        made.run(until=WARM_SECONDS + seconds + 70)
        made.check()
        return made.tally.wasted / setting.workers


def _kill_all(made: Fleet) -> None:
    for instance in list(made.instances):
        made.kill(instance)


def takeovers() -> list[Row]:
    """Time how long a partition lies when its worker is stopped or killed, where others are idle."""
    found: list[Row] = []
    for queue in _QUEUES:
        for lease in (15.0, 60.0):
            setting = Setting(
                workers=48,
                partitions=40,
                items=10**9,
                queue=queue,
                job=Job(item_seconds=0.05, chunk_size=40, lease=lease, slice_time=600),
                sweeps_apart=0.2,
            )
            with fleet(setting) as made:
                made.start()
                made.run(until=30)
                made.simulation.begin(_stop_and_kill(made, every=10))
                made.run(until=30 + 10 * 24 + lease + 30)
                made.check()
                for how in ("stopped", "killed"):
                    times = sorted(made.tally.takeovers[how])
                    still = sum(left == how for left, _ in made.tally.left.values())
                    found.append({"queue": queue, "lease": lease, "after": how, **_spread(times), "never": still})
    return found


def _stop_and_kill(made: Fleet, *, every: float) -> Steps[None]:
    for number in range(24):
        instance: Instance = made.around.noise.choice(made.instances)
        if number % 2:
            made.kill(instance)
        else:
            made.stop(instance)
            made.replace(instance)
        yield every


def slow(slowness: float) -> list[Row]:
    """Make the database so many times slower for five minutes."""
    with fleet(replace(_MANY, job=_DEPLOYED)) as made:
        made.start()
        made.run(until=WARM_SECONDS)
        made.database.processors.slow_down(slowness)
        made.run(until=WARM_SECONDS + 300)
        made.database.processors.slow_down(1.0)
        made.run(until=WARM_SECONDS + 300 + 90)
        made.check()
        return [*_by_time(made.samples, every=5), _summary(made)]


def deploy(queue: Literal["messages", "polling"], runs: int) -> list[Row]:
    """Deploy all workers at once."""
    setting = replace(_MANY, queue=queue, runs=runs, partitions=1200 if runs == 1 else 200, job=_DEPLOYED)
    with fleet(setting) as made:
        made.start()
        made.run(until=WARM_SECONDS)
        made.deploy()
        made.run(until=WARM_SECONDS + 60)
        made.check()
        return [*_by_time([each for each in made.samples if each.at > WARM_SECONDS - 10], every=1), _summary(made)]


def full() -> list[Row]:
    """Work a thousand million items, with a deploy each hour and twenty kills of instances in it."""
    setting = Setting(
        workers=1000,
        partitions=2000,
        items=1_000_000_000,
        job=Job(item_seconds=0.008, chunk_size=Adaptive(target=10.0), slice_time=600),
        deploy_every=3600,
        kills_per_hour=20,
        sweeps_apart=5.0,
    )
    with fleet(setting) as made:
        made.sample_every = 10
        made.start()
        made.run(until=10**6)
        made.check()
        left = made.tally.unfinished(made.database.store, made.runs)
        row = _summary(made) | {"hours": made.simulation.now / 3600, "unfinished": left}
        row |= {f"take-over {how}": _spread(sorted(times)) for how, times in made.tally.takeovers.items()}
        return [*_by_time(made.samples, every=60), row]


def _by_time(samples: Iterable[Sample], *, every: float) -> list[Row]:
    seen = -every
    rows: list[Row] = []
    for each in samples:
        if each.at < seen + every * _NEARLY:
            continue
        seen = each.at
        ours = {kind: each.counts[kind] for kind in _KINDS if each.counts[kind]}
        found: Row = {"at": round(each.at, 3), "items": each.items, "working": each.working}
        rows.append({**found, "cores": round(each.processors, 3), "waiting": each.held, **ours})
    return rows


def _summary(made: Fleet) -> Row:
    return {
        "summary": True,
        "items": made.tally.items,
        "wasted share": made.tally.waste,
        "redone": made.tally.redone,
        "endings": dict(made.tally.endings),
        "calls": dict(made.database.calls),
        "statements": dict(made.database.counts),
        "lock timeouts": made.database.lock_timeouts,
        "longest lock wait": made.database.longest_lock_wait,
        "states": {state.value: count for state, count in made.states().items()},
        "kills": made.kills,
        "deploys": made.deploys,
    }


def _spread(times: list[float]) -> dict[str, float]:
    if not times:
        return {"n": 0}
    return {
        "n": len(times),
        "median": statistics.median(times),
        "p95": times[int(len(times) * 0.95)],
        "most": times[-1],
    }
