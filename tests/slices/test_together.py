"""What jobs ask for works together: throttles, deliveries, killers, resumables, hooks and outputs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select
from sqlalchemy.orm import Session
from tenacity import Retrying, stop_after_attempt

from batchkit import BatchKit, Chunk, Run, RunState, Steps, Throttle, resumable, span
from batchkit.errors import InvalidJob
from batchkit.job import JOBS
from batchkit.queues import InlineQueue, LocalQueue
from batchkit.slicing import Ending
from batchkit.stopping import Stop
from batchkit.store import Clock
from batchkit.suspicion import Suspicion
from tests.servers.mariadb import MariaDbServer
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import CommitCutter, Cut, cutter
from tests.slices.conftest import Ledger, job, ledger, write
from tests.slices.test_killers import Host
from tests.slices.test_throttle import work_next

_names = itertools.count()

#: At most once the function is not called again, so that only what is not yet begun is asked for.
_DELIVERIES = ["exactly-once", "at-least-once", "at-most-once"]


@pytest.fixture
def host(database_url: str) -> Iterator[Host]:
    """Give a host on each database in turn."""
    made = Host(database_url)
    yield made
    made.end()


@pytest.fixture
def wire(server: PostgresServer | MariaDbServer) -> Iterator[CommitCutter]:
    """Give a wire to the server that can be cut."""
    with cutter(server.port) as made:
        yield made


@pytest.fixture
def kit_on_wire(server: PostgresServer | MariaDbServer, server_url: str, wire: CommitCutter) -> Iterator[BatchKit]:
    """Give a kit whose every word goes over the wire."""
    url = server_url.replace(f":{server.port}/", f":{wire.port}/")
    with closing(BatchKit(url, queue=InlineQueue())) as made:
        made.migrate()
        yield made


@pytest.fixture
def ledger_there(server_url: str) -> Iterator[Ledger]:
    """Give the ledger, reached without the wire that is cut."""
    made = Ledger(server_url)
    yield made
    made.engine.dispose()


def _counts(run: Run) -> tuple[RunState, int, int, int]:
    progress = run.refresh().progress
    return (run.state, progress.done, progress.failed, progress.in_doubt)


def worked(kit: BatchKit, run: Run) -> Ending | None:
    """Work one run here until it ends or waits."""
    with Stop() as stop:
        outcome = kit.work_run(run.id, stop=stop)
    return None if outcome is None else outcome.ending


# Throttles


@pytest.mark.parametrize("cut", list(Cut))
@pytest.mark.parametrize("delivery", _DELIVERIES)
def test_a_cut_at_the_commit_of_a_reserved_rate_loses_and_doubles_nothing(
    kit_on_wire: BatchKit, ledger_there: Ledger, wire: CommitCutter, delivery: str, cut: Cut
):
    asked = itertools.count()

    def cut_now() -> None:
        # What is committed next is the reservation.
        if next(asked) == 4:
            wire.arm(cut)

    throttle = Throttle(rate=10_000, hold=cut_now, every=1e-9)
    run = job(span(10), write, chunk_size=1, delivery=delivery, throttle=throttle).start()
    assert 1 == wire.cuts
    assert (RunState.SUCCEEDED, 10, 0, 0) == _counts(run), run.error
    assert list(range(10)) == ledger_there.items()


@pytest.mark.parametrize("cut", list(Cut))
def test_an_item_too_many_fails_the_run_though_the_reply_to_its_commit_is_lost(
    kit_on_wire: BatchKit, ledger_there: Ledger, wire: CommitCutter, cut: Cut
):
    attempts: list[int] = []

    def work(chunk: Chunk[int]) -> None:
        attempts.append(chunk.attempt)
        write(chunk)
        if chunk[0] == 4:
            wire.arm(cut)
            chunk.fail(4, "no")

    run = job(span(10), work, delivery="at-most-once").start()
    assert (1, {1}) == (wire.cuts, set(attempts))
    if cut is Cut.BEFORE_CLIENT:
        assert (RunState.FAILED, 4, 1, 0) == _counts(run)
    else:
        assert (RunState.SUCCEEDED, 9, 0, 1) == _counts(run)
    assert 1 == len(run.failures())


class Reserved:
    """Tells of chunks that have more time reserved than their items need, where they begin."""

    def __init__(self, kit: BatchKit, *, rate: float) -> None:
        self._database = kit._store.database  # noqa: SLF001  the rate goes by its clock
        self._rate = rate
        self.throttle = Throttle(rate=rate)
        self.excess: list[tuple[int, float]] = []

    def note(self, connection: Connection, run_id: str, items: int) -> None:
        """Look at what is reserved in a chunk that has begun."""
        run = self._database.tables.run
        read = select(run.c.next_item_at, self._database.clock.now()).where(run.c.id == run_id)
        until, now = connection.execute(read).one()
        ahead = (until - now).total_seconds()
        if ahead > items / self._rate + 0.01:
            self.excess.append((items, ahead))


def test_items_that_are_taken_one_at_a_time_reserve_the_time_of_one(kit: BatchKit, done: Ledger):
    reserved = Reserved(kit, rate=20)

    def work(chunk: Chunk[int]) -> None:
        reserved.note(chunk.connection, chunk.run_id, len(chunk))
        write(chunk)

    made = job(span(25), work, chunk_size=20, throttle=reserved.throttle)
    run = kit.start_run_here(JOBS[made.name], "{}")
    suspects = kit._store.suspects  # noqa: SLF001  three workers that die would take three leases
    with kit._store.database.transaction() as tx:  # noqa: SLF001
        suspects._write(tx, run.id, 0, 0, Suspicion(place=0, until=5, size=20))  # noqa: SLF001
    worked(kit, run)
    assert (RunState.SUCCEEDED, 25, 0, 0) == _counts(run)
    assert list(range(25)) == done.items()
    assert [] == reserved.excess


def test_what_is_in_doubt_leaves_less_of_a_limit_to_reserve(database_url: str, done: Ledger):
    with closing(BatchKit(database_url, queue=LocalQueue())) as kit:
        kit.migrate()
        reserved = Reserved(kit, rate=20)

        def work(chunk: Chunk[int]) -> None:
            if 2 in chunk:
                raise KeyboardInterrupt
            reserved.note(chunk.connection, chunk.run_id, len(chunk))
            write(chunk)

        made = job(span(50), work, chunk_size=10, delivery="at-most-once", throttle=reserved.throttle)
        run = made.using(limit=11).start()
        with pytest.raises(KeyboardInterrupt):
            worked(kit, run)
        worked(kit, run)
        assert (RunState.SUCCEEDED, 1, 0, 10) == _counts(run)
        assert [10] == done.items()
        assert [] == reserved.excess


class Generous:
    """The numbers from 0, of which it gives more than it is asked for."""

    def read(self, after: int | None, limit: int, session: Session) -> list[tuple[int, int]]:
        """Read."""
        first = 0 if after is None else after + 1
        return [(item, item) for item in range(first, min(first + limit + 3, 20))]


@pytest.mark.parametrize("is_killer", [False, True])
def test_an_item_is_found_in_a_source_that_gives_more_than_it_is_asked_for(host: Host, done: Ledger, is_killer: bool):
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if 7 in chunk:
            if is_killer:
                os._exit(1)
            raise ValueError

    run = job(Generous(), work, chunk_size=4, max_failures=1).start()
    host.work(run)
    assert (RunState.SUCCEEDED, 19, 1, 0) == _counts(run)
    assert [item for item in range(20) if item != 7] == done.items()


# Resumables


def _counting(until: int, **options: Any) -> Any:
    """Make a resumable that writes the numbers below *until*, one in a step, and counts each as ten items."""

    def count(steps: Steps[int]) -> Iterator[int]:
        for item in range(steps.cursor or 0, until):
            steps.connection.execute(insert(ledger), [{"item": item}])
            steps.count(10)
            if item + 1 < until:
                yield item + 1

    return resumable(name=f"tests.together{next(_names)}", **options)(count)


def test_a_resumable_keeps_to_a_rate_of_steps(kit: BatchKit, done: Ledger):
    reserved = Reserved(kit, rate=50)
    begun: list[datetime] = []

    def count(steps: Steps[int]) -> Iterator[int]:
        for item in range(8):
            reserved.note(steps.connection, steps.run_id, 1)
            now = kit._store.database.clock.now()  # noqa: SLF001  the rate goes by its clock
            begun.append(steps.connection.execute(select(now)).scalar_one())
            steps.connection.execute(insert(ledger), [{"item": item}])
            yield item

    run = resumable(name=f"tests.together{next(_names)}", throttle=reserved.throttle)(count).start()
    assert (RunState.SUCCEEDED, 9, 0, 0) == _counts(run)
    assert list(range(8)) == done.items()
    assert [] == reserved.excess
    assert run.started_at is not None
    assert all(number <= 50 * (at - run.started_at).total_seconds() + 0.01 for number, at in enumerate(begun))


def test_a_resumable_is_held_at_a_yield_with_its_generator_closed(database_url: str, done: Ledger):
    later = [0.0]
    with closing(BatchKit(database_url, queue=LocalQueue(), clock=Clock(lambda: later[0]))) as kit:
        kit.migrate()
        asked: list[int] = []

        def busy() -> float:
            asked.append(done.count())
            return 30 if len(asked) % 2 == 0 else 0

        retry = Retrying(stop=stop_after_attempt(3), reraise=True)
        run = _counting(4, throttle=Throttle(hold=busy, every=1e-9), retry=retry).start()
        endings = []
        while not run.refresh().has_ended:
            endings.append(work_next(kit))
            later[0] += 31
        assert [*[Ending.HELD] * 3, Ending.EXHAUSTED] == endings
        assert (RunState.SUCCEEDED, 40, 0, 0) == _counts(run)
        assert [] == [each for each in run.history() if "attempt" in each.reason]
    assert [0, 1, 1, 2, 2, 3, 3] == asked
    assert list(range(4)) == done.items()


def test_a_limit_of_steps_is_kept_to_where_a_step_is_many_items(kit: BatchKit, done: Ledger):
    made = _counting(9, throttle=Throttle(rate=1000))
    run = made.using(limit=3).start()
    assert (RunState.SUCCEEDED, 30, 0, 0) == _counts(run)
    assert [0, 1, 2] == done.items()


def test_a_throttle_of_a_resumable_that_is_none_is_refused():
    with pytest.raises(InvalidJob, match=r"throttle is a Throttle\(rate=..., hold=...\).* got 5"):
        _counting(1, throttle=5)
