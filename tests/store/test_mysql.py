"""What MySQL and MariaDB do otherwise: transactions that end unasked, DDL that commits, settings that stay."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import datetime, timezone
from typing import Any

import pymysql
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, event, inspect, make_url, select, text
from sqlalchemy.exc import DBAPIError

from batchkit import BatchKit, Chunk, RunState, span
from batchkit.errors import InvalidDatabase
from batchkit.model import NewRun
from batchkit.queues import InlineQueue
from batchkit.states import FINAL, PartitionState
from batchkit.store import Clock, Store, tables
from batchkit.store.dialects import Fault, MySql
from batchkit.store.purging import PurgeStatements
from batchkit.store.statements import Statements
from batchkit.store.tables import VERSION_TABLE
from tests.servers.locks import anybody_waits
from tests.servers.mariadb import MariaDbServer
from tests.slices.conftest import Ledger, job, write
from tests.store.conftest import Bench
from tests.waiting import eventually

# How tables are made here is a part of it.
pytestmark = pytest.mark.bare


@pytest.fixture
def kit(mysql_url: str) -> Iterator[BatchKit]:
    """Give a kit on MariaDB."""
    with closing(BatchKit(mysql_url, queue=InlineQueue())) as made:
        made.migrate()
        yield made


@pytest.fixture
def done(mysql_url: str) -> Iterator[Ledger]:
    """Give the ledger, with two rows to quarrel over and many that make the other side the dearer one to undo."""
    made = Ledger(mysql_url)
    with made.engine.begin() as tx:
        tx.execute(text("CREATE TABLE quarrel (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)"))
        tx.execute(text("INSERT INTO quarrel SELECT seq, 0 FROM seq_1_to_100"))
    yield made
    made.engine.dispose()


def _lose_a_deadlock(chunk: Chunk[int], engine: Engine) -> None:
    """Let the server roll this chunk's transaction back."""
    chunk.connection.execute(text("UPDATE quarrel SET n = n + 1 WHERE id = 1"))
    with ThreadPoolExecutor(1) as pool, engine.begin() as other:
        other.execute(text("UPDATE quarrel SET n = n + 1 WHERE id >= 2"))
        waiting = pool.submit(other.execute, text("UPDATE quarrel SET n = n + 1 WHERE id = 1"))
        with engine.connect() as looking:
            eventually(lambda: anybody_waits(looking), message="the other does not wait for the chunk")
        try:
            chunk.connection.execute(text("UPDATE quarrel SET n = n + 1 WHERE id = 2"))
        finally:
            waiting.result(timeout=30)


def test_a_deadlock_that_the_function_swallows_does_not_commit_a_checkpoint_without_its_writes(
    kit: BatchKit, done: Ledger
):
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        if chunk.number == 2:
            with suppress(DBAPIError):
                _lose_a_deadlock(chunk, done.engine)

    run = job(span(30), work, chunk_size=10).start()
    assert (RunState.FAILED, 10) == (run.state, run.progress.done)
    assert "deadlock" in str(run.error)
    assert list(range(10)) == done.items()


def test_a_deadlock_that_finish_swallows_does_not_end_the_run(kit: BatchKit, done: Ledger):
    def finish(end: Any) -> None:
        with suppress(DBAPIError):
            _lose_a_deadlock(end, done.engine)

    run = job(span(5), write, finish=finish).start()
    assert RunState.FAILED == run.state
    assert "deadlock" in str(run.error)


@pytest.mark.filterwarnings("ignore:An exception has occurred during handling of a previous exception")
@pytest.mark.parametrize("nested", [False, True])
def test_a_deadlock_is_tried_again_though_it_took_the_savepoint_with_it(kit: BatchKit, done: Ledger, *, nested: bool):
    tries: list[int] = []

    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        tries.append(chunk.attempt)
        if chunk.attempt > 1:
            return
        if not nested:
            _lose_a_deadlock(chunk, done.engine)
        with chunk.connection.begin_nested():
            _lose_a_deadlock(chunk, done.engine)

    run = job(span(3), work).start()
    assert RunState.SUCCEEDED == run.state, run.error
    assert [1, 2] == tries
    assert [0, 1, 2] == done.items()


def test_ddl_in_a_chunk_which_commits_it_is_noticed_before_the_checkpoint(kit: BatchKit, done: Ledger):
    def work(chunk: Chunk[int]) -> None:
        write(chunk)
        chunk.connection.execute(text("CREATE TABLE committed (id INTEGER)"))

    run = job(span(3), work).start()
    assert (RunState.FAILED, 0) == (run.state, run.progress.done)
    assert "DDL" in str(run.error)


def test_a_users_pool_gets_its_connections_back_as_they_were(mysql_url: str, done: Ledger):
    engine = create_engine(mysql_url, pool_size=1, max_overflow=1)
    look = text("SELECT @@innodb_lock_wait_timeout, @@idle_transaction_timeout, @@tx_isolation, @@autocommit")
    inside: list[tuple[Any, ...]] = []

    def work(chunk: Chunk[int]) -> None:
        inside.append(tuple(chunk.connection.execute(look).one())[:2])

    settings_of_theirs = "SET @@innodb_lock_wait_timeout = 17, @@idle_transaction_timeout = 1234"
    event.listen(engine, "connect", lambda connection, _: connection.query(settings_of_theirs))
    with closing(BatchKit(engine, queue=InlineQueue())) as kit:
        kit.migrate()
        run = job(span(2), work, chunk_size=1, lease=30).start()
        assert RunState.SUCCEEDED == run.state, run.error
        # How long a chunk waits for locks is the user's affair.
        assert [(17, 30)] * 2 == inside
        with engine.connect() as first, engine.connect() as second:
            for connection in (first, second):
                assert (17, 1234, "REPEATABLE-READ", 0) == tuple(connection.execute(look).one())
    engine.dispose()


def test_the_moment_is_the_statements_and_in_utc_whatever_the_zone_of_the_session(mysql_url: str):
    with closing(Store(mysql_url)) as store, store.database.transaction() as tx:
        tx.execute(text("SET time_zone = '-08:00'"))
        first = tx.execute(select(Clock().now())).scalar_one()
        tx.execute(text("SELECT sleep(0.05)"))
        second = tx.execute(select(Clock().now())).scalar_one()
    assert 0.05 <= (second - first).total_seconds() < 5
    assert first.microsecond or second.microsecond
    assert abs((datetime.now(timezone.utc) - second).total_seconds()) < 10


@pytest.mark.parametrize("options", ["CHARACTER SET latin1", "CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci"])
def test_keys_differ_by_case_and_texts_are_of_any_length_and_script(
    mysql_url: str, mariadb_server: MariaDbServer, options: str
):
    with mariadb_server.connect() as query:
        query.execute(f"ALTER DATABASE {make_url(mysql_url).database} {options}")
    with closing(Bench(mysql_url)) as bench:
        params = '{"text": "' + "snow ☃ and \N{PILE OF POO} " * 10_000 + '"}'
        keys = ("key", "KEY", "kéy")
        runs = [NewRun(job="job", params=params, queue="q", delivery="exactly-once", start_key=key) for key in keys]
        assert [run.id for run in runs] == [bench.store.starts.join(run) for run in runs]
        assert [params] * 3 == [bench.store.records.load(run.id).params for run in runs]
        lease = bench.claim(runs[0].id)
        forged = lease.__class__(**{**_fields(lease), "holder": lease.holder.upper()})
        assert not bench.store.leases.renew(forged)
        assert bench.store.leases.renew(lease)


def _fields(lease: Any) -> dict[str, Any]:
    return {name: getattr(lease, name) for name in lease.__slots__}


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="this system's keepalive has no name for its times")
def test_a_server_that_is_cut_off_is_noticed_within_a_lease(mysql_url: str):
    with closing(Store(mysql_url)) as store, store.database.reading() as connection:
        driver: Any = connection.connection.driver_connection
        idle, interval, count = (
            driver._sock.getsockopt(socket.IPPROTO_TCP, option)  # noqa: SLF001  there is no other way to ask
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert driver._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)  # noqa: SLF001
        assert idle + interval * count <= 30


def test_a_renewal_that_changes_nothing_is_no_lost_lease(mysql_url: str):
    with closing(Bench(mysql_url)) as bench:
        lease = bench.claim(bench.start(), seconds=3600)
        bench.pass_time(-60)
        # The end stays where it is, which is not moved back.
        assert bench.store.leases.renew(lease)


def test_connections_that_count_changed_rows_only_are_refused(mysql_url: str):
    engine = create_engine(mysql_url, connect_args={"client_flag": 0})
    event.listen(engine, "do_connect", lambda _, __, ___, options: options.update(client_flag=0))
    with closing(BatchKit(engine)) as kit, pytest.raises(InvalidDatabase, match="FOUND_ROWS"):
        kit.runs()
    engine.dispose()


def test_a_migration_that_was_killed_between_two_steps_goes_on_from_there(mysql_url: str):
    class Killed(BaseException):
        pass

    engine = create_engine(mysql_url)
    steps_left = [0]

    def count(_: Any, __: Any, statement: str, *___: Any) -> None:
        if (
            statement.lstrip().startswith(("CREATE", "ALTER", "INSERT", "UPDATE"))
            and VERSION_TABLE not in statement[:40]
        ):
            if not steps_left[0]:
                raise Killed
            steps_left[0] -= 1

    event.listen(engine, "before_cursor_execute", count)
    with closing(Store(engine)) as store:
        kills = 0
        while True:
            steps_left[0] = 1
            try:
                store.schema.migrate()
            except Killed:
                kills += 1
            else:
                break
        assert kills >= 10
        store.schema.check()
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"version_table": VERSION_TABLE, "compare_type": True}
            )
            assert [] == compare_metadata(context, tables().metadata)


def test_tables_are_made_on_a_server_that_is_set_to_an_old_row_format(mysql_url: str, mariadb_server: MariaDbServer):
    with mariadb_server.connect() as query:
        query.execute("SET GLOBAL innodb_default_row_format = 'compact'")
        try:
            with closing(Store(mysql_url)) as store:
                store.schema.migrate()
                store.schema.check()
        finally:
            query.execute("SET GLOBAL innodb_default_row_format = 'dynamic'")


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mariadb+pymysql"])
def test_urls_of_other_schemes_mean_the_same(mysql_url: str, done: Ledger, scheme: str):
    url = mysql_url.replace("mysql+pymysql", scheme)
    with closing(BatchKit(url, queue=InlineQueue())) as kit:
        kit.migrate()
        run = job(span(30), write, chunk_size=10).start()
        assert (RunState.SUCCEEDED, 30) == (run.state, run.progress.done), run.error
        context_engine = kit._store.database.engine  # noqa: SLF001  its dialect is called otherwise
        with context_engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            found = compare_metadata(context, kit.metadata)
        assert not [change for change in found if "batchkit" in str(change)]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        ((1205, "Lock wait timeout exceeded"), Fault.TRANSIENT),
        ((1213, "Deadlock found"), Fault.TRANSIENT),
        ((1040, "Too many connections"), Fault.TRANSIENT),
        ((2006, "gone away"), Fault.LOST),
        ((2013, "Lost connection"), Fault.LOST),
        ((1053, "Server shutdown in progress"), Fault.LOST),
        ((1927, "Connection was killed"), Fault.LOST),
        ((3169, "Session was killed"), Fault.LOST),
        ((3032, "The server is currently in offline mode"), Fault.LOST),
        ((3101, "Plugin instructed the server to rollback the current transaction."), Fault.TRANSIENT),
        ((1180, "Got error 149 - 'Lock deadlock; Retry transaction' during COMMIT"), Fault.TRANSIENT),
        ((1180, "Got error 28 - 'No space left on device' during COMMIT"), None),
        ((1290, "running with the --read-only option so it cannot execute"), Fault.READ_ONLY),
        ((1290, "running with the --secure-file-priv option so it cannot execute"), None),
        ((1836, "Running in read-only mode"), Fault.READ_ONLY),
        ((1062, "Duplicate entry"), None),
        ((1305, "SAVEPOINT x does not exist"), None),
    ],
)
def test_errors_mean_what_their_number_says(error: tuple[int, str], fault: Fault | None):
    assert fault is MySql().fault(pymysql.err.OperationalError(*error))


def test_a_schema_is_a_database_of_its_own(mysql_url: str, mariadb_server: MariaDbServer, done: Ledger):
    name = f"{make_url(mysql_url).database}_b"
    try:
        with closing(BatchKit(mysql_url, queue=InlineQueue(), schema=name)) as kit:
            kit.migrate()
            kit.migrate()
            assert RunState.SUCCEEDED == job(span(5), write).start().state
        assert list(range(5)) == done.items()
        assert {"ledger", "quarrel"} == set(inspect(done.engine).get_table_names())
    finally:
        mariadb_server.drop_database(name)


def test_updates_of_one_row_find_it_by_its_id_and_by_no_other_index(mysql_url: str):
    with closing(Bench(mysql_url)) as bench:
        run_id = bench.start()
        (wake_up,) = bench.store.wake_ups.waiting(run_id)
        lease = bench.claim(run_id)
        statements = Statements(bench.store.database.tables, bench.store.database.clock)
        purging = PurgeStatements(bench.store.database.tables, bench.store.database.clock)
        updates = [
            statements.lock_run(run_id),
            statements.claim(run_id, 0, holder="holder", worker="worker", seconds=10),
            statements.renew(lease),
            statements.release(lease, state=PartitionState.FINAL, delay=0),
            statements.take_resend(wake_up, patience=20),
            statements.begin_announcing(run_id, seconds=20),
            statements.keep_announcing(run_id, seconds=20),
            statements.take_announcement_resend(run_id, patience=20),
            statements.protect(lease, is_protected=True),
            statements.postpone(run_id, 0, wake_no=1, seconds=20),
            statements.expire("worker", run_id),
            purging.begin_purge(run_id, seconds=20, states=FINAL),
            purging.remove_run(run_id),
        ]
        engine = bench.store.database.engine
        with engine.connect() as connection:
            for update in updates:
                compiled = update.compile(engine, compile_kwargs={"render_postcompile": True})  # type: ignore[attr-defined]
                plan = connection.exec_driver_sql(f"EXPLAIN {compiled}", compiled.params).mappings().one()
                assert "PRIMARY" == plan["key"], compiled
