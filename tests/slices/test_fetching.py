"""What a source asks others is asked before the chunk's transaction begins, and its errors are judged by the policy."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, stop_after_attempt

from batchkit import BatchKit, Chunk, RunState, items, json_lines, nested, pages, rows, stream
from tests.slices.conftest import Ledger, job, ledger, write


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)


def _fetch(token: int | None) -> tuple[list[int], int | None]:
    begin = token or 0
    return list(range(begin, begin + 10)), begin + 10 if begin < 40 else None


def test_pages_are_fetched_while_nothing_is_locked(kit: BatchKit, done: Ledger):
    database = kit._store.database  # noqa: SLF001  it knows who is inside a transaction
    inside: list[bool] = []

    def fetch(token: int | None) -> tuple[list[int], int | None]:
        inside.append(bool(database.writing_threads))
        return _fetch(token)

    run = job(lambda: pages(fetch), write, chunk_size=7).start()
    assert (RunState.SUCCEEDED, 50, list(range(50))) == (run.state, run.progress.done, done.items())
    assert [False] * 5 == inside


def test_pages_in_rows_are_fetched_while_nothing_is_locked(kit: BatchKit, done: Ledger):
    Base.metadata.create_all(done.engine)
    with Session(done.engine) as session, session.begin():
        session.add_all([Account(id=number) for number in (1, 2, 3, 4)])
    database = kit._store.database  # noqa: SLF001  it knows who is inside a transaction
    inside: list[bool] = []

    def inner(account: Account) -> Any:
        number = account.id

        def fetch(_: int | None) -> tuple[list[int], int | None]:
            inside.append(bool(database.writing_threads))
            return [] if number == 2 else [number * 10, number * 10 + 1, number * 10 + 2], None

        return pages(fetch)

    def work(chunk: Chunk[Any]) -> None:
        assert all(account in chunk.session for account, _ in chunk)
        chunk.connection.execute(insert(ledger), [{"item": item} for _, item in chunk])

    run = job(lambda: nested(rows(select(Account), key=Account.id), inner), work, chunk_size=2).start()
    assert (RunState.SUCCEEDED, 9) == (run.state, run.progress.done), run.error
    assert [10, 11, 12, 30, 31, 32, 40, 41, 42] == done.items()
    assert not any(inside)


def test_a_fetch_that_fails_is_tried_again_as_the_policy_says_and_fails_no_item(kit: BatchKit, done: Ledger):
    failures = iter([True, True])

    def fetch(token: int | None) -> tuple[list[int], int | None]:
        if token == 20 and next(failures, False):
            raise ConnectionError
        return _fetch(token)

    run = job(lambda: pages(fetch), write, chunk_size=10, retry=Retrying(stop=stop_after_attempt(5))).start()
    assert (RunState.SUCCEEDED, 50, 0, 2) == (run.state, run.progress.done, run.progress.failed, run.retries)
    failures = iter([True])
    run = job(lambda: pages(fetch), write, chunk_size=10).start()
    assert (RunState.FAILED, 20, 0) == (run.state, run.progress.done, run.progress.failed)
    run.resume()
    assert (RunState.SUCCEEDED, 50) == (run.refresh().state, run.progress.done)


def test_the_next_page_is_fetched_while_this_one_is_worked(kit: BatchKit, done: Ledger):
    asked = {token: threading.Event() for token in (None, 10, 20, 30, 40)}
    failures = iter([True])

    def fetch(token: int | None) -> tuple[list[int], int | None]:
        asked[token].set()
        if token == 20 and next(failures, False):
            raise ConnectionError
        return _fetch(token)

    def work(chunk: Chunk[int]) -> None:
        following = asked.get(chunk[-1] + 1)
        assert following is None or following.wait(20), "nobody asks for the next page"
        write(chunk)

    source = lambda: pages(fetch, ahead=True)  # noqa: E731  as those below
    run = job(source, work, chunk_size=10, retry=Retrying(stop=stop_after_attempt(2))).start()
    assert (RunState.SUCCEEDED, 50, 0, 1) == (run.state, run.progress.done, run.progress.failed, run.retries), run.error
    assert list(range(50)) == done.items()


@pytest.mark.parametrize(
    "source", [lambda: pages(_fetch), lambda: pages(_fetch, ahead=True), lambda: stream(lambda: range(50))]
)
def test_an_item_that_fails_is_found_in_what_was_fetched(kit: BatchKit, done: Ledger, source: Any):
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if 13 in chunk:
            raise ValueError

    run = job(source, work, chunk_size=8, max_failures=1).start()
    assert (RunState.SUCCEEDED, 49, 1) == (run.state, run.progress.done, run.progress.failed)
    assert [number for number in range(50) if number != 13] == done.items()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (
            lambda length: pages(lambda _: (list(range(length)), None)),
            "had more than 15 items when some of them were done",
        ),
        (lambda length: stream(lambda: range(length)), "but 16 of its items were done"),
    ],
    ids=["pages", "stream"],
)
def test_a_run_does_not_go_on_with_less_than_was_done_and_does_once_it_is_back(
    kit: BatchKit, done: Ledger, make: Any, problem: str
):
    length, is_bad = 50, True

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if is_bad and 16 in chunk:
            raise ValueError

    run = job(lambda: make(length), work, chunk_size=8).start()
    assert (RunState.FAILED, 16) == (run.state, run.progress.done)
    length, is_bad = 12, False
    run.resume()
    assert (RunState.FAILED, 16) == (run.refresh().state, run.progress.done)
    assert run.error is not None
    assert problem in run.error.message
    length = 50
    run.resume()
    assert (RunState.SUCCEEDED, 50) == (run.refresh().state, run.progress.done)
    assert list(range(50)) == done.items()


def test_a_token_that_comes_again_fails_the_run_and_no_item(kit: BatchKit, done: Ledger):
    tokens: dict[int | None, int] = {None: 1, 1: 2, 2: 1}
    run = job(lambda: pages(lambda token: ([token or 0], tokens[token])), write, chunk_size=1).start()
    assert (RunState.FAILED, [0, 1], 0) == (run.state, done.items(), run.progress.failed)
    assert run.error is not None
    assert "round for ever" in run.error.message


@pytest.mark.parametrize("content", [b"1\n", b"1\n2\n3\n4\n5\n"], ids=["shorter", "longer"])
@pytest.mark.parametrize("scheme", ["", "file://"], ids=["local", "url"])
def test_a_file_that_changes_during_a_run_is_read_no_further(
    kit: BatchKit, done: Ledger, tmp_path: Path, scheme: str, content: bytes
):
    path = tmp_path / "numbers.jsonl"
    path.write_bytes(b"1\n2\n3\n4\n")

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if 2 in chunk:
            raise ValueError

    run = job(lambda: json_lines(f"{scheme}{path}"), work, chunk_size=1).start()
    assert (RunState.FAILED, [1]) == (run.state, done.items())
    path.write_bytes(content)
    run.resume()
    assert (RunState.FAILED, [1]) == (run.refresh().state, done.items())
    assert run.error is not None
    assert "SourceChanged" in run.error.type


def test_a_function_that_changes_the_key_of_its_items_is_told_of_once(
    kit: BatchKit, done: Ledger, caplog: pytest.LogCaptureFixture
):
    Base.metadata.create_all(done.engine)
    with Session(done.engine) as session, session.begin():
        session.add_all([Account(id=number) for number in range(1, 7)])

    def work(chunk: Chunk[Account]) -> None:
        for account in chunk:
            account.id = -account.id

    with caplog.at_level(logging.WARNING, logger="batchkit"):
        run = job(lambda: rows(select(Account), key=Account.id), work, chunk_size=2).start()
    assert 6 == run.progress.done
    assert 1 == caplog.text.count("changes the key")


def test_a_source_for_all_slices_shares_no_iterator_between_two_runs(kit: BatchKit, done: Ledger):
    made = job(stream(lambda: range(5)), write, chunk_size=2)
    assert [5, 5] == [made.start().progress.done, made.start().progress.done]
    assert 5 == job(items([1, 2, 3, 4, 5]), write).start().progress.done
