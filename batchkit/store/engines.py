"""Engines: made from URLs, told apart by where they lead, and kept from being shared with forked children."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from batchkit.errors import InvalidDatabase
from batchkit.store.addresses import shown_text
from batchkit.store.dialects import dialect_named

_PORTS = {"postgresql": 5432, "mysql": 3306}
#: Where drivers let a URL say the address behind the question mark.
_ADDRESS_IN_QUERY = ("host", "port", "dbname", "service", "unix_socket")
#: The drivers that we work with, where a URL names none.
_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}


def engine_for(database: str | URL) -> Engine:
    """
    Make an engine for a URL.

    Raises:
        InvalidDatabase: it is no URL of a database, or the driver is not installed.
    """
    try:
        url = make_url(database)
    except ArgumentError as error:
        raise InvalidDatabase(
            f"{shown_text(str(database))} is not a database URL; it looks like postgresql+psycopg://user@host/name "
            f"or sqlite:///file.db"
        ) from error
    try:
        # Heroku and others write postgres://, which SQLAlchemy does not know.
        url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
        return create_engine(url, **dialect_named(url.get_backend_name()).engine_options(url))
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise InvalidDatabase(
            f"the driver for {url.drivername} is not installed ({error}); for PostgreSQL: "
            f"pip install 'batchkit-jobs[postgres]', for MySQL and MariaDB: pip install 'batchkit-jobs[mysql]'"
        ) from error


def address_of(url: URL) -> tuple[object, ...]:
    """Give what two URLs have in common that lead to the same database, whatever their driver and user are."""
    backend = url.get_backend_name()
    if backend == "sqlite":
        return (backend, os.path.realpath(url.database or ""))
    # One protocol: SQLAlchemy has a name of its own for MariaDB.
    backend = "mysql" if backend == "mariadb" else backend
    elsewhere = [url.query.get(name) for name in _ADDRESS_IN_QUERY]
    return (backend, url.host, url.port or _PORTS.get(backend), url.database, *elsewhere)


def drop_pool_in_children(engine: Engine) -> None:
    """Make forked children open connections of their own: two processes on one socket read each other's replies."""
    if not hasattr(os, "register_at_fork"):
        return
    seen = weakref.ref(engine)

    def drop() -> None:
        inherited = seen()
        if inherited is not None:
            inherited.dispose(close=False)

    after: Callable[[], None] = drop
    os.register_at_fork(after_in_child=after)
