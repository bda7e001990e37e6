"""The transaction of a chunk is not the function's to end, whatever it calls or sends."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from batchkit import BatchKit, Chunk, RunState, span
from batchkit.errors import ChunkTorn
from tests.slices.conftest import Ledger, job, ledger, write


def _commit_session(chunk: Chunk[int]) -> None:
    write(chunk)
    chunk.session.commit()


def test_a_commit_of_the_session_commits_nothing_by_itself(kit: BatchKit, done: Ledger):
    counts: list[int] = []

    def work(chunk: Chunk[int]) -> None:
        chunk.session.execute(insert(ledger), [{"item": item} for item in chunk])
        chunk.session.commit()
        counts.append(done.count())
        chunk.session.execute(insert(ledger), [{"item": -item} for item in chunk])
        if chunk.number == 2:
            raise ValueError

    run = job(span(1, 21), work, chunk_size=10).start()
    # The chunk of ten, then half of it and so on down to the first item, which fails as well.
    assert [0, 20, 20, 20, 20] == counts
    assert 10 == run.progress.done
    assert 20 == done.count()


def test_a_session_commit_in_the_middle_does_not_disturb_the_end(kit: BatchKit, done: Ledger):
    run = job(span(30), _commit_session, chunk_size=10).start()
    assert RunState.SUCCEEDED == run.state
    assert list(range(30)) == done.items()


def _commit_connection(chunk: Chunk[int]) -> None:
    chunk.connection.commit()


def _rollback_connection(chunk: Chunk[int]) -> None:
    chunk.connection.rollback()


def _rollback_session(chunk: Chunk[int]) -> None:
    chunk.session.rollback()


def _rollback_and_write_again(chunk: Chunk[int]) -> None:
    chunk.session.rollback()
    write(chunk)


def _commit_and_swallow(chunk: Chunk[int]) -> None:
    with contextlib.suppress(ChunkTorn):
        chunk.connection.commit()


def _raw_rollback(chunk: Chunk[int]) -> None:
    chunk.connection.exec_driver_sql("ROLLBACK")


@pytest.mark.parametrize(
    "tear",
    [
        _commit_connection,
        _rollback_connection,
        _rollback_session,
        _rollback_and_write_again,
        _commit_and_swallow,
        _raw_rollback,
    ],
)
def test_a_function_that_ends_its_transaction_fails_the_run_and_nothing_of_the_chunk_stays(
    kit: BatchKit, done: Ledger, tear: Any
):
    def work(chunk: Chunk[int]) -> None:
        chunk.session.execute(insert(ledger), [{"item": item} for item in chunk])
        if chunk.number == 2:
            tear(chunk)

    run = job(span(30), work, chunk_size=10).start()
    assert (RunState.FAILED, 10) == (run.state, run.progress.done)
    assert run.error is not None
    assert ("batchkit.errors.ChunkTorn", True) == (run.error.type, "begin_nested" in run.error.message)
    assert list(range(10)) == done.items()


@pytest.mark.parametrize("statement", ["COMMIT", "COMMIT; SELECT 1"])
def test_a_raw_commit_is_noticed_and_the_run_says_so(kit: BatchKit, done: Ledger, statement: str):
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        for part in statement.split(";"):
            chunk.connection.exec_driver_sql(part)

    run = job(span(30), work, chunk_size=10).start()
    assert (RunState.FAILED, 0) == (run.state, run.progress.done)
    assert run.error is not None
    assert "ended the transaction with a statement of its own" in run.error.message


def test_savepoints_are_the_functions_own(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        for item in chunk:
            try:
                with chunk.session.begin_nested():
                    chunk.session.execute(insert(ledger), [{"item": item}])
                    if item % 2:
                        chunk.session.execute(insert(ledger), [{"item": None}])
            except IntegrityError:
                continue

    run = job(span(10), work, chunk_size=5).start()
    assert RunState.SUCCEEDED == run.state
    assert [0, 2, 4, 6, 8] == done.items()


def test_an_error_of_the_database_keeps_its_name(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        chunk.session.execute(insert(ledger), [{"item": None}])

    run = job(span(10), work).start()
    assert run.error is not None
    assert "IntegrityError" in run.error.type
