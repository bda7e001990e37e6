"""Whether what workers and people do takes longer the more is going on: each operation at three sizes of the store."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from batchkit.model import Checkpoint, Lease, RunId, WakeUp
from batchkit.states import FINAL
from batchkit.store import HeldConnection, Store
from batchkit.sweep import sweep
from batchkit.waking import WINDOW
from tests.crowd import JOBS, Crowd, analyze, fill

_MONTH_SECONDS = 30 * 86_400.0
_JOBS = [f"job-{number}" for number in range(JOBS)]
#: One run of so many partitions is there at each size.
_WIDE = Crowd("wi", unfinished=1, partitions=10_000)
_PAGE = 100
_FEWEST = 5


@dataclass(frozen=True)
class Size:
    """How much is going on."""

    name: str
    crowd: Crowd


def sizes(*, failures: int) -> tuple[Size, ...]:
    """Give the sizes, each of which is added to the one before; *failures* are those of all three together."""
    return (
        Size("empty", Crowd("em", unfinished=1, partitions=100, finished=100, failures=100, transitions=200)),
        Size(
            "middle",
            Crowd(
                "mi",
                unfinished=99,
                partitions=100,
                finished=10_000,
                failures=failures // 10,
                transitions=max(failures // 100, 20_000),
            ),
        ),
        Size(
            "full",
            Crowd(
                "fu",
                unfinished=900,
                partitions=100,
                finished=90_000,
                failures=failures - failures // 10,
                transitions=max(failures // 10, 180_000),
            ),
        ),
    )


class _Messages:
    """A queue whose messages are never looked at."""

    crosses_processes = True
    keeps_messages = True

    def wake(self, wake_up: WakeUp) -> None:
        """Do nothing."""


class _Rows(_Messages):
    """A queue without messages."""

    keeps_messages = False


def measure(url: str, *, failures: int, seconds: float = 1.0) -> Iterator[tuple[str, dict[str, float]]]:
    """Give, size by size, what each operation took in ms, the quickest fifth of cases, repeated for *seconds*."""
    store = Store(url)
    try:
        store.schema.migrate()
        fill(store, _WIDE)
        for size in sizes(failures=failures):
            fill(store, size.crowd)
            if size.name == "full":
                yield "full, not counted", _operations(store, size.crowd, seconds=seconds)
            analyze(store)
            yield size.name, _operations(store, size.crowd, seconds=seconds)
    finally:
        store.close()


def _operations(store: Store, crowd: Crowd, *, seconds: float) -> dict[str, float]:
    run_id, wide = RunId(crowd.unfinished_run(0)), RunId(_WIDE.unfinished_run(0))
    many, few = RunId(crowd.finished_run(0)), RunId(crowd.finished_run(20))
    far = store.failures.last_open(many, in_doubt=True) or 0
    steps: dict[str, Callable[[], object]] = {
        "(a round trip)": lambda: _ask(store),
        "look for a partition to claim": lambda: store.leases.claimable(jobs=_JOBS, queues=None),
        "look in a run of 100": lambda: store.leases.claimable_in(run_id, is_due=True, limit=20),
        "look in a run of 10,000": lambda: store.leases.claimable_in(wide, is_due=True, limit=20),
        "share a run of 100": lambda: store.wake_ups.take_shares(run_id, window=WINDOW),
        "share a run of 10,000": lambda: store.wake_ups.take_shares(wide, window=WINDOW),
        "sweep, messages": lambda: sweep(store, _Messages()),
        "sweep, no messages": lambda: sweep(store, _Rows()),
        "list 50 runs": lambda: store.records.newest(limit=50),
        "progress of a run of 100": lambda: store.records.load(run_id),
        "progress of a run of 10,000": lambda: store.records.load(wide),
        "who is busy": store.fleet.busy,
        "backlog": lambda: store.health.backlog(waited=60.0, unswept=60.0),
        "totals": store.totals.by_job,
        "failures, first page of many": lambda: store.failures.page(many, after=0, limit=_PAGE),
        "failures, last page of many": lambda: store.failures.page(many, after=far - 1000, limit=_PAGE),
        "failures, page of few": lambda: store.failures.page(few, after=0, limit=_PAGE),
        "look for a run to purge": lambda: store.purging._find(_MONTH_SECONDS, FINAL, 100, ""),  # noqa: SLF001
    }
    found = {name: _quickest(step, seconds=seconds) for name, step in steps.items()}
    for name, each, numbers in (("100", run_id, range(5, 100)), ("10,000", wide, range(5, 10_000))):
        found.update(_turns(store, each, name, numbers, seconds=seconds))
    return found


def _quickest(step: Callable[[], object], *, seconds: float) -> float:
    times: list[float] = []
    ends = time.perf_counter() + seconds
    step()
    while time.perf_counter() < ends or len(times) < _FEWEST:
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return _milliseconds(times)


def _turns(store: Store, run_id: RunId, name: str, numbers: range, *, seconds: float) -> dict[str, float]:
    """Claim partitions of a run, move each on, and give it back."""
    times: dict[str, list[float]] = {}

    def timed(what: str, step: Callable[[], object]) -> None:
        began = time.perf_counter()
        step()
        times.setdefault(what, []).append(time.perf_counter() - began)

    held = HeldConnection(store.database, run_id)
    ends = time.perf_counter() + seconds * 3
    for number in itertools.cycle(numbers):
        leases: list[Lease] = []

        def claim(number: int = number, leases: list[Lease] = leases) -> None:
            lease = store.leases.claim(run_id, number, worker="bench:1", seconds=60)
            if lease is not None:
                leases.append(lease)

        timed(f"claim, of {name}", claim)
        (lease,) = leases

        def move_on(lease: Lease = lease, leases: list[Lease] = leases) -> None:
            held.begin(idle=60)
            moved, _ = store.leases.checkpoint(held, lease, _checkpoint(lease))
            held.commit()
            leases.append(moved)

        timed(f"checkpoint, of {name}", move_on)
        lease = replace(leases[-1])
        timed(f"renew, of {name}", lambda lease=lease: store.leases.renew(lease))  # type: ignore[misc]
        timed(f"release, of {name}", lambda lease=lease: store.leases.release(lease, reason="done", is_interrupt=False))  # type: ignore[misc]
        if time.perf_counter() > ends:
            break
    held.close()
    return {what: _milliseconds(each) for what, each in times.items()}


def _milliseconds(times: list[float]) -> float:
    # A machine with other work on it makes the others slower, and none of these.
    return statistics.quantiles(times, n=_FEWEST)[0] * 1000


def _checkpoint(lease: Lease) -> Checkpoint:
    return Checkpoint(cursor=str(lease.done + 50), done=50, failed=0, carry="{}", chunk_size=50, rate=100.0)


def print_scale(url: str, *, failures: int, seconds: float = 1.0) -> None:
    """Print how long each operation takes at each size, and by how much longer at the last than at the first."""
    found = dict(measure(url, failures=failures, seconds=seconds))
    kind = url.partition(":")[0].partition("+")[0]
    print(f"\n{kind}, {failures:,} failures; ms" + "".join(f"{name:>19}" for name in found) + "   full / empty")
    for name in found["full"]:
        figures = "".join(f"{each[name]:19.2f}" for each in found.values())
        print(f"{name:33}{figures}{found['full'][name] / found['empty'][name]:15.1f}")


def _ask(store: Store) -> None:
    with store.database.reading() as connection:
        connection.exec_driver_sql("SELECT 1").scalar_one()
