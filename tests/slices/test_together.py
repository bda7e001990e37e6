"""What jobs ask for works together: throttles, deliveries, killers, resumables, hooks and outputs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select
from sqlalchemy.orm import Session
from tenacity import Retrying, stop_after_attempt

from batchkit import (
    BatchKit,
    Chunk,
    Finish,
    Run,
    RunState,
    Steps,
    Throttle,
    batched,
    current_chunk,
    current_session,
    resumable,
    span,
)
from batchkit.errors import InvalidJob
from batchkit.hooks import RunEvent, RunHook
from batchkit.job import JOBS
from batchkit.outputs import json_lines_file, publish
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


# Killers


def _killing(marker: Path, *, at: int = 7) -> Callable[[int], None]:
    """Make what counts the tries of an item, and kills the process at one."""

    def meet(item: int) -> None:
        if item == at:
            with marker.open("a") as file:
                file.write("x")
            os._exit(1)

    return meet


@pytest.mark.parametrize("chunk_size", [1, 4])
@pytest.mark.parametrize("is_throttled", [False, True])
def test_at_most_once_a_killer_is_begun_once_and_in_doubt_and_the_run_goes_on(
    host: Host, done: Ledger, tmp_path: Path, chunk_size: int, is_throttled: bool
):
    meet = _killing(tmp_path / "tries")

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        for item in chunk:
            meet(item)

    throttle = Throttle(rate=10_000, hold=lambda: None) if is_throttled else None
    run = job(span(20), work, chunk_size=chunk_size, delivery="at-most-once", throttle=throttle).start()
    assert 2 == host.work(run)
    lost = [7] if chunk_size == 1 else [4, 5, 6, 7]
    assert (RunState.SUCCEEDED, 20 - len(lost), 0, len(lost)) == _counts(run)
    assert [item for item in range(20) if item not in lost] == done.items()
    assert "x" == (tmp_path / "tries").read_text()
    assert [(str(item), True) for item in lost] == [(each.item, each.in_doubt) for each in run.failures()]


def test_at_most_once_a_source_that_kills_its_workers_fails_the_run_which_goes_on_once_it_is_mended(
    host: Host, done: Ledger, tmp_path: Path
):
    mended = tmp_path / "mended"

    class Deadly:
        """Thirty numbers, of which those from twenty on cannot be read for now."""

        def read(self, after: int | None, limit: int, session: object) -> list[tuple[int, int]]:
            first = 0 if after is None else after + 1
            if first >= 20 and not mended.exists():
                os._exit(1)
            return [(number, number) for number in range(first, min(first + limit, 30))]

    run = job(Deadly(), write, chunk_size=5, delivery="at-most-once").start()
    host.work(run)
    assert (RunState.FAILED, 20, 0, 0) == _counts(run), run.error
    assert "WorkerKilled" in str(run.error)
    mended.touch()
    run.resume()
    host.work(run)
    assert (RunState.SUCCEEDED, 30, 0, 0) == _counts(run), run.error
    assert list(range(30)) == done.items()


@pytest.mark.parametrize("is_each", [False, True])
@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_a_killer_is_recorded_where_it_is_throttled_and_exported_too(
    host: Host, done: Ledger, tmp_path: Path, delivery: str, is_each: bool
):
    meet, path = _killing(tmp_path / "tries"), tmp_path / "out.jsonl"

    def write_out(chunk: Chunk[int], items: list[int]) -> None:
        with json_lines_file(chunk, path) as out:
            for item in items:
                out.write(item)
                meet(item)

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        write_out(chunk, list(chunk))

    def work_one(item: int) -> None:
        current_session().execute(insert(ledger), [{"item": item}])
        write_out(current_chunk(), [item])

    def finish(finish: Finish) -> int:
        return publish(finish, path)

    options: Any = {
        "chunk_size": 4,
        "delivery": delivery,
        "max_failures": 1,
        "finish": finish,
        "throttle": Throttle(rate=10_000, hold=lambda: None),
    }
    if is_each:
        made: Any = batched.each(span(20), name=f"tests.together{next(_names)}", **options)(work_one)
    else:
        made = job(span(20), work, **options)
    run = made.start()
    assert 8 == host.work(run)
    assert (RunState.SUCCEEDED, 19, 1, 0) == _counts(run)
    rest = [item for item in range(20) if item != 7]
    assert rest == done.items()
    assert [str(item) for item in rest] == path.read_text().split()
    assert "x" * 7 == (tmp_path / "tries").read_text()


def test_a_killer_among_failures_that_are_tried_again_is_recorded_once_more(host: Host, done: Ledger, tmp_path: Path):
    meet = _killing(tmp_path / "tries")
    is_first = [True]

    def work(chunk: Chunk[int]) -> None:
        for item in chunk:
            if is_first[0] and item in {3, 7, 11}:
                chunk.fail(item, "not yet")
            elif not is_first[0]:
                meet(item)
        chunk.connection.execute(
            insert(ledger), [{"item": chunk[i]} for i in range(len(chunk)) if i not in chunk.failed]
        )

    run = job(span(20), work, chunk_size=5, max_failures=3).start()
    host.work(run)
    assert (RunState.SUCCEEDED, 17, 3, 0) == _counts(run)
    is_first[0] = False
    again = run.retry_failures()
    host.work(again)
    assert (RunState.SUCCEEDED, 2, 1, 0) == _counts(again)
    assert [item for item in range(20) if item != 7] == done.items()
    (left,) = [each for each in run.failures() if each.resolved_at is None]
    assert ("7", "batchkit.errors.WorkerKilled") == (left.item, left.error_type)


def test_a_step_that_kills_its_workers_fails_the_run_which_goes_on_once_it_is_mended(
    host: Host, done: Ledger, tmp_path: Path
):
    meet = _killing(tmp_path / "tries", at=2)
    is_mended = [False]

    def count(steps: Steps[int]) -> Iterator[int]:
        for item in range(steps.cursor or 0, 4):
            steps.connection.execute(insert(ledger), [{"item": item}])
            if not is_mended[0]:
                meet(item)
            yield item + 1

    run = resumable(name=f"tests.together{next(_names)}", throttle=Throttle(rate=1000))(count).start()
    assert 5 == host.work(run)
    assert (RunState.FAILED, 2, 0, 0) == _counts(run)
    assert run.error is not None
    assert "batchkit.errors.WorkerKilled" == run.error.type
    # One that finds the place, and three that count.
    assert "x" * 4 == (tmp_path / "tries").read_text()
    is_mended[0] = True
    run.resume()
    host.work(run)
    assert (RunState.SUCCEEDED, 5, 0, 0) == _counts(run)
    assert list(range(4)) == done.items()


# Hooks


class _Told(RunHook):
    """Writes down what it is told, from each process, and then raises."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _note(self, event: RunEvent) -> None:
        with self._path.open("a") as file:
            file.write(f"{event.happening}\n")
        raise RuntimeError

    started = interrupted = paused = resumed = succeeded = failed = cancelled = _note

    @property
    def names(self) -> list[str]:
        return self._path.read_text().split()


class _ToldHost(Host):
    """A host whose kits have a hook that raises."""

    def __init__(self, url: str, told: _Told) -> None:
        self._told = told
        super().__init__(url)

    def _make_kit(self) -> BatchKit:
        return BatchKit(self._url, queue=LocalQueue(), clock=Clock(lambda: self._ahead), hooks=[self._told])


@pytest.fixture
def told(tmp_path: Path) -> _Told:
    return _Told(tmp_path / "told")


@pytest.fixture
def told_host(database_url: str, told: _Told) -> Iterator[Host]:
    """Give a host with a hook on each database in turn."""
    made = _ToldHost(database_url, told)
    yield made
    made.end()


def test_hooks_are_told_once_of_a_pause_by_suspicion_and_of_each_death_before(
    told_host: Host, told: _Told, done: Ledger, tmp_path: Path
):
    meet = _killing(tmp_path / "tries")

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        for item in chunk:
            meet(item)

    run = job(span(20), work, chunk_size=4).start()
    for _ in range(7):
        told_host.wait(told_host.start_child(run))
        told_host.let_lease_run_out()
    assert RunState.PAUSED == run.refresh().state
    assert ["started", *["interrupted"] * 6, "paused"] == told.names
    run.resume(skip=True)
    told_host.work(run)
    assert ["resumed", "succeeded"] == told.names[8:]
    assert (RunState.SUCCEEDED, 19, 1, 0) == _counts(run)
    assert [item for item in range(20) if item != 7] == done.items()


def test_hooks_are_told_once_that_a_killer_has_failed_its_run(
    told_host: Host, told: _Told, done: Ledger, tmp_path: Path
):
    meet = _killing(tmp_path / "tries")

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        for item in chunk:
            meet(item)

    run = job(span(20), work, chunk_size=4).start()
    told_host.work(run)
    assert (RunState.FAILED, 7, 0, 0) == _counts(run)
    assert ["started", *["interrupted"] * 7, "failed"] == told.names
    assert list(range(7)) == done.items()


def test_hooks_are_told_once_of_the_cancel_of_a_run_that_is_held(told_host: Host, told: _Told):
    run = job(span(20), write, throttle=Throttle(hold=lambda: 30), delivery="at-most-once").start()
    assert Ending.HELD == work_next(told_host.kit)
    run.cancel()
    told_host.kit.recover()
    assert (RunState.CANCELLED, 0, 0, 0) == _counts(run)
    assert ["started", "cancelled"] == told.names
