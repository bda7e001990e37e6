"""What a slice does with chunks, whatever the function in them does."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, create_engine, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from batchkit import BatchKit, Chunk, Finish, RunState, csv_rows, items, rows, span
from batchkit.errors import (
    InvalidParams,
    InvalidSource,
    JobNotFound,
    NotSerializable,
    RunFailed,
    RunNotFound,
    WaitTimeout,
)
from batchkit.job import JOBS
from batchkit.queues import InlineQueue, LocalQueue
from batchkit.slicing import Ending
from batchkit.stopping import Stop
from tests.slices.conftest import Ledger, job, ledger, write
from tests.waiting import eventually


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(100))


# The way it should be


def test_every_item_is_done_once_and_the_counters_say_so(kit: BatchKit, done: Ledger):
    run = job(span(0, 1050), write, chunk_size=100).start()

    assert RunState.SUCCEEDED == run.state
    assert list(range(1050)) == done.items()
    assert (1050, 1050, 100.0) == (run.progress.done, run.progress.total, run.progress.percent)
    assert ["started", "claimed", "every item is done"] == [each.reason for each in run.history()]


def test_orm_rows_are_changed_through_the_session_of_their_chunk(kit: BatchKit, done: Ledger):
    Base.metadata.create_all(done.engine)
    with Session(done.engine) as session, session.begin():
        session.add_all([User(id=i, email=f"USER{i}@EXAMPLE.COM") for i in range(1, 251)])

    def lower(chunk: Chunk[User]) -> None:
        for user in chunk:
            user.email = user.email.lower()

    run = job(rows(select(User), key=User.id), lower, chunk_size=60).start()
    assert 250 == run.progress.done == run.progress.total
    with Session(done.engine) as session:
        assert {f"user{i}@example.com" for i in range(1, 251)} == {user.email for user in session.query(User)}


def test_a_session_that_the_function_closes_loses_nothing_that_was_added(kit: BatchKit, done: Ledger):
    Base.metadata.create_all(done.engine)

    def work(chunk: Chunk[int]) -> None:
        with chunk.session as session:
            session.add_all([User(id=item, email="x") for item in chunk])
        chunk.session.add(User(id=-chunk.number, email="y"))

    run = job(span(1, 21), work, chunk_size=10).start()
    assert (RunState.SUCCEEDED, 20) == (run.state, run.progress.done)
    with Session(done.engine) as session:
        assert 22 == session.query(User).count()


def test_an_empty_source_ends_at_once(kit: BatchKit, done: Ledger):
    run = job(items([]), write).start()
    assert (RunState.SUCCEEDED, 0, 0, 100.0) == (
        run.state,
        run.progress.done,
        run.progress.total,
        run.progress.percent,
    )


def test_params_reach_source_function_and_finish(kit: BatchKit, done: Ledger):
    seen: list[object] = []

    def work(chunk: Chunk[int], limit: int, label: str = "x") -> None:
        seen.append((limit, label))

    def finish(finish: Finish, limit: int, label: str = "x") -> str:
        return f"{label}{limit}"

    def source(limit: int, label: str = "x") -> Any:
        return span(limit)

    run = job(source, work, finish=finish).start(3, label="y")
    assert [(3, "y")] == seen
    assert "y3" == run.result
    assert {"limit": 3, "label": "y"} == run.params


def test_carry_is_kept_with_the_checkpoint_and_finish_gets_it(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        chunk.carry["sum"] = chunk.carry.get("sum", 0) + sum(chunk)  # type: ignore[operator]

    def finish(finish: Finish) -> object:
        finish.connection.execute(insert(ledger), [{"item": finish.carries[0]["sum"]}])
        return {"sum": finish.carries[0]["sum"], "done": finish.done}

    run = job(span(101), work, chunk_size=7, finish=finish).start()
    assert {"sum": 5050, "done": 101} == run.result
    assert [5050] == done.items()


def test_a_failed_chunk_leaves_the_carry_as_it_was(kit: BatchKit, done: Ledger):
    fails = [True]

    def work(chunk: Chunk[int]) -> None:
        chunk.carry["seen"] = [*chunk.carry.get("seen", []), *chunk]  # type: ignore[misc]
        if chunk.number == 2 and fails:
            raise ValueError

    run = job(span(4), work, chunk_size=2, finish=lambda finish: finish.carries[0]["seen"]).start()
    assert RunState.FAILED == run.state
    fails.clear()
    assert [0, 1, 2, 3] == run.resume().result


def test_finish_runs_for_an_empty_source_and_once(kit: BatchKit, done: Ledger):
    def finish(finish: Finish) -> int:
        finish.connection.execute(insert(ledger), [{"item": 1}])
        return finish.done

    assert 0 == job(items([]), write, finish=finish).start().result
    assert [1] == done.items()


# Errors of the function


def test_an_error_fails_the_run_with_its_traceback_and_resume_goes_on_behind_the_last_item(kit: BatchKit, done: Ledger):
    bad = {33}

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if bad & set(chunk):
            raise ValueError("item 33 is bad")

    run = job(span(100), work, chunk_size=10).start()
    assert (RunState.FAILED, 33) == (run.state, run.progress.done)
    assert run.error is not None
    assert ("ValueError", "item 33 is bad") == (run.error.type, run.error.message)
    assert ("32", "33") == (run.error.cursor, run.error.item)
    assert "in work" in run.error.traceback
    assert list(range(33)) == done.items()

    bad.clear()
    run.resume()
    assert (RunState.SUCCEEDED, 100, None) == (run.state, run.progress.done, run.error)
    assert list(range(100)) == done.items()


def test_calling_a_job_works_it_here_and_raises_where_it_fails(kit: BatchKit, done: Ledger):
    good = job(span(10), write)
    assert RunState.SUCCEEDED == good().state

    def work(chunk: Chunk[int]) -> None:
        raise KeyError("gone")

    with pytest.raises(RunFailed, match="gone") as failed:
        job(span(10), work)()
    assert isinstance(failed.value.__cause__, KeyError)
    assert RunState.FAILED == kit.run(failed.value.run_id).state


def test_an_exit_in_the_function_rolls_back_and_gives_the_run_back(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if chunk.number == 2:
            raise SystemExit(3)

    stopped = job(span(30), work, chunk_size=10)
    with pytest.raises(SystemExit):
        stopped()
    (run,) = kit.runs()
    assert (RunState.QUEUED, 10, 0) == (run.state, run.progress.done, run.progress.workers)
    assert list(range(10)) == done.items()


# Two databases


def test_chunks_that_write_elsewhere_promise_at_least_once_and_never_more(
    database_url: str, tmp_path: Path, done: Ledger
):
    elsewhere = create_engine(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    ledger.create(elsewhere)
    kit = BatchKit(database_url, queue=InlineQueue(), session_factory=sessionmaker(elsewhere))
    kit.migrate()

    def work(chunk: Chunk[int]) -> None:
        chunk.session.execute(insert(ledger), [{"item": item} for item in chunk])

    run = job(span(30), work, chunk_size=10).start()
    assert ("at-least-once", RunState.SUCCEEDED, 30) == (run.delivery, run.state, run.progress.done)
    with elsewhere.connect() as connection:
        assert 30 == len(connection.execute(select(ledger)).all())
    assert 0 == done.count()
    elsewhere.dispose()
    kit.close()


def test_a_sessionmaker_of_the_same_database_is_joined_to_the_chunk(database_url: str, done: Ledger):
    engine = create_engine(database_url)

    class AppSession(Session):
        pass

    kit = BatchKit(database_url, queue=InlineQueue(), session_factory=sessionmaker(engine, class_=AppSession))
    kit.migrate()
    kinds: list[type] = []

    def work(chunk: Chunk[int]) -> None:
        kinds.append(type(chunk.session))
        chunk.session.execute(insert(ledger), [{"item": item} for item in chunk])
        chunk.session.commit()
        if chunk.number == 2:
            raise ValueError

    run = job(span(30), work, chunk_size=10).start()
    assert ("exactly-once", 10) == (run.delivery, run.progress.done)
    assert issubclass(kinds[0], AppSession)
    assert list(range(10)) == done.items()
    engine.dispose()
    kit.close()


# Control


def test_a_pause_is_seen_at_the_next_chunk_boundary_and_resume_goes_on_there(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if chunk.number == 3 and not chunk.carry:
            threading.Thread(target=kit.run(chunk.run_id).pause).start()
            chunk.carry["paused"] = True
            # On SQLite the pause has to wait for this chunk; elsewhere it is there before the checkpoint or just after.

    paused = job(span(1000), work, chunk_size=1)
    run = paused.start()
    eventually(lambda: run.refresh().state is not RunState.RUNNING)
    if run.state is RunState.PAUSED:
        assert 3 <= run.progress.done < 1000
        run.resume()
    assert (RunState.SUCCEEDED, 1000) == (run.refresh().state, run.progress.done)
    assert list(range(1000)) == done.items()


def test_a_cancel_ends_the_run_and_keeps_what_was_committed(kit: BatchKit, done: Ledger):
    local = BatchKit(kit._store.database.engine, queue=LocalQueue())  # noqa: SLF001  so that start() does not work it

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if chunk.number == 2:
            cancelled.append(chunk.run_id)

    cancelled: list[str] = []
    run = job(span(50), work, chunk_size=10).start()

    def watch(_: object) -> None:
        if cancelled:
            local.run(cancelled.pop()).cancel()

    with Stop() as stop:
        local.work_run(run.id, stop=stop, watch=watch)
    assert (RunState.CANCELLED, 30) == (run.refresh().state, run.progress.done)
    assert list(range(30)) == done.items()
    assert not run.progress.workers


def test_a_stop_is_seen_at_the_next_chunk_boundary_and_the_run_is_queued_again(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if chunk.number == 2:
            stop.request("SIGTERM")

    stopped = job(span(50), work, chunk_size=10)
    run = kit.start_run_here(JOBS[stopped.name], "{}")
    with Stop() as stop:
        outcome = kit.work_run(run.id, stop=stop)
    assert outcome is not None
    assert Ending.INTERRUPTED is outcome.ending
    assert (RunState.QUEUED, 20, 1, 0) == (
        run.refresh().state,
        run.progress.done,
        run.progress.interruptions,
        run.progress.workers,
    )
    assert "interrupted: SIGTERM" == run.history()[-1].reason


def test_a_rerun_is_a_new_run_with_the_same_params(kit: BatchKit, done: Ledger):
    def source(limit: int) -> Any:
        return span(limit)

    def work(chunk: Chunk[int], limit: int) -> None:
        write(chunk)

    first = job(source, work).start(5)
    second = first.rerun()
    assert first.id != second.id
    assert (RunState.SUCCEEDED, {"limit": 5}) == (second.state, second.params)
    assert sorted([*range(5), *range(5)]) == done.items()


def test_a_slice_gives_the_worker_back_when_its_time_is_over(kit: BatchKit, done: Ledger):
    local = BatchKit(kit._store.database.engine, queue=LocalQueue())  # noqa: SLF001  so that start() does not work it
    run = job(span(30), write, chunk_size=10, slice_time=1e-6).start()
    endings = []
    with Stop() as stop:
        while outcome := local._worker.work_next(queues=None, stop=stop):  # noqa: SLF001  one slice at a time
            endings.append(outcome.ending)
    assert [Ending.INTERRUPTED] * 3 + [Ending.EXHAUSTED] == endings
    assert RunState.SUCCEEDED == run.refresh().state


# Bad input


def test_a_source_function_that_gives_no_source_fails_the_run_and_says_what_to_return(kit: BatchKit, done: Ledger):
    run = job(lambda: [1, 2], write).start()
    assert (RunState.FAILED, 0) == (run.state, run.progress.done)
    assert run.error is not None
    assert "return rows(...)" in run.error.message


def test_params_that_do_not_fit_or_cannot_be_stored_start_nothing(kit: BatchKit, done: Ledger):
    def source(limit: int) -> Any:
        return span(limit)

    def work(chunk: Chunk[int], limit: int) -> None: ...

    made = job(source, work)
    for args, kwargs, problem in [
        ((), {}, "missing a required argument: 'limit'"),
        ((), {"limit": 1, "other": 2}, "unexpected keyword argument 'other'"),
        ((object(),), {}, "the param limit is a builtins.object, which cannot be stored"),
    ]:
        with pytest.raises(InvalidParams, match=problem):
            made.start(*args, **kwargs)
    assert [] == kit.runs()


def test_an_unknown_run_is_named(kit: BatchKit):
    with pytest.raises(RunNotFound, match="nowhere"):
        kit.run("nowhere")


def test_a_run_of_an_unregistered_job_stays_queued_for_those_who_know_it(kit: BatchKit, done: Ledger):
    local = BatchKit(kit._store.database.engine, queue=LocalQueue())  # noqa: SLF001  so that start() does not work it
    decorated = job(span(5), write)
    run = decorated.start()
    hidden = JOBS._jobs.pop(run.job)  # noqa: SLF001  as in a worker that lacks the module
    with Stop() as stop:
        assert local._worker.work_next(queues=None, stop=stop) is None  # noqa: SLF001  one slice
        with pytest.raises(JobNotFound, match=run.job):
            local.work_run(run.id, stop=stop)
    assert RunState.QUEUED == run.refresh().state
    JOBS.add(hidden, decorated)
    with Stop() as stop:
        local.work_run(run.id, stop=stop)
    assert RunState.SUCCEEDED == run.refresh().state


class _BadCursors:
    def read(self, after: Any, limit: int, session: Session) -> list[Any]:
        return [(1, object())]


def test_a_cursor_that_cannot_be_stored_is_found_at_the_first_chunk_and_nothing_is_committed(
    kit: BatchKit, done: Ledger
):
    run = job(_BadCursors(), write).start()
    assert (RunState.FAILED, 0) == (run.state, done.count())
    assert run.error is not None
    assert "the cursor of _BadCursors" in run.error.message


def test_a_result_or_a_carry_that_cannot_be_stored_rolls_back_and_can_be_mended(kit: BatchKit, done: Ledger):
    run = job(span(3), write, finish=lambda finish: object()).start()
    assert (RunState.FAILED, 3) == (run.state, run.progress.done)
    assert run.error is not None
    assert NotSerializable.__name__ in run.error.type

    def work(chunk: Chunk[int]) -> None:
        chunk.carry["x"] = object()

    run = job(span(3), work).start()
    assert (RunState.FAILED, 0) == (run.state, run.progress.done)
    assert run.error is not None
    assert "chunk.carry['x']" in run.error.message


def test_an_own_source_needs_read_and_no_more(kit: BatchKit, done: Ledger):
    class Letters:
        def read(self, after: str | None, limit: int, session: Session) -> Any:
            letters = "abcdefg"
            start = 0 if after is None else letters.index(after) + 1
            return ((ord(letter), letter) for letter in letters[start : start + limit])

    run = job(Letters(), write, chunk_size=3).start()
    assert (RunState.SUCCEEDED, 7, None) == (run.state, run.progress.done, run.progress.total)
    assert [ord(letter) for letter in "abcdefg"] == done.items()


def test_a_bad_record_stops_the_run_there_and_after_mending_the_rest_is_done(
    kit: BatchKit, done: Ledger, tmp_path: Path
):
    path = tmp_path / "x.csv"
    path.write_bytes(b"a\n1\n2\n\xff\n4\n")

    def work(chunk: Chunk[dict[str, str]]) -> None:
        chunk.connection.execute(insert(ledger), [{"item": int(row["a"])} for row in chunk])

    run = job(lambda: csv_rows(path), work, chunk_size=1).start()
    assert (RunState.FAILED, 2) == (run.state, run.progress.done)
    assert run.error is not None
    assert InvalidSource.__name__ in run.error.type
    assert "byte 6" in run.error.message


def test_wait_gives_the_run_at_its_end_and_says_so_when_it_takes_too_long(kit: BatchKit, done: Ledger):
    assert RunState.SUCCEEDED == job(span(3), write).start().wait(timeout=5).state
    local = BatchKit(kit._store.database.engine, queue=LocalQueue())  # noqa: SLF001  so that start() does not work it
    waiting = job(span(3), write).start()
    with pytest.raises(WaitTimeout, match=r"still queued after 0\.05 s"):
        waiting.wait(timeout=0.05)
    with Stop() as stop:
        local.work_run(waiting.id, stop=stop)
    assert waiting.wait().has_ended
