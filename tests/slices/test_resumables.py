"""A resumable's steps: what was written since the last yield commits with the cursor, whatever happens to them."""

from __future__ import annotations

import datetime as dt
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_none

from batchkit import BatchKit, Finish, Run, RunState, Steps, batched, resumable, span
from batchkit.errors import InvalidStart, NoFailures, NoStep
from batchkit.job import JOBS
from batchkit.model import Lease
from batchkit.queues import InlineQueue, LocalQueue
from batchkit.slicing import Ending, Outcome
from batchkit.stopping import Stop
from tests.slices.conftest import Ledger, ledger

_names = itertools.count()


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int]


def job(function: Callable[..., Any], **options: Any) -> Any:
    """Make a resumable with a name of its own."""
    return resumable(name=f"tests.resumable{next(_names)}", **options)(function)


def write(steps: Steps[Any], *items: int) -> None:
    """Write items into the ledger."""
    steps.session.execute(insert(ledger), [{"item": item} for item in items])


def count_to(until: int, *, per_step: int = 1) -> Callable[[Steps[int]], Iterator[int]]:
    """Make a generator that writes the numbers below *until*, those of the last step behind the last yield."""

    def count(steps: Steps[int]) -> Iterator[int]:
        done = steps.cursor or 0
        while True:
            write(steps, *range(done, min(done + per_step, until)))
            done += per_step
            if done >= until:
                return
            yield done

    return count


def started(kit: BatchKit, made: Any, **params: Any) -> Run:
    """Start a run that only `worked` works."""
    definition = JOBS[made.name]
    return kit.start_run_here(definition, definition.pack((), params))


def worked(kit: BatchKit, run: Run, *, stops_at: int | None = None) -> Outcome:
    """Work a run until it ends or is asked to stop, after the commit of step *stops_at*."""
    with Stop() as stop:

        def watch(lease: Lease) -> None:
            if lease.seq == stops_at:
                stop.request("SIGTERM")

        outcome = kit.work_run(run.id, stop=stop, watch=watch)
    assert outcome is not None
    run.refresh()
    return outcome


# The way it should be


def test_each_step_is_done_once_and_the_end_with_it(kit: BatchKit, done: Ledger):
    run = job(count_to(5)).start()
    assert (RunState.SUCCEEDED, 5, None, 0) == (
        run.state,
        run.progress.done,
        run.progress.total,
        run.progress.failed,
    ), run.error
    assert [0, 1, 2, 3, 4] == done.items()
    assert 4 == run.partitions()[0].cursor


def test_a_generator_that_never_yields_is_one_transaction(kit: BatchKit, done: Ledger):
    run = job(count_to(3, per_step=3)).start()
    assert (RunState.SUCCEEDED, 1, None) == (run.state, run.progress.done, run.partitions()[0].cursor)
    assert [0, 1, 2] == done.items()


def test_a_resumed_generator_goes_on_from_the_cursor_with_its_params(kit: BatchKit, done: Ledger):
    calls: list[tuple[object, int, str]] = []

    def count(steps: Steps[int], until: int, label: str = "x") -> Iterator[int]:
        calls.append((steps.cursor, until, label))
        for item in range(steps.cursor or 0, until):
            write(steps, item)
            yield item + 1

    run = started(kit, job(count), until=6, label="y")
    assert Ending.INTERRUPTED is worked(kit, run, stops_at=4).ending
    assert (RunState.QUEUED, 4) == (run.state, run.progress.done)
    worked(kit, run)
    assert [(None, 6, "y"), (4, 6, "y")] == calls
    assert (RunState.SUCCEEDED, 7) == (run.state, run.progress.done)
    assert list(range(6)) == done.items()


@pytest.mark.parametrize(
    "cursor",
    [
        "a",
        0,
        "",
        {"page": [1, 2.5, None], "$ended": True},
        {"$ended": 5},
        ("charges", Decimal("1.10")),
        dt.datetime(2026, 11, 26, 3, 4, 5, 6, tzinfo=dt.timezone.utc),
        dt.date(2026, 11, 26),
        UUID(int=5),
        b"\x00\xff",
        RunState.PAUSED,
    ],
)
def test_a_cursor_comes_back_as_the_same_value(sqlite_url: str, cursor: Any):
    seen: list[object] = []

    def go(steps: Steps[Any]) -> Iterator[Any]:
        seen.append(steps.cursor)
        if len(seen) == 1:
            yield cursor
            seen.append(steps.cursor)
            yield cursor

    with closing(BatchKit(sqlite_url)) as kit:
        kit.migrate()
        run = started(kit, job(go))
        worked(kit, run, stops_at=2)
        worked(kit, run)
    assert RunState.SUCCEEDED == run.state
    assert [None, cursor, cursor] == seen
    assert [type(cursor)] * 2 == [type(each) for each in seen[1:]]


def test_objects_from_before_a_yield_are_read_anew_and_can_still_be_changed(kit: BatchKit, done: Ledger):
    Base.metadata.create_all(done.engine)
    seen: list[int] = []

    def add(steps: Steps[int]) -> Iterator[int]:
        account = Account(id=1, total=0)
        steps.session.add(account)
        for step in range(1, 4):
            account.total += 1
            yield step
            # As others do between two steps.
            steps.connection.execute(text("UPDATE account SET total = total + 10"))
            seen.append(account.total)

    run = job(add).start()
    assert RunState.SUCCEEDED == run.state, run.error
    assert [11, 22, 33] == seen
    with Session(done.engine) as session:
        assert 33 == session.scalars(select(Account.total)).one()


def test_the_carry_is_saved_with_each_cursor_and_finish_gets_it(kit: BatchKit, done: Ledger):
    fails = [True]

    def add(steps: Steps[int]) -> Iterator[int]:
        for item in range(steps.cursor or 0, 5):
            steps.carry["sum"] = cast("int", steps.carry.get("sum", 0)) + item
            if item == 3 and fails:
                raise ValueError
            yield item + 1

    def finish(finish: Finish) -> object:
        write(finish, -1)  # type: ignore[arg-type]
        return finish.carries[0]

    run = job(add, finish=finish).start()
    assert (RunState.FAILED, 3) == (run.state, run.progress.done)
    fails.clear()
    assert {"sum": 10} == run.resume().result
    assert [-1] == done.items()


def test_items_are_counted_where_the_function_says_how_many(kit: BatchKit, done: Ledger):
    numbers: list[int] = []

    def go(steps: Steps[int]) -> Iterator[int]:
        numbers.append(steps.number)
        steps.count(30)
        steps.count(2)
        yield 1
        numbers.append(steps.number)
        steps.count(0)
        yield 2
        numbers.append(steps.number)

    run = job(go).start()
    assert (RunState.SUCCEEDED, 33) == (run.state, run.progress.done)
    assert [1, 2, 3] == numbers


@pytest.mark.parametrize("items", [-1, 2.5, True, "3"])
def test_what_is_no_number_of_items_is_refused(kit: BatchKit, items: Any):
    def go(steps: Steps[int]) -> Iterator[int]:
        steps.count(items)
        yield 1

    run = job(go).start()
    assert run.error is not None
    assert "a number of items" in run.error.message


def test_the_same_cursor_may_be_yielded_again(kit: BatchKit, done: Ledger):
    """The place can be in the data itself: a loop that deletes what it has done."""
    with done.engine.begin() as tx:
        tx.execute(insert(ledger), [{"item": item} for item in range(5)])

    def empty(steps: Steps[str]) -> Iterator[str]:
        while (item := steps.session.scalars(select(ledger.c.item).limit(1)).first()) is not None:
            steps.session.execute(ledger.delete().where(ledger.c.item == item))
            yield "emptying"

    run = started(kit, job(empty))
    worked(kit, run, stops_at=2)
    assert 3 == done.count()
    worked(kit, run)
    assert (RunState.SUCCEEDED, 0) == (run.state, done.count())


def test_what_is_to_be_called_after_a_commit_is_called_then_and_once(kit: BatchKit, done: Ledger):
    counts: list[int] = []
    fails = [True]

    def go(steps: Steps[int]) -> Iterator[int]:
        for item in range(steps.cursor or 0, 3):
            write(steps, item)
            steps.after_commit(lambda: counts.append(done.count()))
            yield item + 1
        steps.after_commit(lambda: counts.append(-done.count()))
        if fails:
            fails.clear()
            raise ValueError

    run = job(go).start()
    assert ([1, 2, 3], RunState.FAILED) == (counts, run.state)
    run.resume()
    assert [1, 2, 3, -3] == counts


# The end


@pytest.mark.parametrize("writes_behind_the_last_yield", [True, False])
def test_a_crash_behind_the_last_commit_does_not_do_the_end_again(
    kit: BatchKit, done: Ledger, writes_behind_the_last_yield: bool
):
    calls: list[object] = []

    def count(steps: Steps[int]) -> Iterator[int]:
        calls.append(steps.cursor)
        for item in range(steps.cursor or 0, 3):
            write(steps, item)
            yield item + 1
        if writes_behind_the_last_yield:
            write(steps, -1)

    def crash(lease: Lease) -> None:
        if lease.seq == 4:
            raise SystemExit

    run = started(kit, job(count))
    with Stop() as stop, pytest.raises(SystemExit):
        kit.work_run(run.id, stop=stop, watch=crash)
    assert (RunState.QUEUED, 4, 3) == (run.refresh().state, run.progress.done, run.partitions()[0].cursor)
    worked(kit, run)
    assert (RunState.SUCCEEDED, 4, [None]) == (run.state, run.progress.done, calls)
    assert [-1] * writes_behind_the_last_yield + [0, 1, 2] == done.items()


@pytest.mark.parametrize("request_", ["pause", "cancel"])
def test_a_pause_in_the_last_step_comes_too_late_and_a_cancel_does_not(server_url: str, request_: str):
    made_ledger = Ledger(server_url)
    with closing(BatchKit(server_url, queue=InlineQueue())) as kit:
        kit.migrate()

        def go(steps: Steps[int]) -> Iterator[int]:
            yield 1
            write(steps, 1)
            getattr(kit.run(steps.run_id), request_)()

        run = job(go).start()
    assert {"pause": RunState.SUCCEEDED, "cancel": RunState.CANCELLED}[request_] is run.state
    assert [1] == made_ledger.items()
    made_ledger.engine.dispose()


# What stops a step


def test_an_error_rolls_back_to_the_last_yield_and_resume_goes_on_there(kit: BatchKit, done: Ledger):
    fails = [True]

    def count(steps: Steps[int]) -> Iterator[int]:
        for item in range(steps.cursor or 0, 6):
            write(steps, item)
            if item == 4 and fails:
                raise ValueError("no page 4")
            yield item + 1

    run = job(count).start()
    assert (RunState.FAILED, 4) == (run.state, run.progress.done)
    assert run.error is not None
    assert ("ValueError", "no page 4", "4") == (run.error.type, run.error.message, run.error.cursor)
    assert "in count" in run.error.traceback
    assert [0, 1, 2, 3] == done.items()
    with pytest.raises(NoFailures):
        run.retry_failures()
    fails.clear()
    assert RunState.SUCCEEDED == run.resume().state
    assert list(range(6)) == done.items()


def test_a_step_is_tried_again_as_the_policy_says_by_a_new_generator(kit: BatchKit, done: Ledger):
    calls: list[object] = []
    attempts: list[int] = []

    def count(steps: Steps[int]) -> Iterator[int]:
        calls.append(steps.cursor)
        for item in range(steps.cursor or 0, 3):
            write(steps, item)
            attempts.append(steps.attempt)
            if item == 1 and steps.attempt < 3:
                raise ConnectionError("the API was away")
            yield item + 1

    policy = Retrying(stop=stop_after_attempt(3), wait=wait_none(), retry=retry_if_exception_type(ConnectionError))
    run = job(count, retry=policy).start()
    assert (RunState.SUCCEEDED, 4, 2) == (run.state, run.progress.done, run.retries), run.error
    assert ([None, 1, 1], [1, 1, 2, 3, 1]) == (calls, attempts)
    assert [0, 1, 2] == done.items()


def test_a_refused_write_at_a_yield_closes_the_generator_and_fails_the_run(kit: BatchKit, done: Ledger):
    Base.metadata.create_all(done.engine)
    closed: list[str] = []

    def go(steps: Steps[int]) -> Iterator[int]:
        try:
            steps.session.add(Account(id=1, total=0))
            yield 1
            steps.session.add_all([Account(id=2, total=0), Account(id=3, total=None)])
            yield 2
        except GeneratorExit:
            closed.append("exit")
            raise

    run = job(go).start()
    assert (RunState.FAILED, 1, ["exit"]) == (run.state, run.progress.done, closed)
    assert run.error is not None
    assert "IntegrityError" in run.error.type
    with Session(done.engine) as session:
        assert [1] == list(session.scalars(select(Account.id)))


def test_a_write_that_is_refused_at_a_yield_is_tried_again_by_a_new_generator(kit: BatchKit, done: Ledger):
    Base.metadata.create_all(done.engine)
    calls: list[object] = []

    def go(steps: Steps[int]) -> Iterator[int]:
        calls.append(steps.cursor)
        for item in range(steps.cursor or 0, 3):
            write(steps, item)
            steps.session.add(Account(id=item + 1, total=None if steps.attempt < 3 and item == 1 else 0))
            yield item + 1

    run = job(go, retry=Retrying(stop=stop_after_attempt(3), wait=wait_none())).start()
    assert (RunState.SUCCEEDED, 4) == (run.state, run.progress.done), run.error
    assert ([None, 1, 1], [0, 1, 2]) == (calls, done.items())


@pytest.mark.parametrize("yielded", [None, object(), {1: 2}])
def test_what_is_no_cursor_fails_the_run_at_once_with_the_line_that_yielded_it(
    kit: BatchKit, done: Ledger, yielded: Any
):
    calls: list[object] = []

    def go(steps: Steps[Any]) -> Iterator[Any]:
        calls.append(steps.cursor)
        write(steps, 1)
        yield yielded

    policy = Retrying(stop=stop_after_attempt(3), wait=wait_none())
    run = job(go, retry=policy).start()
    assert (RunState.FAILED, 0, []) == (run.state, run.progress.done, done.items())
    assert run.error is not None
    assert "test_resumables.py:" in run.error.message
    assert ("InvalidCursor" if yielded is None else "NotSerializable") in run.error.type
    assert 1 == len(calls)


def _session_at_hand(steps: Steps[Any], session: Session, connection: Any) -> None:
    session.execute(insert(ledger), [{"item": -1}])


def _connection_at_hand(steps: Steps[Any], session: Session, connection: Any) -> None:
    connection.execute(insert(ledger), [{"item": -1}])


def _raw_connection(steps: Steps[Any], session: Session, connection: Any) -> None:
    connection.exec_driver_sql("INSERT INTO ledger (item) VALUES (-1)")


def _session_of_steps(steps: Steps[Any], session: Session, connection: Any) -> None:
    with pytest.raises(NoStep, match="is being worked"):
        steps.session.execute(insert(ledger), [{"item": -1}])
    with pytest.raises(NoStep):
        steps.connection.execute(insert(ledger), [{"item": -1}])
    with pytest.raises(NoStep):
        steps.after_commit(lambda: None)


@pytest.mark.parametrize("way", ["stopped", "failed"])
@pytest.mark.parametrize("writes", [_session_at_hand, _connection_at_hand, _raw_connection, _session_of_steps])
def test_a_finally_block_of_a_generator_that_is_closed_writes_nothing(
    kit: BatchKit, done: Ledger, writes: Any, way: str, caplog: pytest.LogCaptureFixture
):
    tries: list[object] = []

    def go(steps: Steps[int]) -> Iterator[int]:
        tries.append(steps.cursor)
        session, connection = steps.session, steps.connection
        try:
            for item in range(steps.cursor or 0, 4):
                write(steps, item)
                if way == "failed" and item == 1 and len(tries) == 1:
                    # Refused at the yield, where the generator stands.
                    session.add(Account(id=1, total=None))
                yield item + 1
        except GeneratorExit:
            tries.append("closed")
            assert steps.cursor in {1, 2}
            writes(steps, session, connection)

    Base.metadata.create_all(done.engine)
    run = started(kit, job(go))
    with caplog.at_level(logging.WARNING, logger="batchkit"):
        worked(kit, run, stops_at=2)
    assert (RunState.QUEUED if way == "stopped" else RunState.FAILED) is run.state
    assert list(range(run.progress.done)) == done.items()
    if writes is not _session_of_steps:
        assert "a generator raised when it was closed" in caplog.text
    if way == "failed":
        run.resume()
    else:
        worked(kit, run)
    assert (RunState.SUCCEEDED, [0, 1, 2, 3]) == (run.refresh().state, done.items())
    assert [None, "closed", 2 if way == "stopped" else 1] == tries


def test_a_generator_that_goes_on_when_it_is_closed_changes_nothing(kit: BatchKit, done: Ledger):
    def go(steps: Steps[int]) -> Iterator[int]:
        for item in range(steps.cursor or 0, 4):
            write(steps, item)
            try:
                yield item + 1
            except GeneratorExit:
                yield item + 2

    run = started(kit, job(go))
    worked(kit, run, stops_at=2)
    assert (RunState.QUEUED, 2) == (run.state, run.progress.done)
    worked(kit, run)
    assert (RunState.SUCCEEDED, [0, 1, 2, 3]) == (run.state, done.items())


@pytest.mark.parametrize("way", ["signal", "slice time"])
def test_a_generator_is_closed_before_its_partition_is_given_back(kit: BatchKit, done: Ledger, way: str):
    held: list[bool] = []

    def go(steps: Steps[int]) -> Iterator[int]:
        try:
            yield from range(steps.cursor or 1, 5)
        finally:
            held.append(kit.run(steps.run_id).partitions()[0].is_held)

    made = job(go, slice_time=0.000001)
    run = started(kit, made)
    if way == "signal":
        worked(kit, run, stops_at=2)
    else:
        with Stop() as stop:
            kit._worker.work_partition(run.id, 0, stop=stop)  # noqa: SLF001  one slice
    assert (RunState.QUEUED, [True]) == (run.refresh().state, held)


def test_a_savepoint_that_is_open_at_a_yield_is_noticed(kit: BatchKit, done: Ledger):
    def go(steps: Steps[int]) -> Iterator[int]:
        with steps.session.begin_nested():
            write(steps, 1)
            yield 1
            write(steps, 2)
        yield 2

    run = job(go).start()
    assert (RunState.FAILED, 1, [1]) == (run.state, run.progress.done, done.items())


@pytest.mark.parametrize("rows", ["core", "stream"])
def test_a_result_that_is_open_at_a_yield_is_cut_off_there_on_all_databases(kit: BatchKit, done: Ledger, rows: str):
    with done.engine.begin() as tx:
        tx.execute(insert(ledger), [{"item": item} for item in range(5)])

    def read_on(steps: Steps[int]) -> Iterator[int]:
        statement = select(ledger.c.item).order_by(ledger.c.item)
        result: Any = steps.connection.execute(statement)
        if rows == "stream":
            result = steps.session.scalars(statement.execution_options(yield_per=2))
        for number, _ in enumerate(result):
            yield number

    run = job(read_on).start()
    assert RunState.FAILED == run.state
    assert run.error is not None
    assert ("batchkit.errors.ResultCutOff", True) == (run.error.type, ".all()" in run.error.message)
    assert 1 <= run.progress.done < 5


def test_results_that_were_read_or_are_not_wanted_any_more_disturb_nobody(kit: BatchKit, done: Ledger):
    Base.metadata.create_all(done.engine)
    with Session(done.engine) as session, session.begin():
        session.add_all([Account(id=number, total=number) for number in range(1, 4)])
        session.execute(insert(ledger), [{"item": 1}, {"item": 2}])

    def go(steps: Steps[int]) -> Iterator[int]:
        for account in steps.session.scalars(select(Account).where(Account.id > (steps.cursor or 0))):
            unread = steps.connection.execute(select(ledger.c.item))
            assert 1 == unread.fetchone()[0]  # type: ignore[index]
            assert 1 == next(iter(steps.connection.execute(select(ledger.c.item))))[0]
            account.total *= 10
            yield account.id

    run = job(go).start()
    assert RunState.SUCCEEDED == run.state, run.error
    with Session(done.engine) as session:
        assert [10, 20, 30] == list(session.scalars(select(Account.total).order_by(Account.id)))


def test_a_transaction_that_the_function_ends_fails_the_run_and_commit_is_a_flush(kit: BatchKit, done: Ledger):
    def go(steps: Steps[int]) -> Iterator[int]:
        write(steps, 1)
        steps.session.commit()
        write(steps, 2)
        yield 1
        write(steps, 3)
        steps.session.rollback()
        yield 2

    run = job(go).start()
    assert (RunState.FAILED, 1, [1, 2]) == (run.state, run.progress.done, done.items())
    assert run.error is not None
    assert "ChunkTorn" in run.error.type


def test_a_pause_and_a_slice_that_is_over_close_the_generator_at_a_yield(database_url: str):
    made_ledger = Ledger(database_url)
    calls: list[object] = []

    def count(steps: Steps[int]) -> Iterator[int]:
        calls.append(steps.cursor)
        for item in range(steps.cursor or 0, 4):
            write(steps, item)
            # SQLite has one writer, and here it is the step: somebody else pauses it between two.
            steps.after_commit(lambda: kit.run(run.id).pause() if steps.number == 2 else None)
            yield item + 1

    with closing(BatchKit(database_url, queue=InlineQueue())) as kit:
        kit.migrate()
        made = job(count, slice_time=0.000001)
        run = started(kit, made)
        with Stop() as stop:
            worker = kit._worker  # noqa: SLF001  the only way to work one slice
            while (outcome := worker.work_next(queues=None, stop=stop)) is not None:
                assert 1 >= outcome.chunks
        assert (RunState.PAUSED, 2) == (run.refresh().state, run.progress.done)
        assert [None, 1] == calls
        run.resume()
        assert RunState.SUCCEEDED == run.refresh().state
    # That queue works in one slice.
    assert [None, 1, 2] == calls
    assert [0, 1, 2, 3] == made_ledger.items()
    made_ledger.engine.dispose()


def test_a_step_that_would_outlive_the_grace_is_undone_and_handed_on(database_url: str):
    made_ledger = Ledger(database_url)
    began = threading.Event()
    blocks: list[str] = []

    def count(steps: Steps[int]) -> Iterator[int]:
        for item in range(steps.cursor or 0, 3):
            write(steps, item)
            if item == 1 and not began.is_set():
                began.set()
                try:
                    time.sleep(3600)  # the step that never ends
                finally:
                    blocks.append("finally")
            yield item + 1

    with closing(BatchKit(database_url, queue=LocalQueue(), grace=2.5)) as kit:
        kit.migrate()
        run = started(kit, job(count))
        with Stop() as stop:

            def ask() -> None:
                began.wait()
                stop.request("SIGTERM")

            asking = threading.Thread(target=ask)
            asking.start()
            outcome = kit.work_run(run.id, stop=stop)
            asking.join()
        assert outcome is not None
        assert (Ending.INTERRUPTED, ["finally"]) == (outcome.ending, blocks)
        assert (RunState.QUEUED, 1, [0]) == (run.refresh().state, run.progress.done, made_ledger.items())
        worked(kit, run)
    assert (RunState.SUCCEEDED, [0, 1, 2]) == (run.state, made_ledger.items())
    made_ledger.engine.dispose()


def test_a_worker_whose_lease_was_taken_commits_nothing_and_does_not_close_its_generator_into_it(server_url: str):
    made_ledger = Ledger(server_url)
    taken: list[int] = []
    closed: list[object] = []

    def count(steps: Steps[int]) -> Iterator[int]:
        session = steps.session
        try:
            for item in range(steps.cursor or 0, 4):
                write(steps, item)
                if item == 2 and not taken:
                    taken.append(item)
                    with made_ledger.engine.begin() as tx:
                        tx.execute(text("UPDATE batchkit_partition SET fence = fence + 1, lease_expires_at = NULL"))
                yield item + 1
        except GeneratorExit:
            closed.append(steps.cursor)
            session.execute(insert(ledger), [{"item": -1}])

    with closing(BatchKit(server_url, queue=LocalQueue())) as kit:
        kit.migrate()
        run = started(kit, job(count))
        with Stop() as stop:
            (number,) = [partition.number for partition in run.partitions()]
            outcome = kit._worker.work_partition(run.id, number, stop=stop)  # noqa: SLF001  one slice
        assert outcome is not None
        assert (Ending.LOST, [2]) == (outcome.ending, closed)
        assert (2, [0, 1]) == (run.refresh().progress.done, made_ledger.items())
        kit.recover()
        worked(kit, run)
    assert (RunState.SUCCEEDED, 5, [0, 1, 2, 3]) == (run.state, run.progress.done, made_ledger.items())
    made_ledger.engine.dispose()


# Trying out


def test_a_run_begins_behind_a_cursor_and_ends_after_so_many_steps(kit: BatchKit, done: Ledger):
    made = job(count_to(20), finish=lambda finish: finish.done)
    run = made.using(after=10, limit=3).start()
    assert (RunState.SUCCEEDED, 3, None, 3) == (run.state, run.progress.done, run.progress.total, run.result)
    assert [10, 11, 12] == done.items()
    assert [19] == [*done.items(), *_more(made.using(after=19).start(), done)][-1:]
    with pytest.raises(InvalidStart, match="after is a cursor"):
        made.using(after=object()).start()


def _more(run: Run, done: Ledger) -> list[int]:
    assert RunState.SUCCEEDED == run.state
    return done.items()


def test_a_dry_run_rolls_each_step_back_and_moves_on_all_the_same(kit: BatchKit, done: Ledger):
    Base.metadata.create_all(done.engine)
    with Session(done.engine) as session, session.begin():
        session.add(Account(id=1, total=5))
    totals: list[int] = []

    def go(steps: Steps[int]) -> Iterator[int]:
        assert steps.is_dry_run
        account = steps.session.get_one(Account, 1)
        for step in range(1, 4):
            write(steps, step)
            account.total += 1
            totals.append(account.total)
            steps.after_commit(lambda: totals.append(-1))
            yield step

    run = job(go).using(dry_run=True).start()
    assert (RunState.SUCCEEDED, 4, []) == (run.state, run.progress.done, done.items()), run.error
    assert [6, 6, 6] == totals
    with Session(done.engine) as session:
        assert 5 == session.scalars(select(Account.total)).one()


# Where the session is another database's, and where the code is another


def test_writes_in_another_database_are_committed_before_the_cursor(sqlite_url: str, postgres_url: str):
    made_ledger = Ledger(postgres_url)
    elsewhere = create_engine(postgres_url)

    def count(steps: Steps[int]) -> Iterator[int]:
        for item in range(steps.cursor or 0, 4):
            write(steps, item)
            yield item + 1

    with closing(BatchKit(sqlite_url, queue=InlineQueue(), session_factory=sessionmaker(elsewhere))) as kit:
        kit.migrate()
        run = started(kit, job(count))
        worked(kit, run, stops_at=2)
        worked(kit, run)
    assert ("at-least-once", RunState.SUCCEEDED) == (run.delivery, run.state)
    assert [0, 1, 2, 3] == made_ledger.items()
    elsewhere.dispose()
    made_ledger.engine.dispose()


def test_a_factory_of_the_users_keeps_its_session_over_the_steps(database_url: str):
    made_ledger = Ledger(database_url)
    engine = create_engine(database_url)
    Base.metadata.create_all(engine)

    class Own(Session):
        pass

    seen: list[int] = []

    def go(steps: Steps[int]) -> Iterator[int]:
        account = Account(id=1, total=0)
        steps.session.add(account)
        assert isinstance(steps.session, Own)
        for step in range(1, 4):
            account.total += step
            write(steps, step)
            yield step
            seen.append(account.total)

    with closing(BatchKit(engine, queue=InlineQueue(), session_factory=sessionmaker(engine, class_=Own))) as kit:
        kit.migrate()
        run = job(go).start()
    assert ("exactly-once", RunState.SUCCEEDED, [1, 3, 6]) == (run.delivery, run.state, seen), run.error
    assert [1, 2, 3] == made_ledger.items()
    engine.dispose()
    made_ledger.engine.dispose()


def test_a_run_of_a_batched_job_is_left_to_workers_with_that_code(sqlite_url: str):
    name = f"tests.resumable{next(_names)}"
    fails = [True]

    def work(chunk: Any) -> None:
        if fails:
            raise ValueError

    with closing(BatchKit(sqlite_url)) as kit:
        kit.migrate()
        batched(span(5), name=name)(work)
        run = kit.start_run_here(JOBS[name], "{}")
        worked(kit, run)
        assert RunState.FAILED == run.state
        JOBS._jobs.pop(name)  # noqa: SLF001  as a deploy does
        resumable(name=name)(count_to(3))
        run.resume()
        assert Ending.DECLINED is worked(kit, run).ending
        assert "resumable" in str(run.refresh().waiting_reason)
