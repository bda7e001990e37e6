"""Runs that try a job out: a limit, a dry run, a start behind a cursor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, event, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from batchkit import BatchKit, Chunk, Finish, RunState, batched, csv_rows, items, rows, span
from batchkit.errors import InvalidSource, InvalidStart, NoFailures, RunFailed
from batchkit.job import JOBS
from batchkit.model import Lease
from batchkit.queues import InlineQueue
from batchkit.sources import Estimate
from batchkit.stopping import Stop
from batchkit.using import Terms
from tests.slices.conftest import Ledger, job, write

_ROOT = Path(__file__).resolve().parents[2]


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(50))


class Pages:
    """A source of the user's, which knows no total and gives more than it is asked for."""

    def read(self, after: int | None, limit: int, session: Session) -> list[tuple[int, int]]:
        first = 0 if after is None else after + 1
        return [(item, item) for item in range(first, min(first + limit + 3, 50))]


# limit


@pytest.mark.parametrize(("limit", "chunk_size"), [(1, 10), (10, 10), (25, 10), (100, 10), (1000, 10)])
def test_a_run_with_a_limit_ends_after_so_many_items(kit: BatchKit, done: Ledger, limit: int, chunk_size: int):
    run = job(span(100), write, chunk_size=chunk_size).using(limit=limit).start()

    expected = min(limit, 100)
    assert RunState.SUCCEEDED == run.state
    assert list(range(expected)) == done.items()
    assert (expected, expected, 100.0, limit) == (
        run.progress.done,
        run.progress.total,
        run.progress.percent,
        run.limit,
    )


def test_items_that_fail_count_for_the_limit(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        for item in chunk:
            if item % 3 == 0:
                chunk.fail(item, "no")

    run = job(span(100), work, chunk_size=7, max_failures=100).using(limit=20).start()
    assert (13, 7, 20) == (run.progress.done, run.progress.failed, run.progress.total)


def test_a_limit_holds_where_the_failing_item_is_searched_for(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        if 4 in chunk:
            raise ValueError
        write(chunk)

    run = job(span(100), work, chunk_size=8, max_failures=1).using(limit=10).start()
    assert [0, 1, 2, 3, 5, 6, 7, 8, 9] == done.items()
    assert (9, 1, 10) == (run.progress.done, run.progress.failed, run.progress.total)


def test_a_source_that_gives_too_much_and_knows_no_total_keeps_the_limit(kit: BatchKit, done: Ledger):
    run = job(Pages(), write, chunk_size=10).using(limit=12).start()
    assert list(range(12)) == done.items()
    assert (12, 12, True) == (run.progress.done, run.progress.total, run.progress.total_is_estimate)


def test_a_limit_is_that_of_the_whole_run_whoever_works_it(kit: BatchKit, done: Ledger):
    """Each slice commits a chunk and is stopped; the next goes on, up to the same limit."""
    made = job(span(1000), write, chunk_size=10)
    run = kit.start_run_here(JOBS[made.name], "{}", Terms(limit=35))
    slices = 0
    while not run.refresh().has_ended:
        with Stop() as stop:

            def after_one(_: Lease, stop: Stop = stop) -> None:
                stop.request("test")

            kit.work_run(run.id, stop=stop, watch=after_one)
        slices += 1
        assert slices < 10
    assert list(range(35)) == done.items()
    assert (35, 35) == (run.progress.done, run.progress.total)


def test_a_limit_holds_over_a_failure_and_a_takeover(kit: BatchKit, done: Ledger):
    broken = [True]

    def work(chunk: Chunk[int]) -> None:
        if broken[0] and chunk[0] == 20:
            raise ValueError("not yet")
        write(chunk)

    made = job(span(1000), work, chunk_size=10)
    run = made.using(limit=25).start()
    assert (RunState.FAILED, 20) == (run.state, run.progress.done)
    broken[0] = False
    # A worker claims it and is killed: its lease is ended as by a sweep, and the next takes over.
    kit._store.runs.resume(run.id)  # noqa: SLF001  without waking anybody up
    assert kit._store.leases.claim(run.id, 0, worker="killed", seconds=60) is not None  # noqa: SLF001  the same
    kit.end_leases_of("killed")
    assert RunState.SUCCEEDED == run.wait(timeout=10).state
    assert list(range(25)) == done.items()


def test_finish_is_called_at_the_limit(kit: BatchKit, done: Ledger):
    def finish(finish: Finish) -> int:
        return finish.done

    assert 5 == job(span(100), write, finish=finish).using(limit=5).start().result


def test_a_rerun_has_the_same_limits(kit: BatchKit, done: Ledger):
    run = job(span(100), write, chunk_size=5).using(limit=3, after=9, dry_run=True).start().rerun()
    assert (3, 9, True, 3, 3) == (run.limit, run.after, run.is_dry_run, run.progress.done, run.progress.total)
    assert [] == done.items()


# after


def test_a_run_begins_behind_a_cursor(kit: BatchKit, done: Ledger):
    run = job(span(100), write, chunk_size=10).using(after=89).start()
    assert list(range(90, 100)) == done.items()
    assert (10, 10, 89) == (run.progress.done, run.progress.total, run.after)


def test_a_run_behind_the_last_item_has_nothing_to_do(kit: BatchKit, done: Ledger):
    run = job(span(100), write).using(after=99).start()
    assert (RunState.SUCCEEDED, 0, 0, 100.0) == (run.state, run.progress.done, run.progress.total, run.progress.percent)


def test_rows_begin_behind_a_key(kit: BatchKit, done: Ledger):
    Base.metadata.create_all(done.engine)
    with Session(done.engine) as session, session.begin():
        session.add_all([User(id=i, email=f"{i}") for i in range(1, 101)])

    def work(chunk: Chunk[User]) -> None:
        for user in chunk:
            user.email = "done"

    for key, after, expected in ((User.id, 90, 10), (User.id.desc(), 11, 10)):
        run = job(rows(select(User), key=key), work, chunk_size=3).using(after=after).start()
        assert (expected, expected) == (run.progress.done, run.progress.total)
    run = job(rows(select(User), key=User.id), work, chunk_size=3).using(after=50, limit=7).start()
    assert (7, 7) == (run.progress.done, run.progress.total)
    with Session(done.engine) as session:
        changed = session.scalars(select(User.id).where(User.email == "done").order_by(User.id)).all()
    assert [*range(1, 11), *range(51, 58), *range(91, 101)] == list(changed)


def test_the_rest_of_a_file_is_estimated(kit: BatchKit, done: Ledger, tmp_path: Path):
    path = tmp_path / "numbers.csv"
    path.write_text("n\n1\n2\n3\n")

    def work(chunk: Chunk[dict[str, str]]) -> None:
        chunk.connection.execute(text("INSERT INTO ledger VALUES (:n)"), [{"n": int(row["n"])} for row in chunk])

    run = job(csv_rows(path), work).using(after=4).start()
    assert [2, 3] == done.items()
    assert (2, 2, True) == (run.progress.done, run.progress.total, run.progress.total_is_estimate)


@pytest.mark.parametrize("after", ["ten", -1, 1.5, object()])
def test_what_is_no_cursor_is_refused_at_the_start(kit: BatchKit, after: object):
    with pytest.raises(InvalidSource, match="is not a cursor of span"):
        job(span(10), write).using(after=after).start()
    assert [] == kit.runs()


def test_a_cursor_that_cannot_be_stored_is_refused_at_the_start(kit: BatchKit):
    with pytest.raises(InvalidStart, match="after is a cursor of the source of"):
        job(Pages(), write).using(after=object()).start()


@pytest.mark.parametrize(("after", "said"), [("7", "values are int"), ((1, 2), "values are int")])
def test_a_cursor_of_another_type_than_the_key_is_refused_at_the_start(kit: BatchKit, after: object, said: str):
    with pytest.raises(InvalidSource, match=said):
        job(rows(select(User), key=User.id), write).using(after=after).start()


# dry_run


def test_a_dry_run_works_every_item_and_keeps_nothing(kit: BatchKit, done: Ledger):
    seen: list[int] = []

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        chunk.session.commit()
        chunk.carry["last"] = chunk[-1]
        assert chunk.is_dry_run
        seen.extend(chunk)

    run = job(span(100), work, chunk_size=10).using(dry_run=True).start()
    assert (RunState.SUCCEEDED, True, 100, 100) == (
        run.state,
        run.is_dry_run,
        run.progress.done,
        run.progress.total,
    )
    assert list(range(100)) == seen
    assert [] == done.items()


def test_a_real_run_does_not_say_that_it_is_dry(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        assert not chunk.is_dry_run
        write(chunk)

    assert not job(span(10), work).start().is_dry_run
    assert 10 == done.count()


def test_finish_is_called_in_a_dry_run_and_rolled_back(kit: BatchKit, done: Ledger):
    def finish(finish: Finish) -> list[object]:
        finish.connection.execute(text("INSERT INTO ledger VALUES (-1)"))
        return [finish.is_dry_run, finish.done]

    run = job(span(10), write, finish=finish).using(dry_run=True).start()
    assert (RunState.SUCCEEDED, [True, 10]) == (run.state, run.result)
    assert [] == done.items()


def test_nobody_is_told_of_a_commit_in_a_dry_run(database_url: str, done: Ledger):
    heard: list[str] = []
    factory = sessionmaker(done.engine)
    event.listen(factory, "after_commit", lambda session: heard.append("commit"))
    kit = BatchKit(done.engine, queue=InlineQueue(), session_factory=factory)
    kit.migrate()

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        chunk.after_commit(lambda: heard.append("chunk"))

    made = job(span(20), work, chunk_size=10)
    made.using(dry_run=True).start()
    assert ([], 0) == (heard, done.count())
    made.start()
    assert (["commit", "chunk"] * 2, 20) == (heard, done.count())
    kit.close()


def test_what_fails_in_a_dry_run_is_recorded_and_tried_again_dry(kit: BatchKit, done: Ledger):
    bad = {3, 17}

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if bad & set(chunk):
            raise ValueError("bad")

    made = job(span(20), work, chunk_size=10, max_failures=5)
    run = made.using(dry_run=True).start()
    assert (18, 2, ["3", "17"]) == (run.progress.done, run.progress.failed, [each.item for each in run.failures()])
    bad.clear()
    again = run.retry_failures()
    assert (True, 2) == (again.is_dry_run, again.progress.done)
    assert [] == done.items()
    with pytest.raises(NoFailures):
        run.retry_failures()


def test_what_the_database_refuses_fails_a_dry_run_too(kit: BatchKit, done: Ledger):
    unique = Table("once", MetaData(), Column("item", Integer, primary_key=True))
    unique.create(done.engine)
    with done.engine.begin() as tx:
        tx.execute(insert(unique), {"item": 7})

    def work(chunk: Chunk[int]) -> None:
        chunk.connection.execute(insert(unique), [{"item": item} for item in chunk])

    run = job(span(10), work, max_failures=1).using(dry_run=True).start()
    assert (RunState.SUCCEEDED, 9, 1) == (run.state, run.progress.done, run.progress.failed)
    assert ["7"] == [each.item for each in run.failures()]


def test_a_dry_run_that_is_stopped_goes_on_dry(kit: BatchKit, done: Ledger):
    made = job(span(100), write, chunk_size=10)
    run = kit.start_run_here(JOBS[made.name], "{}", Terms(dry_run=True))
    with Stop() as stop:
        kit.work_run(run.id, stop=stop, watch=lambda _: stop.request("test"))
    assert (RunState.QUEUED, 10) == (run.refresh().state, run.progress.done)
    with Stop() as stop:
        kit.work_run(run.id, stop=stop)
    assert (RunState.SUCCEEDED, 100) == (run.refresh().state, run.progress.done)
    assert [] == done.items()


def test_a_dry_run_on_another_database_is_rolled_back_there(kit: BatchKit, tmp_path: Path):
    elsewhere = Ledger(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    kit = BatchKit(kit._store.database.engine, queue=InlineQueue(), session_factory=sessionmaker(elsewhere.engine))  # noqa: SLF001  the same database

    def work(chunk: Chunk[int]) -> None:
        chunk.session.execute(text("INSERT INTO ledger VALUES (1)"))

    made = job(span(20), work, chunk_size=10)
    run = made.using(dry_run=True).start()
    assert ("at-least-once", 20, 0) == (run.delivery, run.progress.done, elsewhere.count())
    made.start()
    assert 2 == elsewhere.count()
    elsewhere.engine.dispose()


def test_a_job_that_is_called_has_no_terms(kit: BatchKit, done: Ledger):
    run = job(items([1, 2]), write)()
    assert (None, None, False, False) == (run.limit, run.after, run.is_dry_run, run.was_joined)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"limit": 0}, "limit is a number of items, 1 or more: got 0"),
        ({"limit": True}, "limit is a number of items"),
        ({"limit": "5"}, "limit is a number of items"),
        ({"dry_run": 1}, "dry_run is True or False: got 1"),
        ({"key": ""}, "key is a text that names the start"),
        ({"key": 5}, "key is a text that names the start"),
        ({"queue": ""}, "queue is the name of a queue"),
        ({"if_active": "ignore"}, "if_active is 'raise' or 'return': got 'ignore'"),
        ({"session": "sqlite://"}, "session is a SQLAlchemy Session"),
    ],
)
def test_terms_of_the_wrong_kind_are_refused_by_name(terms: dict[str, Any], said: str):
    with pytest.raises(InvalidStart, match=said):
        job(span(10), write).using(**terms)


def test_an_unknown_term_is_refused():
    with pytest.raises(TypeError, match="limits"):
        job(span(10), write).using(limits=5)


def test_the_total_of_an_estimate_is_cut_to_the_limit(kit: BatchKit, done: Ledger):
    class Guess(Pages):
        def __init__(self, total: int) -> None:
            self.total = total

        def count(self, session: Session) -> int:
            return Estimate(self.total)

    for total, expected in ((1000, 12), (5, 5)):
        run = job(Guess(total), write, chunk_size=10).using(limit=12).start()
        assert (expected, True) == (run.progress.total, run.progress.total_is_estimate)


def test_queue_is_where_the_wake_ups_go(kit: BatchKit, done: Ledger):
    made = job(span(10), write, queue="usual")
    assert ("bulk", "usual") == (made.using(queue="bulk").start().queue, made.start().queue)


def test_calling_a_job_raises_what_failed(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        raise ValueError("bad")

    with pytest.raises(RunFailed):
        job(span(10), work)()


_KILLED = """
import os, signal, sys
from sqlalchemy import text
from batchkit import BatchKit, batched, span
from batchkit.queues import InlineQueue
from batchkit.stopping import Stop

kit = BatchKit(sys.argv[1], queue=InlineQueue())

@batched(span(1000), name="tests.killed", chunk_size=10)
def work(chunk):
    chunk.connection.execute(text("INSERT INTO ledger VALUES (:item)"), [{"item": item} for item in chunk])
    if chunk.number == 3:
        os.kill(os.getpid(), signal.SIGKILL)

with Stop() as stop:
    kit.work_run(sys.argv[2], stop=stop)
"""


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_worker_that_is_killed_leaves_the_rest_of_the_limit(
    kit: BatchKit, done: Ledger, database_url: str, dry_run: bool
):
    batched(span(1000), name="tests.killed", chunk_size=10)(write)
    run = kit.start_run_here(JOBS["tests.killed"], "{}", Terms(limit=45, after=99, dry_run=dry_run))
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, database_url, run.id], cwd=_ROOT, check=False, timeout=60, env=_environment()
    )
    assert -signal.SIGKILL == killed.returncode
    assert 20 == run.refresh().progress.done
    (partition,) = run.partitions()
    assert partition.worker is not None
    kit.end_leases_of(partition.worker)
    assert (RunState.SUCCEEDED, 45, 45) == (run.refresh().state, run.progress.done, run.progress.total)
    assert ([] if dry_run else list(range(100, 145))) == done.items()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT)}
