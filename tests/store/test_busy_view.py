"""The view `batchkit_busy` tells what `kit.busy()` does, at every moment, and stands in the way of no migration."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime

import pytest
from alembic import command
from sqlalchemy import ColumnElement, Float, create_engine, func, literal, select, text, update
from sqlalchemy.exc import DBAPIError

from batchkit.errors import InvalidDatabase
from batchkit.model import NewRun, RunId
from batchkit.states import Request, RunState
from batchkit.store import Store
from batchkit.store.view import VIEW
from tests.store.conftest import Bench

_COLUMNS = ("ready", "busy", "interruptible", "protected", "wanted")
_MOMENTS = 60

Counts = dict[str, dict[str, int]]


@pytest.fixture
def store(server_url: str) -> Iterator[Store]:
    """Give a store with its tables and the view, on each database that has one."""
    with closing(Store(server_url)) as made:
        made.schema.migrate()
        made.schema.make_busy_view()
        yield made


def _seen(store: Store) -> Counts:
    """Read the view as KEDA does: by SQL alone."""
    with store.database.reading() as tx:
        rows = tx.execute(text(f"SELECT * FROM {VIEW}")).mappings().all()
    return {row["queue"]: {name: row[name] for name in _COLUMNS} for row in rows}


def _told(store: Store) -> Counts:
    queues = store.fleet.busy().queues
    counts = {each.queue: {name: getattr(each, name) for name in _COLUMNS} for each in queues}
    return {name: each for name, each in counts.items() if each["wanted"]}


def _compare(store: Store) -> Counts | None:
    """Compare both at one moment; None where something has changed meanwhile."""
    moment, before = _stamp(store), _told(store)
    seen = _seen(store)
    # Leases run out by themselves, and what workers do may leave the same numbers.
    if before != _told(store) or moment != _stamp(store):
        return None
    assert before == seen
    return seen


def _stamp(store: Store) -> tuple[int, int]:
    """Give what rises with each claim, release and checkpoint."""
    tables = store.database.tables
    with store.database.reading() as tx:
        versions = tx.execute(select(func.sum(tables.run.c.version))).scalar_one()
        return versions, tx.execute(select(func.sum(tables.partition.c.seq))).scalar_one()


def _some_runs(store: Store) -> list[RunId]:
    runs = [NewRun(job="job", params="{}", queue=f"queue {n % 3}", delivery="exactly-once") for n in range(24)]
    for run in runs:
        store.starts.create(run)
    return [run.id for run in runs]


def _shake(store: Store, runs: list[RunId], chance: random.Random) -> None:
    """Put every run into any state that it may be in, and some that it may not."""
    tables, clock = store.database.tables, store.database.clock

    def near(seconds: float) -> ColumnElement[datetime]:
        return clock.after(literal(chance.uniform(-seconds, seconds), Float))

    def perhaps(seconds: float) -> ColumnElement[datetime] | None:
        return chance.choice([None, near(seconds), near(seconds)])

    with store.database.transaction() as tx:
        for run_id in runs:
            tx.execute(
                update(tables.run)
                .where(tables.run.c.id == run_id)
                .values(
                    state=chance.choice([*RunState, RunState.RUNNING, RunState.QUEUED, RunState.QUEUED]),
                    requested=chance.choice([None, None, None, *Request]),
                )
            )
            tx.execute(
                update(tables.partition)
                .where(tables.partition.c.run_id == run_id)
                .values(
                    worker=chance.choice([None, "pod:1", "pod:2"]),
                    lease_expires_at=perhaps(0.5),
                    due_at=near(0.5),
                    claimed_at=perhaps(3.0),
                    checkpointed_at=perhaps(3.0),
                    chunk_seconds=chance.choice([None, 0.0, 0.2, 1.0, 5.0]),
                    working_seconds=chance.choice([None, 0.0, 0.5, 8.0]),
                    is_protected=chance.random() < 0.2,
                )
            )


def test_the_view_tells_what_busy_does_at_any_moment_of_any_state(store: Store):
    chance = random.Random(7)
    runs = _some_runs(store)
    compared: list[Counts] = []
    for moment in itertools.count():
        if len(compared) == _MOMENTS:
            break
        assert moment < 10 * _MOMENTS, "nothing ever stood still between two readings"
        if moment % 3 == 0:
            _shake(store, runs, chance)
        seen = _compare(store)
        if seen is not None:
            compared.append(seen)
    # Each of them is something that was seen at some time, or nothing was compared.
    for name in ("ready", "interruptible", "protected"):
        assert any(counts[name] for seen in compared for counts in seen.values()), name


def test_the_view_tells_what_busy_does_while_workers_claim_move_on_and_hand_on(store: Store, server_url: str):
    bench = Bench(server_url)
    is_over = threading.Event()
    errors: list[BaseException] = []

    def work(run_id: RunId) -> None:
        try:
            while not is_over.is_set():
                lease = bench.claim(run_id, seconds=30.0)
                lease, _ = bench.checkpoint(lease)
                bench.store.leases.release(lease, reason="handed on", is_interrupt=False)
                is_over.wait(0.05)
        except BaseException as error:  # noqa: BLE001  it is raised by whoever waits for the threads
            errors.append(error)

    threads = [threading.Thread(target=work, args=(bench.start(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        compared = [seen for _ in range(200) if (seen := _compare(store)) is not None]
        seen_at_once = [sum(each["wanted"] for each in _seen(store).values()) for _ in range(100)]
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        bench.close()
    assert [] == errors
    assert compared
    assert {3} == set(seen_at_once), "a run was in no count, or in two"


def test_a_lease_that_has_run_out_makes_its_partition_wait_again(store: Store):
    (run_id, *_) = _some_runs(store)
    store.leases.claim(run_id, 0, worker="pod:1", seconds=30.0)
    assert 1 == _seen(store)["queue 0"]["protected"], "nothing is known of its chunks"
    with store.database.transaction() as tx:
        tx.execute(update(store.database.tables.partition).values(lease_expires_at=store.database.clock.now()))
    assert {"ready": 8, "busy": 0, "interruptible": 0, "protected": 0, "wanted": 8} == _seen(store)["queue 0"]


def test_a_migration_takes_columns_from_under_the_view_and_what_was_granted_on_it_stays(postgres_url: str):
    # Roles are of the whole server.
    reader = f"reader_{uuid.uuid4().hex}"
    with closing(Store(postgres_url, schema="batch")) as store:
        store.schema.migrate()
        store.schema.make_busy_view()
        with store.database.transaction() as tx:
            tx.execute(text(f"CREATE ROLE {reader}"))
            tx.execute(text(f"GRANT USAGE ON SCHEMA batch TO {reader}"))
            tx.execute(text(f"GRANT SELECT ON batch.{VIEW} TO {reader}"))
            # An old version, and a migration that changes what the view depends on.
            tx.execute(text("UPDATE batch.batchkit_version SET version_num = '0007'"))
            with pytest.raises(DBAPIError, match="depends on"), tx.begin_nested():
                tx.execute(text("ALTER TABLE batch.batchkit_partition DROP COLUMN chunk_seconds"))
        with store.schema._locked() as tx, store.schema._view_loosened(tx, "0007"):  # noqa: SLF001  as migrate() does
            command.stamp(store.schema._config(connection=tx), "head")  # noqa: SLF001  the same
            tx.execute(text("ALTER TABLE batch.batchkit_partition DROP COLUMN chunk_seconds"))
            tx.execute(text("ALTER TABLE batch.batchkit_partition ADD COLUMN chunk_seconds double precision"))
        store.starts.create(NewRun(job="job", params="{}", queue="mail", delivery="exactly-once"))
        with store.database.transaction() as tx:
            tx.execute(text(f"SET LOCAL ROLE {reader}"))
            # The query of docs/hooks/kubernetes, which needs a row though the queue be empty.
            query = f"SELECT COALESCE(SUM(wanted), 0)::bigint FROM batch.{VIEW} WHERE queue = :queue"
            assert [1, 0] == [tx.execute(text(query), {"queue": each}).scalar_one() for each in ("mail", "none")]
            with pytest.raises(DBAPIError, match="permission denied"), tx.begin_nested():
                tx.execute(select(store.database.tables.run.c.id))
        with store.database.transaction() as tx:
            tx.execute(text(f"DROP OWNED BY {reader}"))
            tx.execute(text(f"DROP ROLE {reader}"))


def test_migrate_keeps_the_view_of_an_older_version(postgres_url: str):
    with closing(Store(postgres_url)) as store:
        store.schema.migrate()
        store.schema.make_busy_view()
        with store.schema._locked() as tx:  # noqa: SLF001  there is no public way down
            store.schema._view.loosen(tx)  # noqa: SLF001  as it was then
            command.downgrade(store.schema._config(connection=tx), "0007")  # noqa: SLF001  the same
        assert {} == _seen(store)
        store.schema.migrate()
        store.starts.create(NewRun(job="job", params="{}", queue="mail", delivery="exactly-once"))
        assert 1 == _seen(store)["mail"]["wanted"]
        store.schema.migrate()


def test_who_goes_back_drops_the_view_before(postgres_url: str):
    def go_back(store: Store, revision: str) -> None:
        with store.schema._locked() as tx:  # noqa: SLF001  there is no public way down
            command.downgrade(store.schema._config(connection=tx), revision)  # noqa: SLF001  the same

    with closing(Store(postgres_url)) as store:
        store.schema.migrate()
        store.schema.make_busy_view()
        go_back(store, "0009")
        for revision in ("0008", "0007"):
            with pytest.raises(DBAPIError, match=f"view {VIEW} depends on"):
                go_back(store, revision)
        with store.database.transaction() as tx:
            tx.execute(text(f"DROP VIEW {VIEW}"))
        go_back(store, "0007")
        assert "0007" == store.schema.current()


def test_nobody_has_the_view_who_has_not_asked_for_it(server_url: str):
    with closing(Store(server_url)) as store:
        store.schema.migrate()
    engine = create_engine(server_url)
    with engine.connect() as connection, pytest.raises(DBAPIError, match=VIEW):
        connection.execute(text(f"SELECT * FROM {VIEW}"))
    engine.dispose()


def test_the_command_makes_the_view_or_prints_what_makes_it(postgres_url: str):
    with closing(Store(postgres_url)) as store:
        store.schema.migrate()
        printed = _command("db", "view", "--sql", url=postgres_url)
        assert printed.startswith(f"CREATE OR REPLACE VIEW {VIEW} AS")
        with store.database.transaction() as tx:
            assert not store.schema._view.is_there(tx)  # noqa: SLF001  nobody else tells
        _command("db", "view", url=postgres_url)
        assert {} == _seen(store)


def _command(*arguments: str, url: str) -> str:
    command = [sys.executable, "-m", "batchkit", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "BATCHKIT_DATABASE_URL": url}, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


def test_there_is_no_view_on_sqlite(sqlite_url: str):
    with closing(Store(sqlite_url)) as store:
        store.schema.migrate()
        with pytest.raises(InvalidDatabase, match="batchkit busy --json"):
            store.schema.make_busy_view()
