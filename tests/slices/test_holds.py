"""The holds that are ready to use, on a PostgreSQL that really is in need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, text

from batchkit import BatchKit, Run, RunState, Throttle, span
from batchkit.errors import InvalidJob
from batchkit.holds import dead_tuples, long_transactions, replica_lag
from batchkit.queues import InlineQueue
from batchkit.slicing import Ending
from batchkit.stopping import Stop
from tests.servers.postgres import PostgresServer
from tests.slices.conftest import job
from tests.waiting import eventually


@pytest.fixture
def kit(postgres_url: str) -> Iterator[BatchKit]:
    """Give a kit that wakes nobody up."""
    with closing(BatchKit(postgres_url)) as made:
        made.migrate()
        yield made


def start(hold: Any) -> Run:
    run: Run = job(span(10), lambda chunk: None, throttle=Throttle(hold=hold)).start()
    return run


def work(kit: BatchKit, run: Run) -> Ending:
    """Work a slice of the run at once, also where it is held still."""
    with Stop() as stop:
        outcome = kit._worker.work_partition(run.id, 0, stop=stop)  # noqa: SLF001  a kit's own loop waits
    assert outcome is not None
    run.refresh()
    return outcome.ending


def test_a_run_waits_for_a_long_transaction_and_goes_on_behind_it(kit: BatchKit, postgres_url: str):
    run = start(long_transactions(0.001))
    engine = create_engine(postgres_url)
    with engine.connect() as other:
        pid = other.execute(text("SELECT pg_backend_pid()")).scalar_one()
        other.execute(text("SELECT pg_sleep(0.01)"))
        assert Ending.HELD is work(kit, run)
        assert f"long_transactions: a transaction of process {pid} is open for" in str(run.waiting_reason)
    engine.dispose()
    assert Ending.EXHAUSTED is work(kit, run)
    assert RunState.SUCCEEDED is run.state


def test_a_transaction_that_is_not_long_or_is_elsewhere_holds_nothing(
    kit: BatchKit, postgres_url: str, postgres_server: PostgresServer
):
    engine = create_engine(postgres_url)
    with engine.connect() as other, postgres_server.connect() as elsewhere:
        other.execute(text("SELECT 1"))
        elsewhere.autocommit = False
        elsewhere.execute("SELECT pg_sleep(0.01)")
        assert Ending.EXHAUSTED is work(kit, start(long_transactions(3600)))
        other.rollback()
        assert Ending.EXHAUSTED is work(kit, start(long_transactions(0.001)))
    engine.dispose()


_rows = Table("Dead Rows", MetaData(), Column("id", Integer, primary_key=True))


@pytest.mark.parametrize("table", ['"Dead Rows"', _rows])
def test_a_run_waits_for_vacuum(kit: BatchKit, postgres_url: str, table: Any):
    engine = create_engine(postgres_url).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as tx:
        tx.execute(text('CREATE TABLE "Dead Rows" (id INT PRIMARY KEY) WITH (autovacuum_enabled = off)'))
        tx.execute(text('INSERT INTO "Dead Rows" SELECT generate_series(1, 5000)'))
        tx.execute(text('DELETE FROM "Dead Rows" WHERE id <= 2000'))
        # A session reports what it did now and then, or when it is asked to.
        tx.execute(text("SELECT pg_stat_force_next_flush()"))
        run, by_number = start(dead_tuples(table)), start(dead_tuples(table, most=2500))
        assert Ending.HELD is work(kit, run)
        assert "2,000 rows of" in str(run.waiting_reason)
        assert Ending.EXHAUSTED is work(kit, by_number)
        tx.execute(text('VACUUM "Dead Rows"'))
    engine.dispose()
    assert Ending.EXHAUSTED is work(kit, run)


def test_the_dead_rows_of_partitions_count_and_a_few_do_not(kit: BatchKit, postgres_url: str):
    engine = create_engine(postgres_url).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as tx:
        tx.execute(text("CREATE TABLE parts (id INT PRIMARY KEY) PARTITION BY RANGE (id)"))
        for start_at in (0, 1000):
            tx.execute(
                text(
                    f"CREATE TABLE parts_{start_at} PARTITION OF parts FOR VALUES FROM ({start_at}) "
                    f"TO ({start_at + 1000}) WITH (autovacuum_enabled = off)"
                )
            )
        tx.execute(text("INSERT INTO parts SELECT generate_series(0, 1999)"))
        tx.execute(text("DELETE FROM parts WHERE id % 2 = 0"))
        tx.execute(text("SELECT pg_stat_force_next_flush()"))
        assert Ending.EXHAUSTED is work(kit, start(dead_tuples("parts")))
        assert Ending.HELD is work(kit, start(dead_tuples("parts", most=999)))
    engine.dispose()


def test_a_run_waits_for_a_replica_that_is_behind(kit: BatchKit, postgres_server: PostgresServer):
    run = start(replica_lag(0.2))
    with postgres_server.replica() as port, postgres_server.connect() as primary:
        primary.execute("CREATE TABLE IF NOT EXISTS beats (beat INT)")
        replica = eventually(lambda: _connected(port), within=60, message="the replica did not begin")

        def write_and_work() -> Ending:
            primary.execute("INSERT INTO beats VALUES (1)")
            return work(kit, start(replica_lag(0.2)))

        with replica:
            eventually(lambda: _streams(primary), within=60, message="the replica does not stream")
            replica.execute("SELECT pg_wal_replay_pause()")
            eventually(lambda: write_and_work() is Ending.HELD, within=30, message="no run waits for the replica")
            assert Ending.HELD is work(kit, run)
            assert "replica_lag: the replica replica is" in str(run.waiting_reason)
            replica.execute("SELECT pg_wal_replay_resume()")
            eventually(lambda: write_and_work() is Ending.EXHAUSTED, within=30, message="runs wait for a good replica")
        primary.execute("DROP TABLE beats")


def _connected(port: int) -> Any:
    try:
        return psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres", autocommit=True)
    except psycopg.OperationalError:
        return None


def _streams(primary: psycopg.Connection[Any]) -> bool:
    return primary.execute("SELECT state FROM pg_stat_replication").fetchall() == [("streaming",)]


def test_no_replica_is_waited_for_where_there_is_none(kit: BatchKit):
    assert Ending.EXHAUSTED is work(kit, start(replica_lag()))


def test_a_run_with_a_hold_that_cannot_be_asked_there_fails_and_says_so(sqlite_url: str):
    with closing(BatchKit(sqlite_url, queue=InlineQueue())) as kit:
        kit.migrate()
        for hold in (replica_lag(), long_transactions(), dead_tuples("users")):
            run = start(hold)
            assert RunState.FAILED is run.state
            assert f"{hold.__name__} asks PostgreSQL, but the runs are kept in sqlite" in str(run.error)


def test_a_table_that_is_not_there_fails_the_run(kit: BatchKit):
    run = start(dead_tuples("nowhere"))
    assert Ending.FAILED is work(kit, run)
    assert "there is no table nowhere" in str(run.error)


@pytest.mark.parametrize(
    "make",
    [
        lambda: replica_lag("fast"),  # type: ignore[arg-type]
        lambda: long_transactions(0),
        lambda: dead_tuples("users", share=2),
        lambda: dead_tuples("users", most=0),
        lambda: dead_tuples(3),  # type: ignore[arg-type]
        lambda: dead_tuples("users", hold_for=-1),
    ],
)
def test_what_makes_no_hold_is_refused(make: Any):
    with pytest.raises(InvalidJob):
        make()
