"""The version of the tables: migrating them, and refusing those of another version."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select

from batchkit.errors import SchemaMismatch
from batchkit.store.database import Database
from batchkit.store.tables import VERSION_TABLE
from batchkit.store.view import BusyView

if TYPE_CHECKING:
    from alembic.config import Config


class Schema:
    """The tables as they are in one database, against those that this version of batchkit works with."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._view = BusyView(database)
        self._is_known_to_fit = False

    def migrate(self) -> None:
        """Bring the tables to this version. To do it twice, or from several processes at once, is harmless."""
        from alembic import command  # noqa: PLC0415  slow to import and seldom needed

        with self._locked() as tx:
            found = self._version(tx)
            self._refuse_newer(found)
            with self._view_loosened(tx, found):
                command.upgrade(self._config(connection=tx), "head")
        self._is_known_to_fit = True

    def make_busy_view(self) -> None:
        """
        Make the view of what waits and what is worked, or make it anew; migrations keep it from then on.

        Raises:
            InvalidDatabase: it is not for this kind of database.
        """
        self.check()
        with self._locked() as tx:
            self._view.make(tx)

    def busy_view_sql(self) -> str:
        """Give the statement that makes that view, for those who run it by hand."""
        return self._view.sql()

    def sql(self) -> str:
        """Give the statements that make the tables, for those who run migrations by hand."""
        from alembic import command  # noqa: PLC0415  slow to import and seldom needed

        output = io.StringIO()
        command.upgrade(self._config(output=output), "head", sql=True)
        return output.getvalue()

    def current(self) -> str | None:
        """Give the version of the tables; None where there are none, or where a user's own Alembic made them."""
        with self._database.reading() as tx:
            return self._version(tx)

    def head(self) -> str:
        """Give the version that this batchkit works with."""
        return self._revisions()[-1]

    def check(self) -> None:
        """
        Refuse tables that are not there, too old or too new. Once they fit, it is not asked again.

        Raises:
            SchemaMismatch: it says what to run.
        """
        if self._is_known_to_fit:
            return
        with self._database.reading() as tx:
            found = self._version(tx)
            self._refuse_newer(found)
            if found is None:
                self._check_columns(tx)
            elif found != self.head():
                raise self._mismatch(found, "are older than this batchkit; run `batchkit db upgrade`")
        self._is_known_to_fit = True

    def _check_columns(self, tx: Connection) -> None:
        inspector = inspect(tx)
        for table in self._database.tables.metadata.sorted_tables:
            if not inspector.has_table(table.name, schema=table.schema):
                raise self._mismatch(None, "are not there; run `batchkit db upgrade`")
            present = {column["name"] for column in inspector.get_columns(table.name, schema=table.schema)}
            missing = [column.name for column in table.columns if column.name not in present]
            if missing:
                raise self._mismatch(
                    None,
                    f"were made by another Alembic and lack {table.name}.{', '.join(missing)}; "
                    f"make and run a migration for batchkit's metadata there",
                )

    def _refuse_newer(self, found: str | None) -> None:
        if found is not None and found not in self._revisions():
            raise self._mismatch(
                found, "are newer than this batchkit, which would not understand them; upgrade batchkit-jobs here"
            )

    def _mismatch(self, found: str | None, problem: str) -> SchemaMismatch:
        wanted = self.head()
        return SchemaMismatch(
            self._database.url,
            found=found,
            wanted=wanted,
            problem=(
                f"the tables of batchkit in {self._database.url} (version {found or 'none'}, wanted {wanted}) {problem}"
            ),
        )

    def _version(self, tx: Connection) -> str | None:
        if not inspect(tx).has_table(VERSION_TABLE, schema=self._database.schema):
            return None
        table = Table(VERSION_TABLE, MetaData(), Column("version_num", String), schema=self._database.schema)
        version: str | None = tx.execute(select(table.c.version_num)).scalar()
        return version

    def _revisions(self) -> list[str]:
        # Files are named NNNN_what.py and hold the revision NNNN: reading names is quicker than loading Alembic.
        return sorted(path.name[:4] for path in (_migrations() / "versions").glob("[0-9]*.py"))

    @contextmanager
    def _view_loosened(self, tx: Connection, found: str | None) -> Iterator[None]:
        """Let no view stand in the way of a migration, and make it anew after that, in the same transaction."""
        is_there = found not in {None, self.head()} and self._view.is_there(tx)
        if is_there:
            self._view.loosen(tx)
        yield
        if is_there:
            self._view.make(tx)

    @contextmanager
    def _locked(self) -> Iterator[Connection]:
        with (
            self._database.transaction() as tx,
            self._database.dialect.migrating(tx, self._database.schema),
        ):
            yield tx

    def _config(self, *, connection: Connection | None = None, output: io.StringIO | None = None) -> Config:
        from alembic.config import Config  # noqa: PLC0415  slow to import and seldom needed

        config = Config(output_buffer=output) if output is not None else Config()
        config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
        config.attributes["connection"] = connection
        config.attributes["dialect"] = self._database.engine.dialect.name
        config.attributes["schema"] = self._database.schema
        return config


def _migrations() -> Path:
    """Find the migrations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"
