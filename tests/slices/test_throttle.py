"""Rates and holds: how fast a run is worked, and what it waits for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, insert, select, text

from batchkit import Adaptive, BatchKit, Chunk, Run, RunState, Throttle, span
from batchkit.errors import InvalidJob
from batchkit.holds import HoldOff
from batchkit.job import JOBS
from batchkit.model import Plan, Range
from batchkit.planning import fingerprint_of, identity_of
from batchkit.slicing import Ending, Outcome
from batchkit.stopping import Stop
from batchkit.store import Clock, Rates
from batchkit.store.clock import UtcTime
from batchkit.worker import Worker
from tests.slices.conftest import Ledger, job, write
from tests.waiting import eventually

stamps = Table("stamps", MetaData(), Column("size", Integer, nullable=False), Column("at", UtcTime, nullable=False))


class Stamped:
    """A function that writes when each of its chunks began, by the database's clock."""

    def __init__(self, kit: BatchKit) -> None:
        self._database = kit._store.database  # noqa: SLF001  its clock is the one that the rate goes by
        stamps.create(self._database.engine)

    def function(self) -> Callable[[Chunk[int]], None]:
        """Give the function."""

        def work(chunk: Chunk[int]) -> None:
            now = chunk.connection.execute(select(self._database.clock.now())).scalar_one()
            chunk.connection.execute(insert(stamps).values(size=len(chunk), at=now))
            write(chunk)

        return work

    def excess(self, run: Run, rate: float) -> float:
        """Give by how many items *run* was ever ahead of its rate when a chunk began."""
        assert run.started_at is not None
        with self._database.engine.connect() as connection:
            rows = connection.execute(select(stamps.c.at, stamps.c.size).order_by(stamps.c.at)).all()
        ahead = [0.0]
        begun = 0
        for at, size in rows:
            ahead.append(begun - rate * (at - run.started_at).total_seconds())
            begun += size
        return max(ahead)


class Later:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return self.ahead


@pytest.fixture
def later() -> Later:
    return Later()


@pytest.fixture
def still_kit(database_url: str, later: Later) -> Iterator[BatchKit]:
    """Give a kit on each database that wakes nobody up, with a clock that tests move."""
    with closing(BatchKit(database_url, clock=Clock(later))) as made:
        made.migrate()
        yield made


def work_next(kit: BatchKit, *, stop: Stop | None = None) -> Ending | None:
    """Do what a worker's loop does once."""
    with Stop() as never:
        outcome = worker_of(kit).work_next(queues=None, stop=stop or never)
    return None if outcome is None else outcome.ending


def worker_of(kit: BatchKit) -> Worker:
    return kit._worker  # noqa: SLF001  the loop around it runs until a signal


def start_with_partitions(kit: BatchKit, made: Any, source: Any, ranges: list[Range]) -> Run:
    """Start a run that several workers can work at once."""
    run = kit.start_run_here(JOBS[made.name], "{}")
    leases = kit._store.leases  # noqa: SLF001  no public option makes partitions
    lease = leases.claim(run.id, 0, worker="planner", seconds=60)
    assert lease is not None
    identity, fingerprint = identity_of(source, version=None), fingerprint_of(source)
    plan = Plan(ranges=tuple(ranges), total=None, identity=identity, fingerprint=fingerprint)
    leases.release(leases.plan(lease, plan), reason="planned", is_interrupt=False)
    return run


# Rates


def test_a_run_is_never_faster_than_its_rate(kit: BatchKit, done: Ledger):
    stamped = Stamped(kit)
    run = job(span(60), stamped.function(), chunk_size=7, throttle=Throttle(rate=50)).start()
    assert (RunState.SUCCEEDED, 60) == (run.state, run.progress.done)
    assert list(range(60)) == done.items()
    assert stamped.excess(run, 50) <= 1e-3
    # It waits in the slice, and learns nothing of that.
    assert 3 == len(run.history())


def test_several_processes_share_the_rate_of_a_run(kit: BatchKit, done: Ledger):
    stamped = Stamped(kit)
    source = span(120)
    made = job(source, stamped.function(), chunk_size=6, throttle=Throttle(rate=60))
    run = start_with_partitions(kit, made, source, [Range(None, "39"), Range("39", "79"), Range("79", "119")])
    children = [_fork(lambda: _work(kit, run)) for _ in range(3)]
    assert [0, 0, 0] == [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert (RunState.SUCCEEDED, 120) == (run.refresh().state, run.progress.done)
    assert list(range(120)) == done.items()
    assert stamped.excess(run, 60) <= 1e-3


def _work(kit: BatchKit, run: Run) -> None:
    with Stop() as stop:
        kit.work_run(run.id, stop=stop)


def _fork(step: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        # Nothing of pytest must run here, whatever happens.
        code = 1
        try:
            signal.alarm(60)
            step()
            code = 0
        finally:
            os._exit(code)
    return pid


def test_the_rate_holds_from_slice_to_slice_and_a_long_wait_is_no_interruption(
    still_kit: BatchKit, later: Later, database_url: str
):
    done, stamped = Ledger(database_url), Stamped(still_kit)
    run = job(span(4), stamped.function(), chunk_size=100, throttle=Throttle(rate=0.1), slice_time=0.001).start()
    assert Ending.INTERRUPTED is work_next(still_kit)
    for number in range(1, 4):
        assert Ending.HELD is work_next(still_kit)
        assert (RunState.QUEUED, number, 0) == (run.refresh().state, run.progress.done, run.progress.workers)
        assert "its rate is 0.1 items/s" in str(run.waiting_reason)
        assert work_next(still_kit) is None
        later.ahead += 10
        assert work_next(still_kit) in {Ending.INTERRUPTED, Ending.EXHAUSTED}
    while not run.refresh().has_ended:
        # The end is not waited for.
        assert work_next(still_kit) in {Ending.INTERRUPTED, Ending.EXHAUSTED}
    assert (RunState.SUCCEEDED, 4, None) == (run.state, run.progress.done, run.waiting_reason)
    assert not [each for each in run.history() if "held" in each.reason and each.after is not RunState.QUEUED]
    assert stamped.excess(run, 0.1) <= 1e-3
    assert [0, 1, 2, 3] == done.items()
    done.engine.dispose()


def test_a_chunk_takes_at_most_a_second_of_the_rate(kit: BatchKit, done: Ledger):
    sizes: list[int] = []

    def work(chunk: Chunk[int]) -> None:
        sizes.append(len(chunk))

    job(span(25), work, throttle=Throttle(rate=20.9), chunk_size=500).start()
    assert [20, 5] == sizes


def test_adaptive_sizes_do_not_learn_from_waiting(kit: BatchKit, done: Ledger):
    sizes: list[int] = []

    def work(chunk: Chunk[int]) -> None:
        sizes.append(len(chunk))

    job(span(30), work, chunk_size=Adaptive(target=0.5), throttle=Throttle(rate=10)).start()
    # Had the second chunk cost its wait of a second, the third would have half as many items.
    assert [10, 10, 10] == sizes


def test_a_wait_for_the_rate_ends_at_once_when_the_worker_is_to_stop(
    still_kit: BatchKit, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("batchkit.pacing.WAITED_IN_SLICE_SECONDS", 7200.0)
    run = job(span(100), lambda chunk: None, throttle=Throttle(rate=1 / 3600), slice_time=7200).start()
    outcomes: list[Outcome | None] = []
    with Stop() as stop:
        thread = threading.Thread(
            target=lambda: outcomes.append(worker_of(still_kit).work_partition(run.id, 0, stop=stop))
        )
        thread.start()
        rates = still_kit._store.rates  # noqa: SLF001  only what is reserved tells that the wait has begun
        eventually(lambda: _reserved_breaks(rates, run) == 2, within=30, message="nothing was reserved")
        stop.request("SIGTERM")
        thread.join(30)
        assert not thread.is_alive()
    (outcome,) = outcomes
    assert outcome is not None
    assert (Ending.INTERRUPTED, 1) == (outcome.ending, outcome.chunks)
    assert (RunState.QUEUED, 0) == (run.refresh().state, run.progress.workers)


def _reserved_breaks(rates: Rates, run: Run) -> int:
    return round(rates.reserve(run.id, items=1, rate=1.0, within=-1.0).seconds / 3600)


def test_calling_a_job_waits_in_place(database_url: str):
    with closing(BatchKit(database_url)) as kit:
        kit.migrate()
        run = job(span(2), lambda chunk: None, throttle=Throttle(rate=0.4))()
        assert (RunState.SUCCEEDED, 2) == (run.state, run.progress.done)


# Holds


class Asked:
    """A hold that returns what it is told to."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.times = 0

    def __call__(self) -> Any:
        self.times += 1
        answer = self._answers.pop(0) if self._answers else None
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.mark.parametrize("answer", [30, timedelta(seconds=30), HoldOff(30, "the replica is behind")])
def test_a_held_run_has_no_worker_and_says_what_it_waits_for(still_kit: BatchKit, later: Later, answer: Any):
    run = job(span(10), lambda chunk: None, throttle=Throttle(hold=Asked(answer))).start()
    assert Ending.HELD is work_next(still_kit)
    assert (RunState.QUEUED, 0, 0, 0) == (
        run.refresh().state,
        run.progress.done,
        run.progress.workers,
        run.progress.interruptions,
    )
    assert str(run.waiting_reason).startswith("held for 30 s: Asked")
    assert str(run.waiting_reason).endswith("the replica is behind") is isinstance(answer, HoldOff)
    assert work_next(still_kit) is None
    later.ahead += 30
    assert Ending.EXHAUSTED is work_next(still_kit)
    assert (RunState.SUCCEEDED, 10, None) == (run.refresh().state, run.progress.done, run.waiting_reason)


def test_a_run_is_held_between_two_chunks_and_loses_nothing(kit: BatchKit, done: Ledger):
    hold = Asked(None, None, 1, None, timedelta(seconds=1))
    run = job(span(50), write, chunk_size=10, throttle=Throttle(hold=hold, every=1e-9)).start()
    assert (RunState.SUCCEEDED, 50, 0) == (run.state, run.progress.done, run.progress.interruptions)
    assert list(range(50)) == done.items()
    assert 2 == sum("held for 1 s" in each.reason for each in run.history())


def test_the_answer_of_a_hold_is_good_for_a_while(kit: BatchKit, done: Ledger):
    hold = Asked()
    job(span(50), write, chunk_size=10, throttle=Throttle(hold=[hold], every=3600)).start()
    assert 1 == hold.times


@pytest.mark.parametrize(("act", "after"), [(Run.pause, RunState.PAUSED), (Run.cancel, RunState.CANCELLED)])
def test_a_held_run_is_paused_and_cancelled_at_once(
    still_kit: BatchKit, later: Later, act: Callable[[Run], Run], after: RunState
):
    run = job(span(10), lambda chunk: None, throttle=Throttle(hold=Asked(3600))).start()
    work_next(still_kit)
    assert (after, None) == (act(run).state, run.waiting_reason)
    later.ahead += 3600
    assert work_next(still_kit) is None
    if after is RunState.PAUSED:
        run.resume()
        assert Ending.EXHAUSTED is work_next(still_kit)
        assert RunState.SUCCEEDED is run.refresh().state


def test_a_run_that_is_worked_in_place_waits_there_and_can_be_cancelled_meanwhile(database_url: str):
    hold = Asked(*[3600] * 5)
    with closing(BatchKit(database_url)) as kit, Stop() as stop:
        kit.migrate()
        made = job(span(10), lambda chunk: None, throttle=Throttle(hold=hold))
        run = kit.start_run_here(JOBS[made.name], "{}")
        thread = threading.Thread(target=kit.work_run, args=[run.id], kwargs={"stop": stop})
        thread.start()
        eventually(lambda: run.refresh().waiting_reason is not None, message="the run was not held")
        run.cancel()
        thread.join(10)
        assert not thread.is_alive()
        assert (RunState.CANCELLED, 1) == (run.refresh().state, hold.times)


def test_a_run_that_is_held_in_place_stops_at_once(database_url: str):
    with closing(BatchKit(database_url)) as kit, Stop() as stop:
        kit.migrate()
        made = job(span(10), lambda chunk: None, throttle=Throttle(hold=Asked(3600)))
        run = kit.start_run_here(JOBS[made.name], "{}")
        thread = threading.Thread(target=kit.work_run, args=[run.id], kwargs={"stop": stop})
        thread.start()
        eventually(lambda: run.refresh().waiting_reason is not None, message="the run was not held")
        stop.request("SIGTERM")
        thread.join(10)
        assert not thread.is_alive()
        assert RunState.QUEUED is run.refresh().state


def test_a_hold_is_given_a_connection_to_the_database_if_it_takes_one(kit: BatchKit, done: Ledger):
    given: list[object] = []

    def hold(connection: Connection) -> float | None:
        given.append(connection.execute(text("SELECT 1")).scalar_one())
        return None

    assert RunState.SUCCEEDED is job(span(10), write, throttle=Throttle(hold=hold)).start().state
    assert [1] == given


@pytest.mark.parametrize("broken", [RuntimeError("no answer"), "later", True, float("nan"), HoldOff("x")])  # type: ignore[arg-type]
def test_a_hold_that_cannot_be_asked_slows_the_run_and_does_not_stop_it(
    still_kit: BatchKit, later: Later, database_url: str, broken: Any
):
    done = Ledger(database_url)
    hold = Asked(*[broken] * 100)
    run = job(span(40), write, chunk_size=10, throttle=Throttle(hold=hold, every=timedelta(microseconds=1))).start()
    held_at = []
    while not run.refresh().has_ended:
        if work_next(still_kit) is Ending.HELD:
            held_at.append(run.refresh().progress.done)
            assert "Asked could not be asked" in str(run.waiting_reason)
            later.ahead += 1
    assert (RunState.SUCCEEDED, 40) == (run.state, run.progress.done)
    assert list(range(40)) == done.items()
    # A chunk, then a hold, by turns.
    assert [10, 20, 30] == held_at
    done.engine.dispose()


def test_another_hold_is_asked_where_one_cannot_be(still_kit: BatchKit):
    throttle = Throttle(hold=[Asked(RuntimeError("no answer")), Asked(60)])
    run = job(span(10), lambda chunk: None, throttle=throttle).start()
    assert Ending.HELD is work_next(still_kit)
    assert "held for 60 s" in str(run.refresh().waiting_reason)


def test_a_hold_that_hangs_is_a_chunk_that_hangs(still_kit: BatchKit):
    lost = threading.Event()

    def hang() -> None:
        lost.wait(30)

    run = job(span(10), lambda chunk: None, throttle=Throttle(hold=hang), lease=0.3, chunk_timeout=0.1).start()
    thread = threading.Thread(target=work_next, args=[still_kit])
    thread.start()
    store = still_kit._store  # noqa: SLF001  nobody else says that a lease has run out
    eventually(lambda: store.runs.unattended(limit=1, run_id=run.id), within=10, message="the lease was renewed")
    lost.set()
    thread.join(10)
    assert (0, RunState.RUNNING) == (run.refresh().progress.done, run.state)


# Refusals


@pytest.mark.parametrize("rate", [0, -1, "fast", True, float("nan"), float("inf"), 1e-9])
def test_a_rate_that_is_none_is_refused(rate: Any):
    with pytest.raises(InvalidJob, match="rate is a number of items per second"):
        Throttle(rate=rate)


async def _coroutine() -> None: ...


@pytest.mark.parametrize("hold", ["x", 30, Asked, _coroutine, lambda a, b: None, [None], lambda *, key: None])
def test_a_hold_that_cannot_be_called_is_refused(hold: Any):
    with pytest.raises(InvalidJob, match="hold"):
        Throttle(hold=hold)


def test_a_throttle_that_does_nothing_is_refused():
    with pytest.raises(InvalidJob, match="give a rate, a hold or both"):
        Throttle()
    with pytest.raises(InvalidJob, match="every must be longer than nothing"):
        Throttle(rate=1, every=0)
    with pytest.raises(InvalidJob, match=r"throttle is a Throttle\(rate=..., hold=...\)"):
        job(span(1), write, throttle=100)
