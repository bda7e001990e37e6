"""A real RabbitMQ of our own."""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path

from tests.servers import programs
from tests.servers.debian import unpacked
from tests.waiting import eventually

_START_SECONDS = 90


class RabbitServer:
    """
    A RabbitMQ on ports of its own, with an Erlang port mapper of its own.

    Raises:
        PackagesNotFoundError: there is nothing to run.
    """

    def __init__(self) -> None:
        root = unpacked("rabbitmq-server")
        self._folder = Path(tempfile.mkdtemp(prefix="batchkit-rabbit-"))
        self._log = self._folder / "server.log"
        self.port = programs.free_port()
        self._erlang = _erlang(root, self._folder)
        self._rabbit = next((root / "usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
        self._env = self._environment(root)
        # Started here, since the server would start one that outlives it.
        self._mapper = programs.start([str(self._erlang / "epmd")], log=self._log, cwd=self._folder, env=self._env)
        mapper_port = int(self._env["ERL_EPMD_PORT"])
        eventually(lambda: programs.answers(mapper_port), within=30, message="epmd did not answer")
        self._start()

    @property
    def url(self) -> str:
        """The URL that Celery connects to."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def restart(self) -> None:
        """Kill it and start it anew, with what it has on disk."""
        self.stop()
        self._start()

    def stop(self) -> None:
        """Kill it; `restart` starts it again."""
        self._process.kill()
        self._process.wait()
        eventually(lambda: not programs.answers(self.port), within=30, message="RabbitMQ did not end")

    def close(self) -> None:
        """Stop it for good."""
        for process in (self._process, self._mapper):
            process.kill()
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        self._process = programs.start(
            [str(self._rabbit / "sbin" / "rabbitmq-server")], log=self._log, cwd=self._folder, env=self._env
        )
        eventually(
            lambda: self._greets() or self._process.poll() is not None,
            within=_START_SECONDS,
            message=lambda: f"RabbitMQ did not answer:\n{self.log()}",
        )
        assert self._process.poll() is None, self.log()

    def log(self) -> str:
        """Give the end of the server's log."""
        return self._log.read_text(errors="replace")[-4000:]

    def _greets(self) -> bool:
        """Tell whether it speaks AMQP: its port is open before it can."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as client:
                client.sendall(b"AMQP\0\0\x09\x01")
                return bool(client.recv(8))
        except OSError:
            return False

    def _environment(self, root: Path) -> dict[str, str]:
        library = root / "usr/lib/x86_64-linux-gnu"
        distribution = str(programs.free_port())
        (self._folder / "rabbitmq.conf").write_text("loopback_users = none\nlog.console = true\nlog.file = false\n")
        return {
            "PATH": f"{self._erlang}:/usr/bin:/bin:/usr/sbin:/sbin",
            "LD_LIBRARY_PATH": str(library),
            "ERL_EPMD_PORT": str(programs.free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # Then its script becomes the server, which can be killed.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": f"t{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": distribution,
            "RABBITMQ_HOME": str(self._rabbit),
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": str(self._folder / "none"),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._folder),
            "RABBITMQ_PID_FILE": str(self._folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "plugins"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(self._folder / "feature_flags"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }


def _erlang(root: Path, folder: Path) -> Path:
    """Make the programs of Erlang for the place where they are: their own scripts name /usr/lib/erlang."""
    home = root / "usr/lib/erlang"
    made = folder / "erlang"
    made.mkdir()
    for name in ("erl", "start"):
        script = home / "bin" / name
        if script.exists():
            (made / name).write_text(script.read_text().replace("/usr/lib/erlang", str(home)))
            (made / name).chmod(0o755)
    (mapper,) = home.glob("erts-*/bin/epmd")
    (made / "epmd").symlink_to(mapper)
    for name in ("escript", "erlc"):
        (program,) = home.glob(f"erts-*/bin/{name}")
        (made / name).symlink_to(program)
    return made
