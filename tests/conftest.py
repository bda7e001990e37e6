"""The servers that tests use: databases, each test on an empty one of its own, and brokers."""

from __future__ import annotations

import contextlib
import itertools
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.servers.debian import PackagesNotFoundError
from tests.servers.mariadb import MariaDbServer
from tests.servers.postgres import PostgresNotFoundError, PostgresServer
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisNotFoundError, RedisServer

# A slow machine is no error of the code under test.
settings.register_profile("batchkit", parent=settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("batchkit")

_redis_databases = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """
    Run a PostgreSQL server of this test process alone.

    With `pytest -n 2` each process has one, so that a test may restart it and disturb nobody.
    """
    try:
        server = PostgresServer()
    except PostgresNotFoundError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with contextlib.closing(server):
        server.start()
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Give the URL of an empty PostgreSQL database, which is dropped after the test."""
    name = f"test_{uuid.uuid4().hex}"
    # A test that failed may have left the server stopped.
    postgres_server.start()
    yield postgres_server.create_database(name)
    postgres_server.start()
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDbServer]:
    """Run a MariaDB server of this test process alone."""
    try:
        server = MariaDbServer()
    except PackagesNotFoundError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with contextlib.closing(server):
        server.start()
        yield server


@pytest.fixture
def mysql_url(mariadb_server: MariaDbServer) -> Iterator[str]:
    """Give the URL of an empty database in MariaDB, which is dropped after the test."""
    name = f"test_{uuid.uuid4().hex}"
    # A test that failed may have left the server stopped.
    mariadb_server.start()
    yield mariadb_server.create_database(name)
    mariadb_server.start()
    mariadb_server.drop_database(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Give the URL of an SQLite database that is not there yet."""
    return f"sqlite:///{tmp_path / 'batchkit.db'}"


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Run the test on each database in turn, and give the URL of an empty one."""
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mysql": "mysql_url"}[request.param]
    url: str = request.getfixturevalue(fixture)
    return url


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis of this test process alone."""
    try:
        server = RedisServer()
    except RedisNotFoundError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with contextlib.closing(server):
        yield server


@pytest.fixture(scope="session")
def rabbit_server() -> Iterator[RabbitServer]:
    """Run a RabbitMQ of this test process alone."""
    try:
        server = RabbitServer()
    except PackagesNotFoundError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with contextlib.closing(server):
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Give the URL of a database of Redis that no other test uses."""
    return redis_server.url(next(_redis_databases))


@pytest.fixture(params=["postgresql", "mysql"])
def server_url(request: pytest.FixtureRequest) -> str:
    """Run the test on each database with a server in turn, where two transactions really run at once."""
    fixture = {"postgresql": "postgres_url", "mysql": "mysql_url"}[request.param]
    url: str = request.getfixturevalue(fixture)
    return url


@pytest.fixture
def server(request: pytest.FixtureRequest, server_url: str) -> PostgresServer | MariaDbServer:
    """Give the server that has `server_url`."""
    name = "postgres_server" if server_url.startswith("postgresql") else "mariadb_server"
    made: PostgresServer | MariaDbServer = request.getfixturevalue(name)
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the very end what did not run, and why: a skipped test is easily taken for a passed one."""
    reasons = Counter(
        # A skip tells its file, its line and "Skipped: " with the reason.
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.getreports("skipped")
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        terminalreporter.section("NOT TESTED", sep="=", red=True, bold=True)
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count} skipped: {reason}", red=True)
