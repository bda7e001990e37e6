"""What travels together on PostgreSQL: a checkpoint, its COMMIT, the next BEGIN and a read; and what may fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from batchkit import BatchKit, Chunk, RunState, batched, pages, rows
from batchkit.errors import DatabaseUnavailable
from batchkit.queues import InlineQueue, LocalQueue
from batchkit.slicing import Ending, items
from batchkit.stopping import Stop
from batchkit.store import Database, HeldConnection, pipelining
from tests.servers.postgres import PostgresServer
from tests.slices.conftest import end_leases, ledger
from tests.waiting import eventually

ITEMS = 40
CHUNK_SIZE = 5

_names = itertools.count()


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    times: Mapped[int] = mapped_column(default=0)


@pytest.fixture(params=["near", "far"])
def is_far(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Have the next read travel with each COMMIT, or not: that depends on how long a round trip takes."""
    far: bool = request.param == "far"
    monkeypatch.setattr(pipelining, "FAR_SECONDS", 0.0 if far else 60.0)
    # No chunk of these is a long one, not even where the machine is busy.
    monkeypatch.setattr(items, "_QUICK_SECONDS", 60.0)
    return far


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    made = create_engine(postgres_url)
    Base.metadata.create_all(made)
    with Session(made) as session:
        session.add_all(Item(id=number) for number in range(ITEMS))
        session.commit()
    yield made
    made.dispose()


@pytest.fixture
def kit(postgres_url: str, is_far: bool, engine: Engine) -> Iterator[BatchKit]:
    with closing(BatchKit(postgres_url, queue=InlineQueue())) as made:
        made.migrate()
        yield made


def over_items(function: Callable[[Chunk[Any]], None], selected: Any = None, **options: Any) -> Any:
    wanted: Any = select(Item) if selected is None else selected
    source: Any = rows(wanted, key=Item.id)
    made: Any = batched
    return made(source, name=f"job-{next(_names)}", chunk_size=CHUNK_SIZE, **options)(function)


def bump(chunk: Chunk[Any]) -> None:
    for item in chunk:
        item.times += 1


def times(engine: Engine) -> list[int]:
    with Session(engine) as session:
        return [item.times for item in session.query(Item).order_by(Item.id)]


def asked(connection: Connection, setting: str) -> str:
    return str(connection.exec_driver_sql(f"SHOW {setting}").scalar_one())


def test_objects_are_done_once_each_and_their_statements_travel_together(
    kit: BatchKit, engine: Engine, is_far: bool, monkeypatch: pytest.MonkeyPatch
):
    led, send = pipelining.Convoy.lead, pipelining.Pipelining.send
    trips = {"with a read": 0, "alone": 0}

    def lead(self: pipelining.Convoy, execute: Callable[[], object]) -> object:
        trips["with a read"] += self.trip is None
        return led(self, execute)

    def count(*args: Any, **options: Any) -> pipelining.Trip:
        trips["alone"] += 1
        return send(*args, **options)

    monkeypatch.setattr(pipelining.Convoy, "lead", lead)
    monkeypatch.setattr(pipelining.Pipelining, "send", count)
    run = over_items(bump).start()

    assert (RunState.SUCCEEDED, ITEMS) == (run.state, run.progress.done)
    assert [1] * ITEMS == times(engine)
    chunks = ITEMS // CHUNK_SIZE
    assert {"with a read": chunks if is_far else 0, "alone": 0 if is_far else chunks} == trips


def test_each_transaction_is_as_the_first(kit: BatchKit, engine: Engine):
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    kit._store.database.engine.dispose()  # noqa: SLF001  what is open knows nothing of it
    settings: list[tuple[str, str]] = []

    def work(chunk: Chunk[Any]) -> None:
        asks = ("transaction_isolation", "idle_in_transaction_session_timeout")
        settings.append(tuple(asked(chunk.connection, name) for name in asks))  # type: ignore[arg-type]

    over_items(work).start()

    assert ITEMS // CHUNK_SIZE == len(settings)
    assert {("read committed", settings[0][1])} == set(settings)
    assert "0" != settings[0][1]


def test_what_only_the_commit_refuses_is_the_fault_of_an_item(kit: BatchKit, engine: Engine):
    with engine.begin() as tx:
        tx.exec_driver_sql("CREATE TABLE good (id int PRIMARY KEY)")
        tx.exec_driver_sql(f"INSERT INTO good SELECT n FROM generate_series(0, {ITEMS}) n WHERE n <> 17")
        tx.exec_driver_sql("CREATE TABLE seen (id int REFERENCES good DEFERRABLE INITIALLY DEFERRED)")

    def work(chunk: Chunk[Any]) -> None:
        for item in chunk:
            item.times += 1
            chunk.connection.exec_driver_sql(f"INSERT INTO seen VALUES ({item.id})")

    run = over_items(work, max_failures=1).start()

    assert (ITEMS - 1, 1) == (run.progress.done, run.progress.failed)
    (failure,) = run.failures()
    assert "foreign key" in failure.message
    assert [int(number != 17) for number in range(ITEMS)] == times(engine)


def test_a_lost_lease_lets_nothing_through(kit: BatchKit, engine: Engine):
    is_lost = False

    def work(chunk: Chunk[Any]) -> None:
        nonlocal is_lost
        bump(chunk)
        if chunk.number == 4 and not is_lost:
            is_lost = True
            end_leases(kit, kit.run(chunk.run_id))

    run = over_items(work).start()

    assert is_lost
    assert (RunState.SUCCEEDED, ITEMS, 1) == (run.state, run.progress.done, run.progress.interruptions)
    assert [1] * ITEMS == times(engine)


def test_a_read_that_fails_takes_nothing_from_the_chunk_before(kit: BatchKit, engine: Engine):
    with engine.begin() as tx:
        # A division by zero, as that of the guard; in a function, it is asked of what is read and no more.
        code = "BEGIN RETURN 1 / (n - 22); END"
        tx.exec_driver_sql(f"CREATE FUNCTION asked(n int) RETURNS int LANGUAGE plpgsql AS '{code}'")
    selected = select(Item, func.asked(Item.id))

    def work(chunk: Chunk[Any]) -> None:
        for item, _ in chunk:
            item.times += 1

    run = over_items(work, selected).start()

    assert RunState.FAILED is run.state
    assert "division by zero" in str(run.error)
    assert 20 == run.progress.done
    assert [int(number < 20) for number in range(ITEMS)] == times(engine)


def test_a_read_that_cannot_be_sent_takes_nothing_from_the_chunk_before(kit: BatchKit, engine: Engine, is_far: bool):
    kits = kit._store.database.engine  # noqa: SLF001  the connection that the source reads through
    left = [4]

    @event.listens_for(kits, "before_cursor_execute")
    def refuse(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if "FROM item" in statement and "max(" not in statement:
            left[0] -= 1
            if left[0] == 0:
                raise ValueError("not this one")

    run = over_items(bump).start()
    # One that was only read ahead is read again.
    assert (RunState.SUCCEEDED if is_far else RunState.FAILED) is run.state
    assert run.progress.done == sum(times(engine)) > 0
    if not is_far:
        run.resume()
    assert [1] * ITEMS == times(engine)


def test_a_function_may_drop_what_is_prepared(kit: BatchKit, engine: Engine):
    def work(chunk: Chunk[Any]) -> None:
        bump(chunk)
        chunk.session.flush()
        chunk.connection.exec_driver_sql("DEALLOCATE ALL")

    run = over_items(work).start()

    assert (RunState.SUCCEEDED, ITEMS) == (run.state, run.progress.done)
    assert [1] * ITEMS == times(engine)


def test_a_column_may_change_its_type_while_a_run_goes_on(kit: BatchKit, engine: Engine):
    def migrate() -> None:
        with engine.begin() as tx:
            tx.exec_driver_sql("ALTER TABLE item ALTER COLUMN times TYPE bigint")

    def work(chunk: Chunk[Any]) -> None:
        bump(chunk)
        if chunk.number == ITEMS // CHUNK_SIZE - 1:
            chunk.after_commit(migrate)

    run = over_items(work).start()

    assert (RunState.SUCCEEDED, ITEMS) == (run.state, run.progress.done)
    assert [1] * ITEMS == times(engine)


def test_nothing_is_left_open_by_a_slice_that_was_to_go_on(kit: BatchKit, engine: Engine):
    def work(chunk: Chunk[Any]) -> None:
        bump(chunk)
        if chunk.number == 2:
            kit.run(chunk.run_id).pause()

    run = over_items(work).start()

    assert (RunState.PAUSED, 2 * CHUNK_SIZE) == (run.refresh().state, run.progress.done)
    with engine.connect() as connection:
        left = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND pid <> pg_backend_pid()"
        assert 0 == connection.exec_driver_sql(left).scalar_one()
    run.resume()
    assert [1] * ITEMS == times(engine)


def test_who_is_to_be_told_of_a_commit_is_told_before_the_next_read(kit: BatchKit, engine: Engine):
    ledger.create(engine)
    seen: list[tuple[int, int]] = []

    def note(number: int) -> None:
        with engine.connect() as connection:
            seen.append((number, connection.exec_driver_sql("SELECT count(*) FROM ledger").scalar_one()))

    def work(chunk: Chunk[Any]) -> None:
        chunk.connection.execute(insert(ledger), [{"item": item.id} for item in chunk])
        chunk.after_commit(partial(note, chunk.number))

    over_items(work).start()

    assert [(number, number * CHUNK_SIZE) for number in range(1, ITEMS // CHUNK_SIZE + 1)] == seen


def test_a_connection_that_died_in_the_pool_is_a_database_that_is_away(engine: Engine, postgres_server: PostgresServer):
    # A user's engine that does not ask its connections whether they live.
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    with postgres_server.connect(str(engine.url.database)) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    with closing(Database(engine)) as database, closing(HeldConnection(database, "run")) as held:
        with pytest.raises(DatabaseUnavailable):
            held.begin(idle=60)
        held.begin(idle=60)
        assert 1 == held.connection.exec_driver_sql("SELECT 1").scalar_one()


def test_no_transaction_is_open_while_a_source_asks_others(kit: BatchKit, engine: Engine):
    open_then: list[int] = []

    def fetch(page: int | None) -> tuple[list[int], int | None]:
        with engine.connect() as connection:
            asks = (
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND pid <> pg_backend_pid()"
            )
            open_then.append(connection.exec_driver_sql(asks).scalar_one())
        number = page or 0
        return list(range(number * 5, number * 5 + 5)), number + 1 if number < 3 else None

    made: Any = batched
    run = made(pages(fetch), name="asks-others", chunk_size=5)(lambda chunk: None).start()

    assert (RunState.SUCCEEDED, 20) == (run.state, run.progress.done)
    assert [0] * 4 == open_then


def test_a_read_ahead_that_waits_for_a_lock_is_cut_short_by_the_grace(
    postgres_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipelining, "FAR_SECONDS", 0.0)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with closing(BatchKit(postgres_url, queue=LocalQueue(), grace=2)) as kit, Stop() as stop, engine.connect() as other:
        kit.migrate()
        made: Any = batched
        locking = rows(select(Item), key=Item.id, for_update=True)
        run = made(locking, name="locking", chunk_size=CHUNK_SIZE)(lambda chunk: None).start()
        other.execute(select(Item).where(Item.id == 12).with_for_update())

        def stop_once_it_waits() -> None:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as asking:
                eventually(lambda: asking.exec_driver_sql(waiting).scalar_one())
            stop.request("SIGTERM")

        with ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(stop_once_it_waits)
            outcome = kit.work_run(run.id, stop=stop)
            stopped.result()

        # The lock is held to this day, and the chunks in front of it are done.
        assert outcome is not None
        assert Ending.INTERRUPTED is outcome.ending
        assert (RunState.QUEUED, 2 * CHUNK_SIZE) == (run.refresh().state, run.progress.done)
