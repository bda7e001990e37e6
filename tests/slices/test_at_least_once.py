"""With `delivery="at-least-once"` outside calls are made while no transaction is open, and repeated after a crash."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ForeignKey, String, create_engine, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from batchkit import BatchKit, Chunk, RunState, batched, current_session, rows, span
from batchkit.errors import InvalidJob, InvalidStart
from batchkit.queues import InlineQueue, LocalQueue
from batchkit.stopping import Stop
from tests.servers.proxy import Cut, cutter
from tests.slices.conftest import Ledger, Watched, job, ledger, write


class Base(DeclarativeBase):
    pass


class Team(Base):
    __tablename__ = "team"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


class Member(Base):
    __tablename__ = "member"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(50))
    team_id: Mapped[int] = mapped_column(ForeignKey(Team.id))
    team: Mapped[Team] = relationship()


def _is_in_transaction(kit: BatchKit, session: Session) -> bool:
    """Ask the driver of the connection that a chunk writes through; this begins nothing."""
    driver = session.connection().connection.driver_connection
    return bool(kit._store.database.dialect.is_in_transaction(driver))  # noqa: SLF001  only the dialect knows


@pytest.fixture
def members(done: Ledger) -> Ledger:
    """Make members of a team."""
    Base.metadata.create_all(done.engine)
    with Session(done.engine) as session, session.begin():
        session.add(Team(id=1, name="core"))
        session.flush()
        session.add_all(Member(id=number, email=f"M{number}@X", team_id=1) for number in range(1, 8))
    return done


def _emails(done: Ledger) -> list[str]:
    with Session(done.engine) as session:
        return list(session.scalars(select(Member.email).order_by(Member.id)))


def test_no_transaction_is_open_until_the_function_writes(kit: BatchKit, done: Ledger):
    seen: list[bool] = []

    def work(chunk: Chunk[int]) -> None:
        seen.append(_is_in_transaction(kit, chunk.session))
        write(chunk)
        seen.append(_is_in_transaction(kit, chunk.session))

    run = job(span(10), work, chunk_size=5, delivery="at-least-once").start()
    assert (RunState.SUCCEEDED, "at-least-once", 10) == (run.state, run.delivery, run.progress.done)
    assert [False, True] * 2 == seen
    assert list(range(10)) == done.items()


def test_a_function_that_never_writes_has_no_transaction_at_all(kit: BatchKit, done: Ledger):
    seen: list[bool] = []

    def work(chunk: Chunk[int]) -> None:
        seen.append(_is_in_transaction(kit, chunk.session))

    run = job(span(10), work, chunk_size=5, delivery="at-least-once").start()
    assert (RunState.SUCCEEDED, 10, [False, False]) == (run.state, run.progress.done, seen)


def test_others_write_during_an_outside_call_where_there_is_one_writer(sqlite_url: str):
    with closing(BatchKit(sqlite_url, queue=InlineQueue())) as kit:
        kit.migrate()
        done = Ledger(sqlite_url)

        def work(chunk: Chunk[int]) -> None:
            # No time to wait for a lock: it is free, or this raises.
            with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), timeout=0)) as other, other:
                other.executemany("INSERT INTO ledger VALUES (?)", [(-item,) for item in chunk])
            chunk.connection.execute(insert(ledger), [{"item": item} for item in chunk])

        run = job(span(1, 7), work, chunk_size=3, delivery="at-least-once").start()
        assert (RunState.SUCCEEDED, 6) == (run.state, run.progress.done)
        assert [-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6] == done.items()
        done.engine.dispose()


def test_a_chunk_starts_runs_before_it_writes_where_there_is_one_writer(sqlite_url: str):
    with closing(BatchKit(sqlite_url, queue=InlineQueue())) as kit:
        kit.migrate()
        inner = job(span(2), lambda chunk: None)
        run = job(span(2), lambda chunk: inner.start(), delivery="at-least-once").start()
        assert {RunState.SUCCEEDED} == {each.state for each in kit.runs()}
        assert 2 == run.progress.done


def test_objects_are_loaded_and_load_lazily_and_their_changes_commit(kit: BatchKit, members: Ledger):
    seen: list[tuple[bool, str, bool, str, bool]] = []

    def work(chunk: Chunk[Member]) -> None:
        for member in chunk:
            began = _is_in_transaction(kit, chunk.session)
            email = member.email
            still = _is_in_transaction(kit, chunk.session)
            member.email = email.lower()
            team = member.team.name
            assert member in chunk.session
            seen.append((began, email, still, team, _is_in_transaction(kit, chunk.session)))

    run = job(rows(select(Member), key=Member.id), work, chunk_size=1, delivery="at-least-once").start()
    assert (RunState.SUCCEEDED, 7) == (run.state, run.progress.done)
    assert [(False, f"M{number}@X", False, "core", True) for number in range(1, 8)] == seen
    assert [f"m{number}@x" for number in range(1, 8)] == _emails(members)


def test_each_item_is_called_without_a_transaction_and_what_fails_is_recorded(kit: BatchKit, members: Ledger):
    seen: list[bool] = []

    def work(member: Member) -> None:
        seen.append(_is_in_transaction(kit, current_session()))
        member.email = member.email.lower()
        if member.id == 3:
            raise ValueError

    made = batched.each(
        rows(select(Member), key=Member.id), name="tests.each-outside", delivery="at-least-once", max_failures=1
    )(work)
    run = made.start()
    assert (RunState.SUCCEEDED, 6, 1) == (run.state, run.progress.done, run.progress.failed)
    assert [False] * 3 == seen[:3]
    assert ["m1@x", "m2@x", "M3@X", "m4@x"] == _emails(members)[:4]


def test_a_session_of_the_users_is_joined_in_the_same_way(database_url: str, members: Ledger):
    engine = create_engine(database_url)
    with closing(BatchKit(database_url, queue=InlineQueue(), session_factory=sessionmaker(engine))) as kit:
        kit.migrate()
        seen: list[bool] = []

        def work(chunk: Chunk[Member]) -> None:
            for member in chunk:
                member.email = member.email.lower()
            seen.append(_is_in_transaction(kit, chunk.session))
            chunk.session.commit()

        run = job(rows(select(Member), key=Member.id), work, delivery="at-least-once").start()
        assert (RunState.SUCCEEDED, 7, [False]) == (run.state, run.progress.done, seen)
    assert [f"m{number}@x" for number in range(1, 8)] == _emails(members)
    engine.dispose()


def test_a_session_on_another_database_has_no_transaction_open_either(
    database_url: str, tmp_path: Path, members: Ledger
):
    elsewhere = create_engine(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    Base.metadata.create_all(elsewhere)
    with Session(elsewhere) as session, session.begin():
        session.add_all(Member(id=number, email=f"M{number}@X", team_id=1) for number in range(1, 8))
    with closing(BatchKit(database_url, queue=InlineQueue(), session_factory=sessionmaker(elsewhere))) as kit:
        kit.migrate()

        def work(chunk: Chunk[Member]) -> None:
            assert not chunk.session.in_transaction()
            for member in chunk:
                # Loaded: nothing is read again.
                assert "email" in member.__dict__
                member.email = member.email.lower()

        run = job(rows(select(Member), key=Member.id), work, chunk_size=3, delivery="at-least-once").start()
        assert (RunState.SUCCEEDED, 7) == (run.state, run.progress.done)
    with Session(elsewhere) as session:
        assert {f"m{number}@x" for number in range(1, 8)} == set(session.scalars(select(Member.email)))
    elsewhere.dispose()


def test_what_a_cursor_of_the_drivers_writes_belongs_to_the_chunk(kit: BatchKit, done: Ledger):
    failed: list[int] = []

    def work(chunk: Chunk[int]) -> None:
        cursor = chunk.connection.connection.cursor()
        cursor.execute(f"INSERT INTO ledger VALUES ({chunk[0]})")
        cursor.close()
        if not failed:
            failed.append(1)
            raise ValueError

    run = job(span(3), work, chunk_size=1, delivery="at-least-once").start()
    assert (RunState.FAILED, []) == (run.state, done.items())
    run.resume()
    assert (RunState.SUCCEEDED, [0, 1, 2]) == (run.refresh().state, done.items())


def test_a_commit_behind_our_back_is_noticed(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        chunk.connection.exec_driver_sql("COMMIT")

    run = job(span(3), work, delivery="at-least-once").start()
    assert RunState.FAILED == run.state
    assert "ended the transaction" in str(run.error)


@pytest.mark.parametrize("cut", list(Cut))
def test_a_cut_at_any_commit_repeats_calls_and_doubles_no_write(
    postgres_server: Any, postgres_url: str, postgres_done: Ledger, cut: Cut
):
    calls: dict[int, int] = {}
    with cutter(postgres_server.port) as wire:
        url = postgres_url.replace(f":{postgres_server.port}/", f":{wire.port}/")

        def work(chunk: Chunk[int]) -> None:
            write(chunk)
            for item in chunk:
                calls[item] = calls.get(item, 0) + 1
            if chunk.number == 5 and calls[chunk[0]] == 1:
                wire.arm(cut)

        def arm(after: int | None) -> None:
            if after == 9 and not wire.cuts:
                wire.arm(cut)

        with closing(BatchKit(url, queue=InlineQueue())) as kit:
            kit.migrate()
            # Once at the commit of the read, and once at that of the checkpoint.
            run = job(Watched(30, arm), work, chunk_size=5, delivery="at-least-once").start()
            assert (RunState.SUCCEEDED, 30, 2) == (run.state, run.progress.done, wire.cuts)
    assert list(range(30)) == postgres_done.items()
    repeated = 5 if cut is Cut.BEFORE_SERVER else 0
    assert 30 + repeated == sum(calls.values())


@pytest.fixture
def postgres_done(postgres_url: str) -> Iterator[Ledger]:
    """Give the ledger on PostgreSQL."""
    made = Ledger(postgres_url)
    yield made
    made.engine.dispose()


# What is promised


def _elsewhere(database_url: str, tmp_path: Path, queue: Any) -> BatchKit:
    engine = create_engine(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    ledger.create(engine, checkfirst=True)
    return BatchKit(database_url, queue=queue, session_factory=sessionmaker(engine))


@pytest.mark.parametrize(
    ("asked", "promised"),
    [(None, "at-least-once"), ("at-least-once", "at-least-once"), ("at-most-once", "at-most-once")],
)
def test_a_run_promises_the_weaker_of_what_is_asked_and_what_the_kit_can(
    database_url: str, tmp_path: Path, asked: Any, promised: str
):
    with closing(_elsewhere(database_url, tmp_path, LocalQueue())) as kit:
        kit.migrate()
        run = job(span(3), lambda chunk: None, delivery=asked).start()
        assert (promised, promised) == (run.delivery, kit.run(run.id).delivery)


@pytest.mark.parametrize("asked", [None, "exactly-once", "at-least-once", "at-most-once"])
def test_a_run_of_a_kit_that_can_all_promises_what_is_asked_and_so_does_its_rerun(kit: BatchKit, asked: Any):
    run = job(span(3), lambda chunk: None, delivery=asked).start()
    assert (asked or "exactly-once") == run.delivery
    assert run.delivery == run.rerun().delivery


def test_exactly_once_that_cannot_hold_is_refused_where_it_is_asked_for(database_url: str, tmp_path: Path):
    with closing(_elsewhere(database_url, tmp_path, LocalQueue())) as kit:
        kit.migrate()
        made = job(span(3), lambda chunk: None, delivery="exactly-once")
        with pytest.raises(InvalidStart, match=f"{made.name} asks for delivery='exactly-once', but .* ask for"):
            made.start()
        assert [] == kit.runs()


@pytest.mark.parametrize(("asked", "state"), [(None, RunState.SUCCEEDED), ("exactly-once", RunState.QUEUED)])
def test_a_worker_that_cannot_keep_the_promise_of_another_kit_takes_it_back_or_leaves_the_run(
    database_url: str, tmp_path: Path, asked: Any, state: RunState
):
    with closing(BatchKit(database_url, queue=LocalQueue())) as web:
        web.migrate()
        made = job(span(3), lambda chunk: None, delivery=asked)
        run = made.start()
        assert "exactly-once" == run.delivery
        with closing(_elsewhere(database_url, tmp_path, LocalQueue())) as kit, Stop() as stop:
            kit.work_run(run.id, stop=stop)
        expected = "exactly-once" if asked else "at-least-once"
        assert (state, expected) == (run.refresh().state, run.delivery)
        assert ("asks for delivery='exactly-once'" in str(run.waiting_reason)) is (asked is not None)


def test_a_delivery_that_is_none_is_refused():
    with pytest.raises(InvalidJob, match=r"delivery is one of 'exactly-once', .*: got 'twice'"):
        job(span(3), lambda chunk: None, delivery="twice")
