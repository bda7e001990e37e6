"""Migrations make exactly the tables that the code works with, from any number of processes, and refuse the rest."""

from __future__ import annotations

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from batchkit import BatchKit, span
from batchkit.errors import DatabaseUnavailable, InvalidDatabase, SchemaMismatch
from batchkit.job import JOBS
from batchkit.queues import InlineQueue
from batchkit.store import Store, tables
from batchkit.store.tables import VERSION_TABLE
from tests.slices.conftest import job

_ROOT = Path(__file__).resolve().parents[2]


def _differences(url: str, schema: str | None = None) -> list[object]:
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": schema is not None,
                "version_table": VERSION_TABLE,
                "version_table_schema": schema,
                "include_name": lambda name, kind, _: kind != "schema" or name == schema,
                "compare_type": True,
            },
        )
        found: list[object] = compare_metadata(context, tables(schema).metadata)
    engine.dispose()
    return found


def test_the_migrations_make_the_tables_that_the_code_works_with(database_url: str):
    with closing(Store(database_url)) as store:
        store.schema.migrate()
        assert [] == _differences(database_url)
        assert store.schema.head() == store.schema.current()
        store.schema.check()


def test_migrating_twice_is_harmless(database_url: str):
    with closing(BatchKit(database_url, queue=InlineQueue())) as kit:
        kit.migrate()
        run = job(span(3), lambda chunk: None).start()
        kit.migrate()
        assert 3 == kit.run(run.id).progress.done


def test_migrating_from_many_threads_at_once_is_harmless(database_url: str):
    stores = [Store(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda store: store.schema.migrate(), stores))
    assert [] == _differences(database_url)
    for store in stores:
        store.close()


def test_migrating_from_two_processes_at_once_is_harmless(database_url: str):
    program = "import sys; from batchkit import BatchKit; BatchKit(sys.argv[1]).migrate()"
    processes = [
        subprocess.Popen([sys.executable, "-c", program, database_url], cwd=_ROOT, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert 0 == process.returncode, errors.decode()
    assert [] == _differences(database_url)


def test_a_schema_of_its_own_holds_the_tables_and_the_version(postgres_url: str):
    with closing(BatchKit(postgres_url, queue=InlineQueue(), schema="batch")) as kit:
        kit.migrate()
        assert 5 == job(span(5), lambda chunk: None).start().progress.done
        assert [] == _differences(postgres_url, "batch")
        engine = create_engine(postgres_url)
        assert [] == inspect(engine).get_table_names(schema="public")
        engine.dispose()


def test_downgrading_removes_the_tables_and_upgrading_brings_them_back(database_url: str):
    with closing(Store(database_url)) as store:
        store.schema.migrate()
        with store.schema._locked() as tx:  # noqa: SLF001  there is no public way down
            command.downgrade(store.schema._config(connection=tx), "base")  # noqa: SLF001  there is no public way down
        with closing(Store(database_url)) as again, pytest.raises(SchemaMismatch, match="batchkit db upgrade"):
            again.schema.check()
        store.schema.migrate()
    assert [] == _differences(database_url)


def test_missing_tables_say_what_to_run(database_url: str):
    with closing(BatchKit(database_url, queue=InlineQueue())) as kit:
        with pytest.raises(SchemaMismatch, match="are not there; run `batchkit db upgrade`"):
            job(span(3), lambda chunk: None).start()
        with pytest.raises(SchemaMismatch, match="are not there; run `batchkit db upgrade`"):
            kit.runs()


def test_tables_of_a_newer_batchkit_are_refused_and_left_alone(database_url: str):
    with closing(Store(database_url)) as store:
        store.schema.migrate()
        with store.database.transaction() as tx:
            tx.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
        with closing(Store(database_url)) as fresh:
            for step in (store.schema.migrate, fresh.schema.check):
                with pytest.raises(SchemaMismatch, match="are newer than this batchkit"):
                    step()
        assert "9999" == store.schema.current()


def test_tables_of_a_users_own_alembic_are_taken_if_they_fit_and_refused_by_column_if_not(database_url: str):
    with closing(BatchKit(database_url, queue=InlineQueue())) as kit:
        engine = create_engine(database_url)
        kit.metadata.create_all(engine)
        assert 3 == job(span(3), lambda chunk: None).start().progress.done
        with engine.begin() as tx:
            tx.execute(text("ALTER TABLE batchkit_run DROP COLUMN waiting_reason"))
        engine.dispose()
    with (
        closing(Store(database_url)) as store,
        pytest.raises(SchemaMismatch, match=r"lack batchkit_run\.waiting_reason"),
    ):
        store.schema.check()


def test_the_statements_can_be_had_without_running_them(database_url: str):
    with closing(Store(database_url)) as store:
        sql = store.schema.sql()
        assert "CREATE TABLE batchkit_run" in sql
        assert store.schema.current() is None


def test_the_embedded_default_makes_its_file_and_tables_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHKIT_DATABASE_URL", raising=False)
    with closing(BatchKit(queue=InlineQueue())):
        assert 3 == job(span(3), lambda chunk: None).start().progress.done
    assert (tmp_path / "batchkit.db").exists()


def test_the_environment_names_the_database(database_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BATCHKIT_DATABASE_URL", database_url)
    with closing(BatchKit(queue=InlineQueue())) as kit:
        kit.migrate()
        assert database_url == kit.database_url
    monkeypatch.setenv("BATCHKIT_DATABASE_URL", "")
    with pytest.raises(InvalidDatabase, match="BATCHKIT_DATABASE_URL is empty"):
        BatchKit()


def test_a_database_that_is_down_says_so_and_a_start_loses_nothing_but_itself():
    with closing(BatchKit("postgresql+psycopg://nobody@127.0.0.1:1/none", queue=InlineQueue())):
        made = job(span(3), lambda chunk: None)
        with pytest.raises(DatabaseUnavailable, match="see that it runs"):
            made.start()
        assert made.name in JOBS


def test_a_password_is_never_shown():
    with (
        closing(BatchKit("postgresql+psycopg://me:secret@127.0.0.1:1/none", queue=InlineQueue())) as kit,
        pytest.raises(DatabaseUnavailable) as refused,
    ):
        kit.runs()
    assert "secret" not in f"{refused.value} {kit!r}"


def test_a_read_only_file_says_so(sqlite_url: str):
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with closing(BatchKit(sqlite_url, queue=InlineQueue())) as kit:
        kit.migrate()
    read_only = f"sqlite:///file:{path}?mode=ro&uri=true"
    path.chmod(stat.S_IREAD)
    made = job(span(3), lambda chunk: None)
    with closing(BatchKit(read_only, queue=InlineQueue())), pytest.raises(DatabaseUnavailable, match="writable"):
        made.start()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("not a url", "is not a database URL"),
        ("oracle://x", "PostgreSQL, MySQL, MariaDB or SQLite, not in oracle"),
        ("postgresql+nothing://x", "driver"),
    ],
)
def test_databases_that_cannot_be_used_are_refused_when_the_kit_is_built(url: str, problem: str):
    with pytest.raises(InvalidDatabase, match=problem):
        BatchKit(url)


def test_an_engine_in_autocommit_is_refused(server_url: str):
    engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with closing(BatchKit(engine)) as kit, pytest.raises(InvalidDatabase, match="AUTOCOMMIT"):
        kit.runs()


def test_an_engine_of_the_users_own_isolation_works_in_read_committed(server_url: str):
    engine = create_engine(server_url, isolation_level="SERIALIZABLE")
    elsewhere = create_engine(server_url, isolation_level="AUTOCOMMIT")
    count = text("SELECT count(*) FROM probe")
    seen: list[int] = []

    def work(chunk) -> None:
        seen.append(chunk.connection.execute(count).scalar_one())
        with elsewhere.connect() as other:
            other.execute(text("INSERT INTO probe VALUES (1)"))
        # Under any stricter isolation it would see what it saw.
        seen.append(chunk.connection.execute(count).scalar_one())

    with elsewhere.connect() as other:
        other.execute(text("CREATE TABLE probe (id INTEGER)"))
    with closing(BatchKit(engine, queue=InlineQueue())) as kit:
        kit.migrate()
        job(span(3), work).start()
    assert [0, 1] == seen
    elsewhere.dispose()
    engine.dispose()
