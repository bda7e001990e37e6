"""A real MariaDB of our own: private, on a free port, gone when the test process is gone."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
from pymysql.cursors import Cursor

from tests.servers import programs
from tests.servers.debian import unpacked
from tests.waiting import eventually

_START_SECONDS = 60
_STOP_SECONDS = 60
_LOG_TAIL = 4000

_SETTINGS = {
    "bind-address": "127.0.0.1",
    "max-connections": "200",
    "innodb-buffer-pool-size": "24M",
    "innodb-log-file-size": "32M",
    "aria-pagecache-buffer-size": "1M",
    "key-buffer-size": "1M",
    "performance-schema": "OFF",
    # A commit outlives a kill of the server; only the machine's own crash would need the fsync.
    "innodb-flush-log-at-trx-commit": "2",
    "innodb-flush-method": "nosync",
    # No file for each table, which each test makes and drops.
    "innodb-file-per-table": "OFF",
    "character-set-server": "utf8mb4",
    "skip-name-resolve": "ON",
    # A zone with summer time, since nothing may depend on the server's.
    "default-time-zone": "+05:30",
}
_TABLES = ("mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql")


class MariaDbServer:
    """
    A MariaDB server with a data folder of its own, on a port of its own, that runs from `start()` on.

    Raises:
        PackagesNotFoundError: there is nothing to run.
    """

    def __init__(self) -> None:
        self._root = unpacked("mariadb-server-core")
        self._folder = programs.folder("batchkit-maria-")
        # The server itself ends with this process, but what it has in memory would stay there.
        self._keeper = programs.keep(self._folder)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = programs.free_port()
        try:
            self._initialise()
        except BaseException:
            self.close()
            raise

    @property
    def running(self) -> bool:
        """Tell whether the server lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """
        Start the server and wait until it answers; do nothing if it runs.

        Raises:
            AssertionError: it ended, or did not answer in time; its log is in the text.
        """
        if self.running:
            return
        command = [*self._command(), f"--port={self.port}", f"--socket={self._folder / 'socket'}"]
        process = self._process = programs.start(command, log=self._log_path, cwd=self._folder, env=self._env())
        eventually(
            lambda: self._answers() or process.poll() is not None,
            within=_START_SECONDS,
            message=lambda: f"MariaDB did not answer; its log:\n{self.log()}",
        )
        if process.poll() is not None:
            raise AssertionError(f"MariaDB ended with code {process.poll()}; its log:\n{self.log()}")

    def stop(self, *, immediate: bool = False) -> None:
        """
        Stop the server and wait until it is gone; do nothing if it does not run.

        *immediate* is what a crash does: nothing is written any more, and the next start recovers from the log.
        """
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGKILL if immediate else signal.SIGTERM)
        try:
            process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"MariaDB did not stop in {_STOP_SECONDS} s; its log:\n{self.log()}") from None

    def restart(self, *, immediate: bool = True) -> None:
        """Stop and start again, with the same data on the same port."""
        self.stop(immediate=immediate)
        self.start()

    def close(self) -> None:
        """Stop the server for good and remove its folder."""
        try:
            self.stop(immediate=True)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._keeper.kill()
            self._keeper.wait()

    def url(self, database: str) -> str:
        """Give the SQLAlchemy URL of *database*."""
        # Without this each connection reads all certificates of the machine, which takes longer than many queries.
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/{database}?ssl_disabled=true"

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Make a database, empty or a copy of *template*, and give its URL."""
        with self.connect() as query:
            query.execute(f"CREATE DATABASE {name}")
            if template is not None:
                query.execute(f"USE {name}")
                _copy_tables(query, template)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        with self.connect() as query:
            _disconnect(query, name)
            query.execute(f"DROP DATABASE IF EXISTS {name}")

    def disconnect(self, name: str) -> None:
        """Cut all connections to a database."""
        with self.connect() as query:
            _disconnect(query, name)

    @contextlib.contextmanager
    def connect(self) -> Iterator[Cursor]:
        """Connect as root, each statement a transaction of its own."""
        connection: Any = pymysql.connect(
            host="127.0.0.1", port=self.port, user="root", autocommit=True, connect_timeout=10, ssl_disabled=True
        )
        with contextlib.closing(connection), connection.cursor() as query:
            yield query

    def log(self, *, tail: int = _LOG_TAIL) -> str:
        """Give the end of the server's log."""
        return self._log_path.read_text(errors="replace")[-tail:] if self._log_path.exists() else ""

    @property
    def _log_path(self) -> Path:
        return self._folder / "server.log"

    def _command(self) -> list[str]:
        share = self._root / "usr" / "share" / "mysql"
        return [
            str(self._root / "usr" / "sbin" / "mariadbd"),
            # First, as it must be: nothing of this machine's own settings.
            "--no-defaults",
            f"--datadir={self._folder / 'data'}",
            f"--tmpdir={self._folder}",
            f"--lc-messages-dir={share}",
            f"--character-sets-dir={share / 'charsets'}",
            f"--pid-file={self._folder / 'pid'}",
            *(f"--{name}={value}" for name, value in _SETTINGS.items()),
            # Its data is nobody else's; without this it refuses to run as root.
            *(["--user=root"] if os.geteuid() == 0 else []),
        ]

    def _env(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": str(self._root / "usr" / "lib" / f"{platform.machine()}-linux-gnu")}

    def _initialise(self) -> None:
        """Do what mariadb-install-db does, which looks for its files in /usr."""
        (self._folder / "data").mkdir(mode=0o700)
        share = self._root / "usr" / "share" / "mysql"
        script = "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = NULL;\n"
        script += "".join((share / name).read_text() for name in _TABLES)
        done = subprocess.run(
            [*self._command(), "--bootstrap", "--log-warnings=0"],
            input=script.encode(),
            cwd=self._folder,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **self._env()},
            capture_output=True,
            timeout=_START_SECONDS,
            check=False,
        )
        if done.returncode:
            raise AssertionError(f"MariaDB's tables could not be made:\n{done.stderr.decode(errors='replace')[-4000:]}")

    def _answers(self) -> bool:
        try:
            with self.connect() as query:
                query.execute("SELECT 1")
        except pymysql.Error:
            return False
        return True


def _copy_tables(query: Cursor, source: str) -> None:
    """Make the tables of another database, with what is in them, in the one that *query* is in."""
    # They refer to each other, and come in the order of their names.
    query.execute("SET foreign_key_checks = 0")
    query.execute(f"SHOW TABLES IN {source}")
    for (table,) in query.fetchall():
        query.execute(f"SHOW CREATE TABLE {source}.{table}")
        ((_, statement),) = query.fetchall()
        query.execute(statement)
        query.execute(f"INSERT INTO {table} SELECT * FROM {source}.{table}")


def _disconnect(query: Cursor, name: str) -> None:
    query.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
    for (number,) in query.fetchall():
        # It may have gone by itself.
        with contextlib.suppress(pymysql.Error):
            query.execute(f"KILL {number}")
