"""A function of one item: chunks all the same, and an item that fails leaves the others of its chunk alone."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
from sqlalchemy import String, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from batchkit import BatchKit, Run, RunState, batched, current_chunk, current_session, rows, span
from batchkit.errors import InvalidJob, NoChunk
from tests.slices.conftest import Ledger, ledger

_names = itertools.count()


def _each(function: Any, items: int = 100, **options: Any) -> Any:
    return batched.each(span(items), name=f"tests.each{next(_names)}", **options)(function)


def _write(item: int) -> None:
    current_session().execute(insert(ledger), {"item": item})


def _counts(run: Run) -> tuple[RunState, int, int]:
    return (run.state, run.progress.done, run.progress.failed)


def test_each_item_is_done_once_in_chunks(kit: BatchKit, done: Ledger):
    chunks: set[int] = set()

    def work(item: int) -> None:
        _write(item)
        chunks.add(current_chunk().number)

    run = _each(work, chunk_size=30).start()
    assert (RunState.SUCCEEDED, 100, 0) == _counts(run)
    assert {1, 2, 3, 4} == chunks
    assert list(range(100)) == done.items()


def test_items_that_fail_are_recorded_and_leave_the_others_alone(kit: BatchKit, done: Ledger):
    calls: list[int] = []

    def work(item: int) -> None:
        calls.append(item)
        _write(item)
        if item % 10 == 7:
            # What the database refuses breaks the whole transaction on PostgreSQL, but for the savepoint.
            current_session().execute(text("INSERT INTO no_such_table VALUES (1)"))

    run = _each(work, chunk_size=50, max_failures=10).start()
    assert (RunState.SUCCEEDED, 90, 10) == _counts(run)
    assert [item for item in range(100) if item % 10 != 7] == done.items()
    assert [str(item) for item in range(7, 100, 10)] == [each.cursor for each in run.failures()]
    # Once up to the first that fails, and once apart.
    assert 2 * (8 + 50) == len(calls)


def test_what_is_written_in_the_core_is_rolled_back_with_its_item(kit: BatchKit, done: Ledger):
    def work(item: int) -> None:
        current_chunk().connection.execute(insert(ledger), {"item": item})
        if item == 3:
            raise ValueError

    run = _each(work, items=10, max_failures=1).start()
    assert (RunState.SUCCEEDED, 9, 1) == _counts(run)
    assert 3 not in done.items()


class Base(DeclarativeBase):
    pass


class Member(Base):
    __tablename__ = "members"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(100))


def test_an_object_that_cannot_be_flushed_leaves_the_others_alone(kit: BatchKit, done: Ledger):
    Base.metadata.create_all(done.engine)
    with Session(done.engine) as session, session.begin():
        session.add_all([Member(id=i, email=f"{i}@x") for i in range(1, 31)])

    def work(member: Member) -> None:
        member.email = member.email.upper()
        if member.id == 7:
            member.email = None  # type: ignore[assignment]

    made = batched.each(rows(select(Member), key=Member.id), name="tests.members", chunk_size=10, max_failures=1)(work)
    run = made.start()
    assert (RunState.SUCCEEDED, 29, 1) == _counts(run)
    assert "IntegrityError" in run.failures()[0].error_type
    with Session(done.engine) as session:
        emails = {member.id: member.email for member in session.query(Member)}
    assert {i: f"{i}@x" if i == 7 else f"{i}@X" for i in range(1, 31)} == emails


def test_the_first_item_that_fails_fails_the_run_behind_those_before_it(kit: BatchKit, done: Ledger):
    bad = {42}

    def work(item: int) -> None:
        _write(item)
        if item in bad:
            raise LookupError(f"no customer {item}")

    run = _each(work, chunk_size=30).start()
    assert (RunState.FAILED, 42, 0) == _counts(run)
    assert run.error is not None
    assert ("LookupError", "no customer 42", "41", "42") == (
        run.error.type,
        run.error.message,
        run.error.cursor,
        run.error.item,
    )
    bad.clear()
    run.resume()
    assert (RunState.SUCCEEDED, 100, 0) == _counts(run)
    assert list(range(100)) == done.items()


def test_one_more_than_is_allowed_fails_the_run_in_front_of_it(kit: BatchKit, done: Ledger):
    def work(item: int) -> None:
        _write(item)
        if item in {5, 6, 20}:
            raise ValueError(item)

    run = _each(work, chunk_size=50, max_failures=2).start()
    assert (RunState.FAILED, 18, 2) == _counts(run)
    assert run.error is not None
    assert ("19", "20") == (run.error.cursor, run.error.item)
    assert [item for item in range(20) if item not in {5, 6}] == done.items()


def test_a_commit_of_the_session_in_the_middle_of_an_item_is_a_flush(kit: BatchKit, done: Ledger):
    def work(item: int) -> None:
        _write(item)
        current_session().commit()
        if item == 5:
            raise ValueError

    run = _each(work, items=20, chunk_size=10, max_failures=1).start()
    assert (RunState.SUCCEEDED, 19, 1) == _counts(run)
    assert [item for item in range(20) if item != 5] == done.items()


def test_the_policy_is_for_the_chunk_and_then_the_items_are_apart(kit: BatchKit, done: Ledger):
    attempts: list[int] = []

    def work(item: int) -> None:
        _write(item)
        if item == 5:
            attempts.append(current_chunk().attempt)
            raise ConnectionError

    policy = Retrying(retry=retry_if_exception_type(ConnectionError), stop=stop_after_attempt(3))
    run = _each(work, items=20, chunk_size=10, max_failures=1, retry=policy).start()
    assert (RunState.SUCCEEDED, 19, 1) == _counts(run)
    assert [1, 2, 3, 4] == attempts
    assert (4, 2) == (run.failures()[0].attempts, run.retries)


def test_failures_are_tried_again(kit: BatchKit, done: Ledger):
    bad = {3, 4}

    def work(item: int) -> None:
        _write(item)
        if item in bad:
            raise ValueError

    run = _each(work, items=10, max_failures=2).start()
    bad.clear()
    assert (RunState.SUCCEEDED, 2, 0) == _counts(run.retry_failures())
    assert list(range(10)) == sorted(done.items())


def test_outside_of_a_chunk_there_is_none():
    for ask in (current_chunk, current_session):
        with pytest.raises(NoChunk):
            ask()


def test_a_thread_of_the_functions_own_is_told_that_it_has_none(kit: BatchKit, done: Ledger):
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            current_session()
        except NoChunk as error:
            errors.append(error)

    def work(item: int) -> None:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

    assert RunState.SUCCEEDED == _each(work, items=1).start().state
    assert 1 == len(errors)


def test_a_function_of_nothing_is_refused():
    def work() -> None: ...

    with pytest.raises(InvalidJob, match="takes nothing, but Item is its first parameter"):
        _each(work)
