"""What a chunk costs: what the database itself says it was told."""

from __future__ import annotations

import contextlib
import re
import sqlite3

from sqlalchemy import Column, Integer, MetaData, Table, create_engine, event, insert, select
from sqlalchemy.pool import Pool

from batchkit import BatchKit, Chunk, RunState, rows
from batchkit.queues import InlineQueue
from tests.servers.mariadb import MariaDbServer
from tests.servers.postgres import PostgresServer
from tests.slices.conftest import job, ledger


def _work_twelve_chunks(url: str) -> None:
    """Work chunks through rows of a table."""
    with contextlib.closing(BatchKit(url, queue=InlineQueue())) as kit:
        kit.migrate()
        engine = create_engine(url)
        metadata = MetaData()
        source = Table("source", metadata, Column("id", Integer, primary_key=True))
        metadata.create_all(engine)
        ledger.create(engine)
        with engine.begin() as tx:
            tx.execute(insert(source), [{"id": i} for i in range(1, 121)])
        engine.dispose()

        def work(chunk: Chunk[int]) -> None:
            chunk.connection.execute(insert(ledger).values(item=chunk[-1]))

        run = job(rows(select(source.c.id), key=source.c.id), work, chunk_size=10).start()
        assert (RunState.SUCCEEDED, 120) == (run.state, run.progress.done)


def _check_cost(statements: list[str]) -> None:
    chunks = 12
    # SQLite's PRAGMAs are settings of the connection in this process and cost nothing.
    statements = [each for each in statements if not each.startswith("PRAGMA")]
    first = next(i for i, each in enumerate(statements) if each.startswith("INSERT INTO ledger")) - 2
    last = max(i for i, each in enumerate(statements) if each.startswith("UPDATE batchkit_partition SET cursor")) + 1
    said = statements[first : last + 1]
    wanted = ["BEGIN", "SELECT source.id", "INSERT INTO ledger", "UPDATE batchkit_partition SET cursor", "COMMIT"]
    assert len(wanted) * chunks == len(said), said
    for index, statement in enumerate(said):
        assert statement.startswith(wanted[index % len(wanted)]), statement


def test_a_chunk_costs_one_statement_and_no_commit_more_on_sqlite(sqlite_url: str):
    statements: list[str] = []

    def trace(connection: sqlite3.Connection, *_: object) -> None:
        connection.set_trace_callback(lambda statement: statements.append(" ".join(statement.split())))

    event.listen(Pool, "connect", trace)
    try:
        _work_twelve_chunks(sqlite_url)
    finally:
        event.remove(Pool, "connect", trace)
    _check_cost(statements)


def test_a_chunk_costs_one_statement_and_no_commit_more_on_postgresql(
    postgres_url: str, postgres_server: PostgresServer
):
    name = postgres_url.rsplit("/", 1)[1]
    with postgres_server.connect("postgres") as connection:
        connection.execute(f"ALTER DATABASE {name} SET log_statement = 'all'")
        connection.execute(f"ALTER DATABASE {name} SET log_min_messages = 'log'")
    _work_twelve_chunks(postgres_url)
    with postgres_server.connect("postgres") as connection:
        connection.execute(f"ALTER DATABASE {name} RESET ALL")
    log = postgres_server.log(tail=1_000_000)
    # Once in a slice the checkpoint is prepared, by a statement of its own, of which its executions remind.
    found = re.findall(r"LOG:  (?:statement: (?!PREPARE)|execute [^:]*: )(.*(?:\n\t.*)*)", log)
    said = [" ".join(statement.split()) for statement in found]
    wanted = [
        "SELECT source.id",
        "INSERT INTO ledger",
        "UPDATE batchkit_partition SET cursor",
        "COMMIT AND",
        "SET LOCAL",
    ]
    mine = [each for each in said if "pg_prepared_statements" not in each]
    first = next(i for i, each in enumerate(mine) if "INSERT INTO ledger" in each) - 1
    assert mine[first - 1].startswith("BEGIN")
    # The last three of each chunk are one round trip.
    for index, each in enumerate(mine[first : first + 12 * len(wanted)]):
        assert wanted[index % len(wanted)] in each, mine[first : first + index + 1]
    assert 12 == sum("INSERT INTO ledger" in each for each in mine)


def test_a_chunk_costs_no_commit_and_three_round_trips_more_on_mysql(mysql_url: str, mariadb_server: MariaDbServer):
    with mariadb_server.connect() as query:
        query.execute("SET GLOBAL log_output = 'TABLE', GLOBAL general_log = ON")
        _work_twelve_chunks(mysql_url)
        query.execute("SET GLOBAL general_log = OFF")
        query.execute("SELECT thread_id, command_type, argument FROM mysql.general_log")
        said = [(thread, f"{kind} {' '.join(argument.split())}") for thread, kind, argument in query.fetchall()]
        query.execute("TRUNCATE TABLE mysql.general_log")
    (slice_,) = {thread for thread, each in said if "PRIMARY) SET `cursor`" in each}
    mine = [each for thread, each in said if thread == slice_ and not each.startswith("Query SET @")]
    # Before the first chunk is the plan, behind the last the read that finds nothing. The log leaves out the ping.
    first = next(i for i, each in enumerate(mine) if each.startswith("Query INSERT INTO ledger")) - 3
    wanted = [
        "Query SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "Query START TRANSACTION",
        "Query SELECT source.id",
        "Query INSERT INTO ledger",
        "Query UPDATE batchkit_partition FORCE INDEX (PRIMARY) SET `cursor`",
        "Query SELECT batchkit_run.state",
        "Query COMMIT",
    ]
    chunks = mine[first : first + 12 * len(wanted)]
    for index, each in enumerate(chunks):
        assert each.startswith(wanted[index % len(wanted)]), chunks[: index + 1]
    assert 12 == sum(each.startswith("Query INSERT INTO ledger") for each in mine)
