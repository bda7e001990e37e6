"""A real pgbouncer of our own, in transaction mode."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from pathlib import Path

from sqlalchemy import make_url

from tests.servers import programs
from tests.servers.debian import unpacked
from tests.waiting import eventually


class PgBouncer:
    """
    A pgbouncer in front of a PostgreSQL: each transaction may run on another connection of a few.

    Raises:
        PackagesNotFoundError: there is nothing to run.
    """

    def __init__(self, postgres_url: str) -> None:
        root = unpacked("pgbouncer")
        self._url = make_url(postgres_url)
        self.port = programs.free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="batchkit-pgbouncer-"))
        settings = self._folder / "pgbouncer.ini"
        settings.write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={self._url.port} user={self._url.username}\n"
            "[pgbouncer]\n"
            "listen_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\n"
            "unix_socket_dir =\n"
            "auth_type = any\n"
            f"auth_file = {self._folder / 'users.txt'}\n"
            "pool_mode = transaction\n"
            "default_pool_size = 3\n"
            "server_reset_query =\n"
        )
        (self._folder / "users.txt").write_text(f'"{self._url.username}" ""\n')
        command = [str(root / "usr/sbin/pgbouncer"), str(settings)]
        if os.geteuid() == 0:
            # It refuses to run as root.
            user = pwd.getpwnam("nobody")
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid)
            command += ["-u", "nobody"]
        libraries = {"LD_LIBRARY_PATH": str(root / "usr/lib/x86_64-linux-gnu")}
        self._log = self._folder / "log"
        self._process = programs.start(command, log=self._log, cwd=self._folder, env=libraries)
        eventually(
            lambda: programs.answers(self.port),
            within=30,
            message=lambda: f"pgbouncer did not answer: {self._log.read_text()}",
        )

    @property
    def url(self) -> str:
        """The URL of the same database, through the bouncer."""
        return self._url.set(port=self.port).render_as_string(hide_password=False)

    def close(self) -> None:
        """Stop it."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
