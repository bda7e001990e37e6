"""A database that is empty for each try of a crash test."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, inspect, make_url, text

from batchkit.store.database import Database
from batchkit.testing.errors import InvalidCrashTest
from batchkit.testing.snapshots import reflected


@contextmanager
def emptied_database(url: str | URL | None, *, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """
    Give the URL of a database, without *url* that of an SQLite file in *folder*, and what makes it empty.

    Raises:
        InvalidCrashTest: it holds tables already, which are not ours to drop.
    """
    if url is None:
        yield f"sqlite:///{folder / 'try.db'}", lambda: _remove_files(folder)
        return
    with closing(Database(url)) as database:
        with database.engine.connect() as tx:
            tables = inspect(tx).get_table_names()
        if tables:
            raise InvalidCrashTest(
                f"{database.url} is not empty (it has {', '.join(sorted(tables)[:5])}), and a crash test drops all "
                f"tables before each try; give it a database of its own"
            )

        def drop_all() -> None:
            with database.engine.begin() as tx:
                _drop_all(tx)

        try:
            yield make_url(url).render_as_string(hide_password=False), drop_all
        finally:
            drop_all()


def _remove_files(folder: Path) -> None:
    # The file, and those of its write-ahead log.
    for file in folder.glob("try.db*"):
        file.unlink()


def _drop_all(tx: Connection) -> None:
    """Drop the tables, the views on them, and the enums that PostgreSQL keeps apart."""
    quote = tx.dialect.identifier_preparer.quote
    for view in inspect(tx).get_view_names():
        tx.execute(text(f"DROP VIEW {quote(view)}"))
    metadata = reflected(tx)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metadata.drop_all(tx)
    for enum in getattr(inspect(tx), "get_enums", list)():
        tx.execute(text(f"DROP TYPE {quote(enum['name'])}"))
