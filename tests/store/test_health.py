"""What the database says of itself, on each database."""

from __future__ import annotations

import time
from contextlib import closing

import pytest
from sqlalchemy import create_engine, event, make_url, text

from batchkit import BatchKit
from batchkit.doctor import Level, examine
from batchkit.queues import InlineQueue
from batchkit.store import Backlog, Clock, Store
from tests.servers.mariadb import MariaDbServer
from tests.store.conftest import Bench

DAY_SECONDS = 24 * 3600.0
PATIENCE_SECONDS = 15.0


def found(kit: BatchKit) -> list[tuple[str, Level]]:
    return [(finding.check, finding.level) for finding in examine(kit)]


def backlog(bench: Bench) -> Backlog:
    return bench.store.health.backlog(waited=60.0, unswept=60.0)


# The server


def test_a_server_as_it_should_be_has_nothing_to_tell(bench: Bench):
    server = bench.store.health.server()

    assert server.version >= server.at_least
    assert server.refuses_writes is None
    assert server.journal in {None, "wal"}


def test_a_database_in_which_nothing_may_be_written_is_found(postgres_url: str):
    with closing(BatchKit(postgres_url, queue=InlineQueue(), grace=30)) as kit:
        kit.migrate()
        assert [] == found(kit)
    engine = create_engine(postgres_url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    engine.dispose()

    with closing(BatchKit(postgres_url, queue=InlineQueue(), grace=30)) as kit:
        assert [("database-read-only", Level.FAIL)] == found(kit)


def test_what_mysql_leaves_open_is_found(mysql_url: str):
    with closing(BatchKit(mysql_url, queue=InlineQueue(), grace=30)) as kit:
        kit.migrate()
        assert [] == found(kit)
    engine = create_engine(mysql_url)
    with engine.begin() as tx:
        tx.execute(text("CREATE TABLE logs (id INTEGER) ENGINE=MyISAM"))
        tx.execute(text("ALTER TABLE batchkit_transition DROP FOREIGN KEY batchkit_transition_ibfk_1"))
        tx.execute(text("ALTER TABLE batchkit_transition ENGINE=Aria TRANSACTIONAL=0"))
    engine.dispose()

    unsafe = create_engine(make_url(mysql_url).update_query_dict({"charset": "utf8mb3"}))
    event.listen(unsafe, "connect", lambda connection, _: connection.query("SET sql_mode = 'ANSI_QUOTES'"))
    with closing(BatchKit(unsafe, queue=InlineQueue(), grace=30)) as kit:
        findings = {finding.check: finding for finding in examine(kit)}
        kinds = {"mysql-own-engine", "mysql-engine", "mysql-sql-mode", "mysql-charset"}
        assert kinds == findings.keys()
        assert "batchkit_transition" in findings["mysql-own-engine"].problem
        assert "logs" in findings["mysql-engine"].problem
        assert "utf8mb3" in findings["mysql-charset"].problem
    unsafe.dispose()


def test_a_database_without_transactions_under_another_name_is_seen_where_the_tables_are(
    mysql_url: str, mariadb_server: MariaDbServer
):
    name = f"{make_url(mysql_url).database}_b"
    mariadb_server.create_database(name)
    try:
        with mariadb_server.connect() as query:
            query.execute(f"CREATE TABLE {name}.logs (id INTEGER) ENGINE=MyISAM")
        with closing(Store(mysql_url)) as here, closing(Store(mysql_url, schema=name)) as there:
            assert () == here.health.server().without_transactions
            assert ("logs",) == there.health.server().without_transactions
    finally:
        mariadb_server.drop_database(name)


def test_an_engine_in_autocommit_is_found(postgres_url: str):
    with closing(BatchKit(create_engine(postgres_url, isolation_level="AUTOCOMMIT"), grace=30)) as kit:
        assert [("database-refused", Level.FAIL)] == found(kit)
        assert "AUTOCOMMIT" in examine(kit)[0].problem


@pytest.mark.bare
def test_a_pool_of_one_connection_is_found_and_the_rest_is_checked(database_url: str):
    with closing(BatchKit(create_engine(database_url, pool_size=1, max_overflow=0), grace=30)) as kit:
        assert [("pool-size", Level.FAIL), ("database-tables", Level.FAIL)] == found(kit)


# The clock


@pytest.mark.parametrize("ahead", [-90.0, 0.0, 90.0])
def test_the_clocks_are_compared(database_url: str, ahead: float):
    with closing(Store(database_url, clock=Clock(lambda: ahead))) as store:
        offset = store.health.clock_offset()

    assert ahead == pytest.approx(offset.seconds, abs=offset.uncertainty + 0.1)
    assert offset.at_least <= abs(ahead) + 0.1


# What waits


def test_what_has_just_been_started_does_not_wait_for_too_long(bench: Bench):
    bench.start()

    assert Backlog(waiting=0, longest_seconds=0.0, unswept=0) == backlog(bench)


def test_a_run_that_nobody_takes_waits_and_is_unswept_later(bench: Bench):
    before = time.monotonic()
    bench.start()
    bench.pass_time(65)
    waits = backlog(bench)
    at_most = 65 + time.monotonic() - before
    bench.pass_time(PATIENCE_SECONDS)

    assert (1, 0) == (waits.waiting, waits.unswept)
    # The clock runs on between the statements, for as long as a busy machine takes.
    assert 65 <= waits.longest_seconds <= at_most + 0.1
    assert (1, 1) == (backlog(bench).waiting, backlog(bench).unswept)


def test_a_run_with_several_partitions_waits_where_nobody_works_any_and_counts_once(bench: Bench):
    run_id = bench.start(ranges=30)
    lease = bench.claim(run_id, 7, seconds=1000)
    bench.pass_time(100)
    assert (0, 0) == (backlog(bench).waiting, backlog(bench).unswept)
    bench.store.leases.release(lease, reason="the test")
    assert (1, 1) == (backlog(bench).waiting, backlog(bench).unswept)
    # Others of it are sent later.
    assert 4 == len(bench.store.wake_ups.take_shares(run_id, window=4))
    assert (1, 0) == (backlog(bench).waiting, backlog(bench).unswept)


def test_a_sweep_has_seen_to_what_it_has_sent_again(bench: Bench):
    run_id = bench.start()
    bench.pass_time(100)
    (wake_up,) = bench.store.wake_ups.waiting(run_id)
    bench.store.wake_ups.take_resend(wake_up)

    assert (1, 0) == (backlog(bench).waiting, backlog(bench).unswept)


def test_a_run_whose_worker_died_waits_since_its_lease_ended(bench: Bench):
    run_id = bench.start()
    bench.pass_time(500)
    bench.claim(run_id, seconds=30)
    bench.pass_time(30 + 40)
    just_dead = backlog(bench)
    bench.pass_time(40)

    assert 0 == just_dead.waiting
    assert (1, 1) == (backlog(bench).waiting, backlog(bench).unswept)
    # And not since it was started; a busy machine adds some seconds.
    assert 80 <= backlog(bench).longest_seconds < 500


def test_a_run_that_is_worked_does_not_wait(bench: Bench):
    run_id = bench.start()
    bench.claim(run_id, seconds=1000)
    bench.pass_time(500)

    assert 0 == backlog(bench).waiting


@pytest.mark.parametrize("action", ["pause", "cancel"])
def test_a_run_that_is_paused_or_over_does_not_wait(bench: Bench, action: str):
    getattr(bench.store.runs, action)(bench.start())
    bench.pass_time(500)

    assert 0 == backlog(bench).waiting


# Chunks


def test_the_longest_last_chunk_of_a_job_is_given(bench: Bench):
    # The bench's chunks are of one item a second.
    for items in (40, 7):
        lease = bench.claim(bench.start())
        lease, _ = bench.checkpoint(lease, items=90)
        bench.checkpoint(lease, items=items)

    assert {"job": 40.0} == bench.store.health.chunk_seconds(within=DAY_SECONDS)


def test_runs_that_ended_long_ago_say_nothing_about_today(bench: Bench):
    lease = bench.claim(run_id := bench.start())
    bench.checkpoint(lease, items=40)
    bench.store.runs.cancel(run_id)
    bench.pass_time(20)
    bench.store.runs.settle_unattended(run_id)
    assert {"job": 40.0} == bench.store.health.chunk_seconds(within=DAY_SECONDS)
    bench.pass_time(DAY_SECONDS)

    assert {} == bench.store.health.chunk_seconds(within=DAY_SECONDS)


def test_a_run_without_a_chunk_says_nothing(bench: Bench):
    bench.start()

    assert {} == bench.store.health.chunk_seconds(within=DAY_SECONDS)
