"""The servers that tests use: databases, each test on an empty one of its own, and brokers."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from batchkit.store import Store
from tests.servers.debian import PackagesNotFoundError
from tests.servers.mariadb import MariaDbServer
from tests.servers.postgres import PostgresNotFoundError, PostgresServer
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisNotFoundError, RedisServer

# A slow machine is no error of the code under test.
settings.register_profile("batchkit", parent=settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("batchkit")

_redis_databases = itertools.count()
_TESTS = Path(__file__).parent
# To migrate one database and copy that is many times as fast as to migrate each; the other folders, and tests that are
# marked `bare`, look at how tables are made, or want none.
_BEGIN_WITH_TABLES = {"acceptance", "busy", "outputs", "queues", "races", "slices", "store"}
_TEMPLATE = "template_with_tables"


def _template(request: pytest.FixtureRequest, fixture: str) -> str | None:
    """Give the database, with batchkit's tables, that a test's own is a copy of; None if that is to be empty."""
    folder = request.path.relative_to(_TESTS).parts[0]
    if folder not in _BEGIN_WITH_TABLES or request.node.get_closest_marker("bare") is not None:
        return None
    template: str = request.getfixturevalue(fixture)
    return template


def _migrate(url: str) -> None:
    with contextlib.closing(Store(url)) as store:
        store.schema.migrate()


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


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """Give the name of a PostgreSQL database with batchkit's tables, to be copied."""
    _migrate(postgres_server.create_database(_TEMPLATE))
    return _TEMPLATE


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[str]:
    """Give the URL of a PostgreSQL database of the test's own."""
    name = f"test_{uuid.uuid4().hex}"
    # A test that failed may have left the server stopped.
    postgres_server.start()
    yield postgres_server.create_database(name, template=_template(request, "postgres_template"))
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


@pytest.fixture(scope="session")
def mysql_template(mariadb_server: MariaDbServer) -> str:
    """Give the name of a database in MariaDB with batchkit's tables, to be copied."""
    _migrate(mariadb_server.create_database(_TEMPLATE))
    return _TEMPLATE


@pytest.fixture
def mysql_url(request: pytest.FixtureRequest, mariadb_server: MariaDbServer) -> Iterator[str]:
    """Give the URL of a database in MariaDB of the test's own."""
    name = f"test_{uuid.uuid4().hex}"
    # A test that failed may have left the server stopped.
    mariadb_server.start()
    yield mariadb_server.create_database(name, template=_template(request, "mysql_template"))
    mariadb_server.start()
    mariadb_server.drop_database(name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the path of an SQLite database with batchkit's tables, to be copied."""
    path = tmp_path_factory.mktemp("template") / "batchkit.db"
    _migrate(f"sqlite:///{path}")
    return str(path)


@pytest.fixture
def sqlite_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of an SQLite database of the test's own, whose file is not there if it is to be empty."""
    path = tmp_path / "batchkit.db"
    template = _template(request, "sqlite_template")
    if template is not None:
        shutil.copyfile(template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Run the test on each database in turn, and give the URL of one of its own."""
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
