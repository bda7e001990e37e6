"""Items that fail are found, recorded in the transaction that moves past them, and can be tried again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import pytest
from sqlalchemy import Engine, String, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from batchkit import BatchKit, Chunk, Run, RunState, rows, span
from batchkit.errors import InvalidJob, NoFailures
from batchkit.queues import InlineQueue
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Cut, cutter
from tests.slices.conftest import Ledger, job, ledger, write


class Picky:
    """A function that refuses some items."""

    def __init__(self, *bad: int) -> None:
        self.bad = set(bad)
        self.tries: list[int] = []

    def __call__(self, chunk: Chunk[int]) -> None:
        """Write the items, and refuse them all where one is bad."""
        self.tries.append(len(chunk))
        write(chunk)
        found = self.bad & set(chunk)
        if found:
            raise ValueError(f"item {min(found)} is bad")


def _picky(picky: Picky, items: int = 1000, **options: Any) -> Any:
    def work(chunk: Chunk[int]) -> None:
        picky(chunk)

    return job(span(items), work, **options)


def _without(bad: set[int], *, items: int = 1000) -> list[int]:
    return [item for item in range(items) if item not in bad]


def _counts(run: Run) -> tuple[RunState, int, int]:
    return (run.state, run.progress.done, run.progress.failed)


def test_one_bad_item_is_recorded_and_the_others_are_done(kit: BatchKit, done: Ledger):
    picky = Picky(333)
    run = _picky(picky, chunk_size=500, max_failures=1).start()
    assert (RunState.SUCCEEDED, 999, 1) == _counts(run)
    assert 100.0 == run.progress.percent
    assert _without({333}) == done.items()

    (failure,) = run.failures()
    assert (run.id, 0, "332", "333", "333") == (
        failure.run_id,
        failure.partition,
        failure.after,
        failure.cursor,
        failure.item,
    )
    assert ("ValueError", "item 333 is bad", 1) == (failure.error_type, failure.message, failure.attempts)
    assert "in __call__" in failure.traceback
    assert failure.resolved_at is None
    # Two full chunks and the rest of the first are no extra tries.
    assert len(picky.tries) <= 3 + 2 * 9


def test_bad_items_that_are_neighbours_the_first_and_the_last_are_found(kit: BatchKit, done: Ledger):
    bad = {0, 1, 2, 99, 100, 101, 998, 999}
    run = _picky(Picky(*bad), chunk_size=100, max_failures=8).start()
    assert (RunState.SUCCEEDED, 992, 8) == _counts(run)
    assert sorted(bad) == [int(each.cursor) for each in run.failures()]
    assert _without(bad) == done.items()


def test_one_more_than_is_allowed_fails_the_run_which_goes_on_once_the_code_is_mended(kit: BatchKit, done: Ledger):
    picky = Picky(5, 50, 500)
    run = _picky(picky, chunk_size=100, max_failures=2).start()
    assert (RunState.FAILED, 498, 2) == _counts(run)
    assert run.error is not None
    assert "max_failures=2" in run.error.message
    assert "item 500 is bad" in run.error.message
    assert ("499", "500") == (run.error.cursor, run.error.item)

    picky.bad.clear()
    run.resume()
    assert (RunState.SUCCEEDED, 998, 2) == _counts(run)
    assert _without({5, 50}) == done.items()


def test_a_share_is_judged_from_a_hundred_items_on(kit: BatchKit, done: Ledger):
    few = _picky(Picky(0, 1, 2), items=50, chunk_size=10, max_failures=0.02).start()
    assert (RunState.SUCCEEDED, 47, 3) == _counts(few)

    many = _picky(Picky(*range(0, 1000, 10)), chunk_size=50, max_failures=0.05).start()
    assert (RunState.FAILED, 90, 10) == _counts(many)
    assert "0.05 of the items" in str(many.error)


@pytest.mark.parametrize("max_failures", [-1, 1.5, True, "all", None])
def test_what_is_no_number_of_failures_is_refused(max_failures: Any):
    with pytest.raises(InvalidJob, match="max_failures"):
        job(span(1), write, max_failures=max_failures)


def test_the_function_gives_items_up_itself(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        for item in chunk:
            if item % 10 == 3:
                chunk.fail(item, KeyError("no such customer"))
            elif item % 10 == 7:
                chunk.fail(item, "no address")
            else:
                chunk.connection.execute(insert(ledger), {"item": item})

    run = job(span(100), work, chunk_size=25, max_failures=20).start()
    assert (RunState.SUCCEEDED, 80, 20) == _counts(run)
    assert [item for item in range(100) if item % 10 not in {3, 7}] == done.items()
    assert [(3, "KeyError", "2"), (7, "RuntimeError", "6")] == [
        (int(each.cursor), each.error_type, each.after) for each in run.failures(limit=2)
    ]


def test_a_chunk_with_too_many_given_up_is_rolled_back_whole(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        chunk.fail(chunk[0], "no")

    run = job(span(40), work, chunk_size=10, max_failures=2).start()
    assert (RunState.FAILED, 18, 2) == _counts(run)
    assert list(range(20)) == done.items()
    assert 2 == len(run.failures())


def test_only_items_of_the_chunk_can_be_given_up(kit: BatchKit, done: Ledger):
    errors: list[str] = []

    def work(chunk: Chunk[int]) -> None:
        for wrong in (5000, None):
            with pytest.raises(ValueError, match="not an item of this chunk") as error:
                chunk.fail(wrong, "no")  # type: ignore[arg-type]
            errors.append(str(error.value))

    assert RunState.SUCCEEDED == job(span(3), work).start().state
    assert 2 == len(errors)


def test_too_many_items_at_once_fail_nothing(kit: BatchKit, done: Ledger):
    """A statement that grows too long, an API that takes 30 at most: each item is good."""
    sizes: list[int] = []

    def work(chunk: Chunk[int]) -> None:
        if len(chunk) > 30:
            raise OverflowError(len(chunk))
        sizes.append(len(chunk))
        write(chunk)

    run = job(span(500), work, chunk_size=100).start()
    assert (RunState.SUCCEEDED, 500, 0) == _counts(run)
    assert list(range(500)) == done.items()
    assert 20 <= max(sizes)


def test_what_the_database_refuses_is_an_item_that_fails(kit: BatchKit, done: Ledger):
    with done.engine.begin() as tx:
        tx.execute(text("CREATE TABLE one (number INTEGER NOT NULL PRIMARY KEY)"))
        tx.execute(text("INSERT INTO one VALUES (17)"))

    def work(chunk: Chunk[int]) -> None:
        chunk.connection.execute(text("INSERT INTO one VALUES (:number)"), [{"number": item} for item in chunk])

    run = job(span(100), work, chunk_size=50, max_failures=1).start()
    assert (RunState.SUCCEEDED, 99, 1) == _counts(run)
    assert ["17"] == [each.cursor for each in run.failures()]
    assert "IntegrityError" in run.failures()[0].error_type


def test_what_is_refused_at_the_commit_is_an_item_that_fails(postgres_kit: BatchKit, postgres_done: Ledger):
    with postgres_done.engine.begin() as tx:
        tx.execute(text("CREATE TABLE parent (id INTEGER PRIMARY KEY)"))
        tx.execute(text("INSERT INTO parent SELECT n FROM generate_series(0, 99) n WHERE n <> 42"))
        tx.execute(text("CREATE TABLE child (id INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"))

    def work(chunk: Chunk[int]) -> None:
        chunk.connection.execute(text("INSERT INTO child VALUES (:id)"), [{"id": item} for item in chunk])

    run = job(span(100), work, chunk_size=32, max_failures=1).start()
    assert (RunState.SUCCEEDED, 99, 1) == _counts(run)
    assert ["42"] == [each.cursor for each in run.failures()]
    with postgres_done.engine.connect() as connection:
        assert 99 == connection.execute(text("SELECT count(*) FROM child")).scalar_one()


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(100))


def _customers(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([Customer(id=i, email=f"{i}@example.com") for i in range(1, 31)])


@pytest.mark.parametrize(
    ("describe_item", "shown"),
    [
        (None, "Customer(id=7, email='7@EXAMPLE.COM')"),
        (lambda customer: {"id": customer.id}, "{'id': 7}"),
        (lambda customer: customer.no_such, "a Customer that cannot be shown: 'Customer' object has no attribute"),
    ],
)
def test_an_item_is_shown_by_what_people_know_it_by(kit: BatchKit, done: Ledger, describe_item: Any, shown: str):
    _customers(done.engine)

    def work(chunk: Chunk[Customer]) -> None:
        for customer in chunk:
            customer.email = customer.email.upper()
            if customer.id == 7:
                # What the database says to it leaves the transaction broken on PostgreSQL.
                chunk.connection.execute(text("SELECT no_such_column"))

    made = job(
        rows(select(Customer), key=Customer.id), work, chunk_size=10, max_failures=1, describe_item=describe_item
    )
    run = made.start()
    assert (RunState.SUCCEEDED, 29, 1) == _counts(run)
    assert run.failures()[0].item.startswith(shown)


@pytest.mark.parametrize("cut", list(Cut))
def test_a_lost_reply_to_the_commit_of_a_failure_records_it_once(
    postgres_server: PostgresServer, postgres_url: str, postgres_done: Ledger, cut: Cut
):
    picky = Picky(3)
    with cutter(postgres_server.port) as wire:

        def work(chunk: Chunk[int]) -> None:
            if list(chunk) == [3]:
                # The next COMMIT is the one that moves past the item.
                wire.arm(cut)
            picky(chunk)

        url = postgres_url.replace(f":{postgres_server.port}/", f":{wire.port}/")
        with closing(BatchKit(url, queue=InlineQueue())) as kit:
            kit.migrate()
            run = job(span(20), work, chunk_size=10, max_failures=1).start()
            assert 1 == wire.cuts
            assert (RunState.SUCCEEDED, 19, 1) == _counts(run)
            assert ["3"] == [each.cursor for each in run.failures()]
    assert _without({3}, items=20) == postgres_done.items()


# Trying failures again


def test_mended_failures_are_tried_again_alone_and_resolved(kit: BatchKit, done: Ledger):
    picky = Picky(5, 50, 500)
    run = _picky(picky, chunk_size=100, max_failures=3).start()
    picky.bad = {500}
    picky.tries.clear()

    again = run.retry_failures()
    assert (RunState.SUCCEEDED, 2, 1, 3) == (*_counts(again), again.progress.total)
    assert (run.id, run.id) == (again.rerun_of, again.failures_of)
    assert 3 >= max(picky.tries)
    assert [True, True, False] == [each.resolved_at is not None for each in run.failures()]
    assert {again.id} == {each.retried_by for each in run.failures()}
    (still,) = [each for each in again.failures() if each.resolved_at is None]
    assert ("500", 2) == (still.cursor, still.attempts)

    picky.bad.clear()
    # From the run that tried them again: it is the same failures.
    last = again.retry_failures()
    assert (RunState.SUCCEEDED, 1, 0) == _counts(last)
    assert sorted(range(1000)) == done.items()
    with pytest.raises(NoFailures, match=run.id):
        run.retry_failures()


def test_failures_that_two_runs_try_again_at_once_are_done_once(postgres_kit: BatchKit, postgres_done: Ledger):
    picky = Picky(*range(0, 100, 2))
    meeting = threading.Barrier(2)
    is_second_time = threading.Event()

    def work(chunk: Chunk[int]) -> None:
        if is_second_time.is_set() and not meeting.broken:
            with suppress(threading.BrokenBarrierError):
                # Both have read the same failures.
                meeting.wait(timeout=10)
            meeting.abort()
        picky(chunk)

    run = job(span(100), work, chunk_size=10, max_failures=50).start()
    assert 50 == run.progress.failed
    picky.bad.clear()
    is_second_time.set()
    with ThreadPoolExecutor(2) as pool:
        again = list(pool.map(lambda _: run.retry_failures(), range(2)))
    assert {RunState.SUCCEEDED} == {each.refresh().state for each in again}
    assert 50 == sum(each.progress.done for each in again)
    assert list(range(100)) == postgres_done.items()
    assert not [each for each in run.failures() if each.resolved_at is None]


def test_a_row_that_is_gone_stays_an_open_failure(kit: BatchKit, done: Ledger):
    _customers(done.engine)
    bad = {7, 8}
    seen: list[int] = []

    def work(chunk: Chunk[Customer]) -> None:
        seen.extend(customer.id for customer in chunk)
        if bad & {customer.id for customer in chunk}:
            raise ValueError

    run = job(rows(select(Customer), key=Customer.id), work, chunk_size=10, max_failures=2).start()
    with done.engine.begin() as tx:
        tx.execute(text("DELETE FROM customers WHERE id = 7"))
    bad.clear()
    seen.clear()
    again = run.retry_failures()
    assert (RunState.SUCCEEDED, 1, 0) == _counts(again)
    assert [8] == seen
    assert ["7"] == [each.cursor for each in run.failures() if each.resolved_at is None]


@pytest.fixture
def postgres_kit(postgres_url: str) -> Iterator[BatchKit]:
    """Give a kit on PostgreSQL."""
    with closing(BatchKit(postgres_url, queue=InlineQueue())) as made:
        made.migrate()
        yield made


@pytest.fixture
def postgres_done(postgres_url: str) -> Iterator[Ledger]:
    """Give the ledger on PostgreSQL."""
    made = Ledger(postgres_url)
    yield made
    made.engine.dispose()
