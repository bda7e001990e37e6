"""With `delivery="at-most-once"` an item is begun once; what a crash leaves unknown is recorded as in doubt."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import product
from typing import Any

import pytest
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tenacity import Retrying

from batchkit import Adaptive, BatchKit, Chunk, Finish, Run, RunState, batched, current_session, rows, span
from batchkit.errors import InvalidJob, NoFailures, RunActive
from batchkit.job import JOBS
from batchkit.queues import InlineQueue, LocalQueue
from batchkit.slicing import Ending
from batchkit.stopping import Stop
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Cut, cutter
from tests.slices.conftest import Ledger, Watched, end_leases, job, ledger, let_leases_run_out, write


class Calls:
    """The outside world: it counts what was done to it, and nothing is rolled back there."""

    def __init__(self) -> None:
        self.times: Counter[int] = Counter()

    def __call__(self, item: int) -> None:
        """Have an effect."""
        self.times[item] += 1


@pytest.fixture
def calls() -> Calls:
    """Give an outside world."""
    return Calls()


@pytest.fixture
def postgres_done(postgres_url: str) -> Iterator[Ledger]:
    """Give the ledger on PostgreSQL."""
    made = Ledger(postgres_url)
    yield made
    made.engine.dispose()


def _counts(run: Run) -> tuple[RunState, int, int, int]:
    progress = run.refresh().progress
    return (run.state, progress.done, progress.failed, progress.in_doubt)


def _once(function: Any, *, items: int = 10, **options: Any) -> Any:
    return job(span(items), function, delivery="at-most-once", **options)


def _work(kit: BatchKit, run: Run) -> None:
    with Stop() as stop:
        kit.work_run(run.id, stop=stop)


def test_items_are_begun_one_by_one_behind_a_commit(kit: BatchKit, done: Ledger, calls: Calls):
    seen: list[tuple[int, int, int, int]] = []

    def work(chunk: Chunk[int]) -> None:
        calls(chunk[0])
        if done.engine.dialect.name != "sqlite" or len(seen) < 10:
            (run,) = kit.runs()
            # Not done before it is, and not to be done by anybody else.
            seen.append((len(chunk), chunk.number, run.progress.done, int(str(run.partitions()[0].cursor))))
        write(chunk)

    run = _once(work).start()
    assert (RunState.SUCCEEDED, 10, 0, 0) == _counts(run)
    assert "at-most-once" == run.delivery
    assert [(1, number, number - 1, number - 1) for number in range(1, 11)] == seen
    assert list(range(10)) == done.items()
    assert {1} == set(calls.times.values())


def test_an_error_is_recorded_and_not_tried_again(kit: BatchKit, done: Ledger, calls: Calls):
    def work(chunk: Chunk[int]) -> None:
        calls(chunk[0])
        write(chunk)
        if chunk[0] in {3, 7}:
            raise ValueError

    run = _once(work, max_failures=2).start()
    assert (RunState.SUCCEEDED, 8, 2, 0) == _counts(run)
    assert [0, 1, 2, 4, 5, 6, 8, 9] == done.items()
    assert {1} == set(calls.times.values())
    assert [("3", "2", 1, "3", False), ("7", "6", 1, "7", False)] == [
        (each.cursor, each.after, each.attempts, each.item, each.in_doubt) for each in run.failures()
    ]


def test_one_error_too_many_fails_the_run_behind_the_item_which_is_recorded(kit: BatchKit, done: Ledger, calls: Calls):
    def work(chunk: Chunk[int]) -> None:
        calls(chunk[0])
        write(chunk)
        if chunk[0] == 3:
            raise ValueError("no")

    run = _once(work).start()
    assert (RunState.FAILED, 3, 1, 0) == _counts(run)
    assert ("ValueError: no", "3") == (str(run.error), run.error and run.error.item)
    assert ["3"] == [each.cursor for each in run.failures()]
    run.resume()
    assert (RunState.SUCCEEDED, 9, 1, 0) == _counts(run)
    assert {1} == set(calls.times.values())
    assert [0, 1, 2, 4, 5, 6, 7, 8, 9] == done.items()


def test_of_a_chunk_that_raises_every_item_is_a_failure_and_none_is_halved(kit: BatchKit, done: Ledger, calls: Calls):
    def work(chunk: Chunk[int]) -> None:
        for item in chunk:
            calls(item)
        write(chunk)
        if 4 in chunk:
            raise ValueError

    run = _once(work, chunk_size=4, max_failures=4).start()
    assert (RunState.SUCCEEDED, 6, 4, 0) == _counts(run)
    assert {1} == set(calls.times.values())
    assert [0, 1, 2, 3, 8, 9] == done.items()
    assert ["4", "5", "6", "7"] == [each.cursor for each in run.failures()]


def test_each_item_stands_alone_in_a_chunk_of_many(kit: BatchKit, done: Ledger, calls: Calls):
    def work(item: int) -> None:
        calls(item)
        current_session().execute(insert(ledger), [{"item": item}])
        if item == 5:
            raise ValueError

    made = batched.each(span(10), name="tests.each-once", delivery="at-most-once", chunk_size=4, max_failures=1)(work)
    assert (RunState.SUCCEEDED, 9, 1, 0) == _counts(made.start())
    assert {1} == set(calls.times.values())
    assert [0, 1, 2, 3, 4, 6, 7, 8, 9] == done.items()


def test_items_that_the_function_gives_up_are_failures(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        for item in chunk:
            if item % 2:
                chunk.fail(item, "odd")

    run = _once(work, chunk_size=3, max_failures=3).start()
    # The fifth is one too many, and is recorded all the same, with its chunk.
    assert RunState.FAILED == run.state
    assert run.progress.failed == len(run.failures()) == 4
    assert run.progress.done + run.progress.failed == int(str(run.partitions()[0].cursor)) + 1


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_a_worker_that_is_cut_short_leaves_its_chunk_in_doubt(
    database_url: str, done: Ledger, calls: Calls, chunk_size: int
):
    with closing(BatchKit(database_url, queue=LocalQueue())) as kit:
        kit.migrate()

        def work(chunk: Chunk[int]) -> None:
            for item in chunk:
                calls(item)
            write(chunk)
            if 4 in chunk and calls.times[4] == 1:
                raise KeyboardInterrupt

        run = _once(work, chunk_size=chunk_size).start()
        with Stop() as stop, pytest.raises(KeyboardInterrupt):
            kit.work_run(run.id, stop=stop)
        lost = [4] if chunk_size == 1 else [3, 4, 5]
        # Recorded by the one who was cut short, before anybody else comes.
        assert (RunState.QUEUED, lost[0], 0, chunk_size) == _counts(run)
        with Stop() as stop:
            kit.work_run(run.id, stop=stop)
        assert (RunState.SUCCEEDED, 10 - chunk_size, 0, chunk_size) == _counts(run)
        assert {1} == set(calls.times.values())
        assert [item for item in range(10) if item not in lost] == done.items()
        assert [(str(item), str(item), True, "InDoubt") for item in lost] == [
            (each.cursor, each.item, each.in_doubt, each.error_type) for each in run.failures()
        ]
        assert [str(item - 1) for item in lost] == [each.after for each in run.failures()]
        assert 100.0 == run.progress.percent


@pytest.mark.parametrize("ending", [let_leases_run_out, end_leases])
def test_a_stale_worker_commits_nothing_and_its_item_is_in_doubt(
    database_url: str, done: Ledger, calls: Calls, ending: Callable[[BatchKit, Run], None]
):
    with closing(BatchKit(database_url, queue=LocalQueue())) as kit:
        kit.migrate()

        def work(chunk: Chunk[int]) -> None:
            calls(chunk[0])
            if chunk[0] == 4 and calls.times[4] == 1:
                # It sleeps past its lease, and another takes over meanwhile.
                ending(kit, run)
                _work(kit, run)
            write(chunk)

        run = _once(work).start()
        with Stop() as stop:
            outcome = kit.work_run(run.id, stop=stop)
        assert outcome is not None
        assert Ending.LOST == outcome.ending
        assert (RunState.SUCCEEDED, 9, 0, 1) == _counts(run)
        assert {1} == set(calls.times.values())
        assert [0, 1, 2, 3, 5, 6, 7, 8, 9] == done.items()


@pytest.mark.parametrize(("at", "cut"), list(product(["mark", "outcome", "function"], Cut)))
def test_a_cut_at_any_commit_begins_nothing_twice(
    postgres_server: PostgresServer, postgres_done: Ledger, calls: Calls, at: str, cut: Cut
):
    postgres_url = postgres_done.engine.url.render_as_string(hide_password=False)
    armed: list[int] = []
    with cutter(postgres_server.port) as wire:
        url = postgres_url.replace(f":{postgres_server.port}/", f":{wire.port}/")

        def arm(where: str) -> None:
            if where == at and not armed:
                armed.append(1)
                wire.arm(cut)

        def work(chunk: Chunk[int]) -> None:
            calls(chunk[0])
            write(chunk)
            if chunk[0] == 4:
                arm("outcome")
                arm("function")
                if at == "function":
                    chunk.connection.execute(text("SELECT 'COMMIT'"))

        with closing(BatchKit(url, queue=InlineQueue())) as kit:
            kit.migrate()
            source = Watched(10, lambda after: arm("mark") if after == 3 else None)
            run = job(source, work, delivery="at-most-once").start()
            assert 1 == wire.cuts
            # A mark that was committed and one that was not are both gone on with: nothing was begun.
            is_known = at == "mark" or (at == "outcome" and cut is Cut.BEFORE_CLIENT)
            lost = 0 if is_known else 1
            assert (RunState.SUCCEEDED, 10 - lost, 0, lost) == _counts(run)
            assert lost == len(run.failures())
    assert {1} == set(calls.times.values())
    assert [item for item in range(10) if is_known or item != 4] == postgres_done.items()


def test_a_fault_of_the_database_leaves_the_chunk_in_doubt_and_the_run_goes_on(
    postgres_url: str, postgres_done: Ledger, calls: Calls
):
    def work(chunk: Chunk[int]) -> None:
        calls(chunk[0])
        if chunk[0] == 4:
            chunk.connection.execute(text("DO $$ BEGIN RAISE EXCEPTION SQLSTATE '40P01'; END $$"))
        write(chunk)

    with closing(BatchKit(postgres_url, queue=InlineQueue())) as kit:
        kit.migrate()
        run = _once(work).start()
        assert (RunState.SUCCEEDED, 9, 0, 1) == _counts(run)
    assert {1} == set(calls.times.values())


def test_what_is_in_doubt_is_tried_again_on_demand_only(database_url: str, done: Ledger, calls: Calls):
    with closing(BatchKit(database_url, queue=LocalQueue())) as kit:
        kit.migrate()
        mended: list[int] = []

        def work(chunk: Chunk[int]) -> None:
            calls(chunk[0])
            write(chunk)
            if chunk[0] == 2 and not mended:
                raise KeyboardInterrupt
            if chunk[0] == 6 and not mended:
                raise ValueError

        run = _once(work, max_failures=1).start()
        with Stop() as stop, pytest.raises(KeyboardInterrupt):
            kit.work_run(run.id, stop=stop)
        with Stop() as stop:
            kit.work_run(run.id, stop=stop)
        assert (RunState.SUCCEEDED, 8, 1, 1) == _counts(run)

        mended.append(1)
        again = run.retry_failures()
        with pytest.raises(RunActive):
            run.retry_failures()
        with Stop() as stop:
            kit.work_run(again.id, stop=stop)
        assert ((RunState.SUCCEEDED, 1, 0, 0), "at-most-once") == (_counts(again), again.delivery)
        assert (1, 2) == (calls.times[2], calls.times[6])
        with pytest.raises(NoFailures, match=r"1 are in doubt, .* retry_failures\(in_doubt=True\)"):
            run.retry_failures()

        last = run.retry_failures(in_doubt=True)
        with Stop() as stop:
            kit.work_run(last.id, stop=stop)
        assert (RunState.SUCCEEDED, 1, 0, 0) == _counts(last)
        assert 2 == calls.times[2]
        assert list(range(10)) == done.items()
        assert all(each.resolved_at is not None for each in run.failures())


def test_a_failure_that_is_cut_short_when_it_is_tried_again_is_in_doubt(database_url: str, done: Ledger, calls: Calls):
    with closing(BatchKit(database_url, queue=LocalQueue())) as kit:
        kit.migrate()

        def work(chunk: Chunk[int]) -> None:
            calls(chunk[0])
            if chunk[0] == 6:
                raise ValueError if calls.times[6] == 1 else KeyboardInterrupt
            write(chunk)

        run = _once(work, max_failures=1).start()
        with Stop() as stop:
            kit.work_run(run.id, stop=stop)
        again = run.retry_failures()
        with Stop() as stop, pytest.raises(KeyboardInterrupt):
            kit.work_run(again.id, stop=stop)
        with Stop() as stop:
            kit.work_run(again.id, stop=stop)
        assert (RunState.SUCCEEDED, 0, 0, 1) == _counts(again)
        (failure,) = run.failures()
        assert ("6", True, 2, None) == (failure.cursor, failure.in_doubt, failure.attempts, failure.resolved_at)
        assert 2 == calls.times[6]


def test_a_limit_counts_what_is_in_doubt(database_url: str, done: Ledger, calls: Calls):
    with closing(BatchKit(database_url, queue=LocalQueue())) as kit:
        kit.migrate()

        def work(chunk: Chunk[int]) -> None:
            calls(chunk[0])
            if chunk[0] == 2:
                raise KeyboardInterrupt
            write(chunk)

        def finish(finish: Finish) -> list[int]:
            return [finish.done, finish.failed, finish.in_doubt]

        run = _once(work, finish=finish).using(limit=5).start()
        with Stop() as stop, pytest.raises(KeyboardInterrupt):
            kit.work_run(run.id, stop=stop)
        with Stop() as stop:
            kit.work_run(run.id, stop=stop)
        assert (RunState.SUCCEEDED, 4, 0, 1) == _counts(run)
        assert [0, 1, 3, 4] == done.items()
        assert [4, 0, 1] == run.result


def test_a_dry_run_writes_nothing(kit: BatchKit, done: Ledger):
    run = _once(write).using(dry_run=True).start()
    assert (RunState.SUCCEEDED, 10, 0, 0) == _counts(run)
    assert [] == done.items()


def test_a_person_who_cancels_while_the_worker_is_dead_sees_what_is_in_doubt(
    database_url: str, done: Ledger, calls: Calls, monkeypatch: pytest.MonkeyPatch
):
    with closing(BatchKit(database_url, queue=LocalQueue())) as kit:
        kit.migrate()

        def work(chunk: Chunk[int]) -> None:
            if chunk[0] == 4:
                raise KeyboardInterrupt

        run = _once(work).start()
        # A worker that is killed gives nothing back.
        monkeypatch.setattr(type(kit._store.leases), "release", lambda *_, **__: None)  # noqa: SLF001
        with Stop() as stop, pytest.raises(KeyboardInterrupt):
            kit.work_run(run.id, stop=stop)
        monkeypatch.undo()
        assert (RunState.RUNNING, 4, 0, 0) == _counts(run)
        run.cancel()
        end_leases(kit, run)
        assert (RunState.CANCELLED, 4, 0, 1) == _counts(run)
        assert ["4"] == [each.cursor for each in run.failures()]


def test_others_write_during_an_outside_call_where_there_is_one_writer(sqlite_url: str):
    with closing(BatchKit(sqlite_url, queue=InlineQueue())) as kit:
        kit.migrate()
        done = Ledger(sqlite_url)

        def work(chunk: Chunk[int]) -> None:
            with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), timeout=0)) as other, other:
                other.execute("INSERT INTO ledger VALUES (?)", [-chunk[0]])
            write(chunk)

        run = job(span(1, 4), work, delivery="at-most-once").start()
        assert (RunState.SUCCEEDED, 3, 0, 0) == _counts(run)
        assert [-3, -2, -1, 1, 2, 3] == done.items()
        done.engine.dispose()


class Base(DeclarativeBase):
    pass


class Bill(Base):
    __tablename__ = "bill"
    id: Mapped[int] = mapped_column(primary_key=True)
    paid: Mapped[int]


@pytest.mark.parametrize("has_factory", [False, True])
def test_objects_keep_to_the_session_and_their_changes_commit_with_the_outcome(
    database_url: str, done: Ledger, *, has_factory: bool
):
    Base.metadata.create_all(done.engine)
    with Session(done.engine) as session, session.begin():
        session.add_all(Bill(id=number, paid=0) for number in range(1, 6))
    engine = create_engine(database_url)
    factory = sessionmaker(engine) if has_factory else None
    with closing(BatchKit(database_url, queue=InlineQueue(), session_factory=factory)) as kit:
        kit.migrate()

        def work(chunk: Chunk[Bill]) -> None:
            for bill in chunk:
                bill.paid += 1
                if bill.id == 3:
                    raise ValueError

        run = job(rows(select(Bill), key=Bill.id), work, delivery="at-most-once", max_failures=1).start()
        assert (RunState.SUCCEEDED, 4, 1, 0) == _counts(run)
        assert ["Bill(id=3, paid=1)"] == [each.item for each in run.failures()]
    with Session(done.engine) as session:
        assert [1, 1, 0, 1, 1] == list(session.scalars(select(Bill.paid).order_by(Bill.id)))
    engine.dispose()


def test_the_chunk_size_is_1_where_none_is_given():
    assert 1 == JOBS[_once(write).name].options.chunk_size
    assert 5 == JOBS[_once(write, chunk_size=5).name].options.chunk_size
    assert isinstance(JOBS[_once(write, chunk_size=Adaptive()).name].options.chunk_size, Adaptive)
    assert isinstance(JOBS[job(span(3), write).name].options.chunk_size, Adaptive)


def test_a_chunk_that_grows_is_begun_once_as_well(kit: BatchKit, done: Ledger):
    run = _once(write, items=100, chunk_size=Adaptive()).start()
    assert (RunState.SUCCEEDED, 100, 0, 0) == _counts(run)
    assert list(range(100)) == done.items()


def test_a_retry_of_what_is_tried_once_is_refused():
    with pytest.raises(InvalidJob, match=r"retry=.* tries items again, but delivery='at-most-once' .* leave retry out"):
        _once(write, retry=Retrying())
