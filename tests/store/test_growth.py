"""What workers, sweeps and people ask reads little of a store in which much is going on, as the databases plan it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Connection

from batchkit.model import Checkpoint, RunId, WakeUp
from batchkit.states import FINAL
from batchkit.store import HeldConnection, Store
from batchkit.store.purging import PurgeStatements
from batchkit.sweep import sweep
from batchkit.waking import WINDOW
from tests.crowd import JOBS, Crowd, analyze, fill
from tests.servers.mariadb import MariaDbServer
from tests.servers.postgres import PostgresServer
from tests.waiting import eventually

RUNS, PARTITIONS = 150, 100
CROWD = Crowd("aa", unfinished=RUNS, partitions=PARTITIONS, finished=20_000, failures=20_000, transitions=40_000)
WIDE = Crowd("zz", unfinished=1, partitions=5_000)
#: Its failures are behind those of the others.
LATER = Crowd("ll", finished=100, failures=20_000)
MONTH_SECONDS = 30 * 86_400.0
_JOB_NAMES = [f"job-{number}" for number in range(JOBS)]
_OURS = re.compile(r"batchkit_(run|partition|failure|transition)")


class Messages:
    """A queue whose messages are never looked at."""

    crosses_processes = True
    keeps_messages = True

    def wake(self, wake_up: WakeUp) -> None:
        """Do nothing."""


class Rows(Messages):
    """A queue without messages."""

    keeps_messages = False


@dataclass(frozen=True)
class Asked:
    """What is asked, and how many pages PostgreSQL may look at for it."""

    step: Callable[[Store], object]
    pages: int


def _move_on(store: Store) -> None:
    lease = store.leases.claim(RunId(WIDE.unfinished_run(0)), 77, worker="host:1", seconds=60)
    assert lease is not None
    store.leases.release(lease, reason="done", is_interrupt=False)


def _some_of(store: Store, run_id: RunId) -> list[int]:
    statement = PurgeStatements(store.database.tables, store.database.clock).some_of(
        store.database.tables.failure, run_id, 100
    )
    with store.database.reading() as connection:
        return list(connection.execute(statement).scalars())


_WIDE, _ONE = RunId(WIDE.unfinished_run(0)), RunId(CROWD.unfinished_run(0))
_MANY, _FEW, _LATER = RunId(CROWD.finished_run(0)), RunId(CROWD.finished_run(20)), RunId(LATER.finished_run(0))

ASKED = {
    "which partition to claim": Asked(
        lambda store: store.leases.claimable(jobs=_JOB_NAMES, queues=None), pages=8 * RUNS
    ),
    "which of a run of many": Asked(lambda store: store.leases.claimable_in(_WIDE, is_due=True, limit=20), pages=150),
    "which of a run, due or not": Asked(lambda store: store.leases.claimable_in(_WIDE, limit=20), pages=150),
    "claiming one of many, and giving it back": Asked(_move_on, pages=400),
    "ending the leases of a worker": Asked(lambda store: store.runs.held_by("host-1:1"), pages=20),
    "settling a run of many": Asked(lambda store: store.runs.settle_unattended(_WIDE), pages=100),
    "sharing a run of many": Asked(lambda store: store.wake_ups.take_shares(_WIDE, window=WINDOW + 2), pages=200),
    "a sweep that sends messages": Asked(lambda store: sweep(store, Messages()), pages=25 * RUNS),
    "a sweep without messages": Asked(lambda store: sweep(store, Rows()), pages=25 * RUNS),
    "the newest runs": Asked(lambda store: store.records.newest(limit=20), pages=30 * PARTITIONS + WIDE.partitions),
    "the progress of a run": Asked(lambda store: store.records.load(_ONE), pages=2 * PARTITIONS),
    "a page of many failures": Asked(lambda store: store.failures.page(_MANY, after=0, limit=100), pages=500),
    "a page of few failures": Asked(lambda store: store.failures.page(_FEW, after=0, limit=100), pages=500),
    "a page of later failures": Asked(lambda store: store.failures.page(_LATER, after=0, limit=100), pages=500),
    "the last failure": Asked(lambda store: store.failures.last_open(_MANY, in_doubt=True), pages=10),
    "which failures to purge first": Asked(lambda store: _some_of(store, _LATER), pages=150),
    "which run to purge": Asked(
        lambda store: store.purging._find(MONTH_SECONDS, FINAL, 50, ""),  # noqa: SLF001  the step of it that finds
        pages=600,
    ),
    "what waits too long": Asked(lambda store: store.health.backlog(waited=60.0, unswept=60.0), pages=8 * RUNS),
}
#: Each unfinished run's partitions are counted, in an index alone where vacuum has been at work.
BUSY = Asked(lambda store: store.fleet.busy(), pages=40 * RUNS + WIDE.partitions)


def _crowded(url: str) -> Store:
    store = Store(url)
    store.schema.migrate()
    for crowd in (CROWD, WIDE, LATER):
        fill(store, crowd)
    analyze(store)
    return store


@pytest.fixture(scope="module")
def on_postgres(postgres_server: PostgresServer) -> Iterator[Store]:
    """Give a store on PostgreSQL in which much is going on."""
    postgres_server.start()
    with closing(_crowded(postgres_server.create_database("crowded"))) as store:
        yield store
    postgres_server.drop_database("crowded")


@pytest.fixture(scope="module")
def on_mysql(mariadb_server: MariaDbServer) -> Iterator[Store]:
    """Give a store on MariaDB in which much is going on."""
    mariadb_server.start()
    with closing(_crowded(mariadb_server.create_database("crowded"))) as store:
        yield store
    mariadb_server.drop_database("crowded")


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Give a store on SQLite in which much is going on."""
    with closing(_crowded(f"sqlite:///{tmp_path_factory.mktemp('crowded') / 'batchkit.db'}")) as store:
        yield store


def _sent(store: Store, step: Callable[[Store], object]) -> list[tuple[str, Any]]:
    """Do a step, and give the statements that it has sent and that look for rows."""
    sent: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, values: Any, ___: Any, ____: Any) -> None:
        if statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE")) and _OURS.search(statement):
            sent.append((statement, values))

    engine = store.database.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        step(store)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert sent
    return sent


class _Undone(Exception):
    """Rolls back what was explained by doing it."""


def _explained(store: Store, statement: str, values: Any) -> dict[str, Any]:
    plan: dict[str, Any] = {}
    with suppress(_Undone), store.database.transaction() as tx:
        plan = tx.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", values).scalar_one()[0]
        raise _Undone
    return plan


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from _nodes(below)


@pytest.mark.parametrize("name", ASKED)
def test_postgresql_reads_no_table_whole_and_looks_at_few_pages(on_postgres: Store, name: str):
    asked, pages = ASKED[name], 0
    for statement, values in _sent(on_postgres, asked.step):
        plan = _explained(on_postgres, statement, values)["Plan"]
        whole = [node for node in _nodes(plan) if "Seq Scan" in node["Node Type"]]
        assert [] == whole, json.dumps(plan, indent=1)
        pages += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert pages <= asked.pages


def test_postgresql_counts_what_waits_without_looking_at_it(on_postgres: Store):
    with on_postgres.database.reading() as connection:
        connection.exec_driver_sql("VACUUM batchkit_partition")
    pages = sum(
        plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        for plan in (_explained(on_postgres, *each) for each in _sent(on_postgres, BUSY.step))
    )
    assert pages <= BUSY.pages


def _whole_on_mysql(connection: Connection, statement: str, values: Any) -> list[str]:
    rows = connection.exec_driver_sql(f"EXPLAIN {statement}", values).mappings().all()
    return [
        str(dict(row))
        for row in rows
        # A table of the database, and not what a part of the statement has found.
        if row["type"] in {"ALL", "index"} and row["table"] and not row["table"].startswith("<")
    ]


@pytest.mark.parametrize("name", ASKED)
def test_mysql_reads_no_table_whole(on_mysql: Store, name: str):
    for statement, values in _sent(on_mysql, ASKED[name].step):
        with on_mysql.database.reading() as connection:
            whole = _whole_on_mysql(connection, statement, values)
        # Those that are in order of an index end with their limit.
        assert [] == [each for each in whole if "'index'" not in each], statement


@pytest.mark.parametrize("name", ASKED)
def test_sqlite_reads_no_table_whole(on_sqlite: Store, name: str):
    for statement, values in _sent(on_sqlite, ASKED[name].step):
        with on_sqlite.database.reading() as connection:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).mappings().all()
        details = [row["detail"] for row in rows]
        whole = [each for each in details if re.match(r"SCAN (batchkit_\w+|retry|other)$", each)]
        assert [] == whole, "\n".join([statement, *details])


def test_checkpoints_and_renewals_change_no_index_of_postgresql(postgres_url: str):
    with closing(Store(postgres_url)) as store:
        store.schema.migrate()
        crowd = Crowd("aa", unfinished=1, partitions=20)
        fill(store, crowd)
        lease = store.leases.claim(RunId(crowd.unfinished_run(0)), 7, worker="host:1", seconds=60)
        assert lease is not None
    before = _updates(postgres_url)

    with closing(Store(postgres_url)) as store:
        held = HeldConnection(store.database, lease.run_id)
        for done in range(50):
            held.begin(idle=60)
            moved = Checkpoint(cursor=str(done), done=1, failed=0, carry="{}", chunk_size=1, rate=float(done + 1))
            lease, _ = store.leases.checkpoint(held, lease, moved)
            held.commit()
            assert store.leases.renew(lease)
        held.close()

    # A server that has ended a session has its numbers.
    eventually(lambda: _updates(postgres_url)[0] >= before[0] + 100, message="the updates were not counted")
    updates, heap_only = _updates(postgres_url)
    assert (100, 100) == (updates - before[0], heap_only - before[1])


def _updates(url: str) -> tuple[int, int]:
    with closing(Store(url)) as store, store.database.reading() as connection:
        row = connection.exec_driver_sql(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'batchkit_partition'"
        ).one()
    return int(row[0]), int(row[1])
