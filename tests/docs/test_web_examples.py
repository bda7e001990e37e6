"""The web apps among the examples do what their pages say: a deploy in the middle of the job, and it goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from tests import forks
from tests.queues.workers import QueueWorker
from tests.servers import programs
from tests.waiting import eventually

_ROOT = Path(__file__).parents[2]


class Procfile:
    """Runs the lines of a Procfile, as a platform does."""

    def __init__(self, path: Path, folder: Path, env: dict[str, str]) -> None:
        self._lines = dict(line.split(": ", 1) for line in path.read_text().splitlines())
        self._folder = folder
        self._env = env
        self._started: list[QueueWorker] = []

    def start(self, name: str, *, ready: str) -> QueueWorker:
        """Start one process."""
        command = shlex.split(os.path.expandvars(self._expanded(name)))
        log = self._folder / f"{name}-{len(self._started)}.log"
        log.touch()
        process = QueueWorker(self._executed(command), ready=ready, log=log)
        self._started.append(process)
        return process

    def run(self, name: str) -> None:
        """Run one process to its end."""
        command = shlex.split(self._expanded(name))
        log = self._folder / f"{name}.log"
        log.touch()
        process = QueueWorker(self._executed(command), ready="", log=log)
        assert 0 == process.wait(), process.log()

    def names(self) -> set[str]:
        """Give the names of its processes."""
        return set(self._lines)

    def end(self) -> None:
        """End all of them."""
        for process in self._started:
            process.end()

    def _executed(self, command: list[str]) -> Callable[[int], forks.Process]:
        env = {**os.environ, **self._env}
        return lambda output: forks.execute(command, output=output, env=env, new_session=True)

    def _expanded(self, name: str) -> str:
        line = self._lines[name]
        for variable, value in self._env.items():
            line = line.replace(f"${variable}", value)
        return line


@pytest.fixture(params=["flask_celery", "flask_rq"])
def procfile(request: pytest.FixtureRequest, redis_url: str, sqlite_url: str, tmp_path: Path) -> Iterator[Procfile]:
    """Give the Procfile of an example, with a database and a Redis of its own."""
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {"DATABASE_URL": sqlite_url, "REDIS_URL": redis_url, "PORT": str(programs.free_port()), "PATH": scripts}
    made = Procfile(_ROOT / "examples" / request.param / "Procfile", tmp_path, {**env, "PYTHONPATH": str(_ROOT)})
    yield made
    made.end()


def _ask(url: str, *, method: str = "GET") -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as reply:  # noqa: S310  our own
        return json.load(reply)


@pytest.mark.timeout(180)
def test_the_job_of_a_web_app_survives_a_deploy(procfile: Procfile, sqlite_url: str):
    procfile.run("release")
    web = procfile.start("web", ready="Running on")
    ready = {"flask_celery": "[queues]", "flask_rq": "Listening on"}
    kind = "flask_rq" if "supervisor" in procfile.names() else "flask_celery"
    worker = procfile.start("worker", ready=ready[kind])
    if kind == "flask_rq":
        procfile.start("supervisor", ready="sweeping")
    address = next(word for word in web.log().split() if word.startswith("http://127.0.0.1"))
    run = _ask(f"{address}/normalize", method="POST")["run"]
    page = f"{address}/runs/{run}"
    eventually(lambda: _ask(page)["done"] > 1000, within=60, message=worker.log)

    worker.send_all(signal.SIGTERM)
    worker.wait()
    assert "queued" == _ask(page)["state"]
    again = procfile.start("worker", ready=ready[kind])
    eventually(lambda: _ask(page)["state"] == "succeeded", within=120, message=again.log)
    assert 1 <= _ask(page)["interruptions"]
    assert 100_000 == _ask(page)["done"]
    engine = create_engine(sqlite_url)
    with engine.connect() as connection:
        assert 0 == connection.execute(text("SELECT count(*) FROM shop_user WHERE email <> lower(email)")).scalar_one()
    engine.dispose()
