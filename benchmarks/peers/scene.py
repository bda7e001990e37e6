"""Where one system works: a database and a Redis of its own on shared servers, its starter and its workers."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from redis import Redis

from benchmarks.peers import rows
from benchmarks.peers.roster import Peer
from benchmarks.peers.rows import Work
from tests.queues.workers import QueueWorker
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

_ROOT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.05
_SETTLE_SECONDS = 0.3
_STALL_SECONDS = 60.0
_numbers = itertools.count()


class Stalled(Exception):
    """Raised when nothing was done for long; the text ends with what the workers wrote."""


#: What goes wrong with a system, and does not keep the others from being measured.
FAILURES = (Stalled, AssertionError, OSError, psycopg.Error, subprocess.SubprocessError)


@dataclass(frozen=True)
class Timed:
    """Seconds: from the start to the commit of the last chunk, to that of the first, and between these two."""

    total: float
    first: float
    between: float


@dataclass(frozen=True)
class Servers:
    """What all scenes share."""

    postgres: PostgresServer
    redis: RedisServer
    folder: Path
    python: Path


@contextmanager
def servers(python: Path) -> Iterator[Servers]:
    """Start a PostgreSQL whose commits are on a disk, as those of others are, and a Redis."""
    with (
        tempfile.TemporaryDirectory(prefix="batchkit-peers-") as folder,
        closing(PostgresServer(as_in_production=True)) as postgres,
        closing(RedisServer()) as redis,
    ):
        postgres.start()
        yield Servers(postgres, redis, Path(folder), python)


class Scene:
    """A system at work; `starter()` and `workers()` start its processes, `close()` ends them."""

    def __init__(self, servers: Servers, peer: Peer, *, env: Mapping[str, str] | None = None) -> None:
        self._peer = peer
        self._servers = servers
        self._number = next(_numbers)
        self._name = f"peer{self._number}"
        url = servers.postgres.create_database(self._name)
        self.redis_url = servers.redis.url(self._number % 512)
        self._env = {**os.environ, **dict(peer.env), **(env or {}), rows.DATABASE: url, rows.REDIS: self.redis_url}
        self._starters: list[_Starter] = []
        self._workers: list[QueueWorker] = []
        self._beside: list[QueueWorker] = []
        self.connection = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
        # A vacuum in the middle of a run would be in somebody's figure.
        columns = "id int PRIMARY KEY, times int NOT NULL, done_at timestamptz, payload varchar(60) NOT NULL"
        self._execute(f"CREATE TABLE {rows.item.name} ({columns}) WITH (autovacuum_enabled = off)")

    # Processes

    def starter(self, *, prepare: bool = True) -> _Starter:
        """Start what starts the work; a system without workers works in it."""
        made = _Starter(self._servers.python, self._peer.app, self._env, self._log("starter"))
        self._starters.append(made)
        made.answer()
        if prepare:
            made.tell("prepare")
        return made

    def workers(self) -> None:
        """Start the workers, and what is to run beside them, unless it does."""
        if self._peer.beside and not self._beside:
            self._beside.append(self._program(self._peer.beside))
        if self._peer.worker:
            self._workers.append(self._program(self._peer.worker))

    def kill(self) -> None:
        """Send SIGKILL to every process that does work."""
        for starter in () if self._peer.worker else self._starters:
            starter.end()
        for worker in self._workers:
            worker.send_all(signal.SIGKILL)
            worker.end()

    def restart(self) -> None:
        """Start again what was killed, by the same command."""
        if self._peer.worker:
            self.workers()
        else:
            self.starter(prepare=False)

    def close(self) -> None:
        """End all, and forget what they wrote."""
        for starter in self._starters:
            starter.end()
        for worker in (*self._workers, *self._beside):
            worker.end()
        self.connection.close()
        self._servers.postgres.drop_database(self._name)
        with closing(Redis.from_url(self.redis_url)) as redis:
            redis.flushdb()

    def logs(self) -> str:
        """Give the ends of what its processes wrote."""
        paths = sorted(self._servers.folder.glob(f"{self._name}-*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in paths)

    # Rows

    def fill(self, work: Work) -> None:
        """Make the rows anew."""
        first = rows.FINISH if self._peer.has_callback else 1
        self._execute(f"TRUNCATE {rows.item.name}")
        made = f"SELECT n, 0, NULL, repeat('x', 50) FROM generate_series({first}, {work.items}) AS n"
        self._execute(f"INSERT INTO {rows.item.name} {made}")
        self._execute(f"VACUUM (ANALYZE) {rows.item.name}")

    def run(self, starter: _Starter, work: Work) -> Timed:
        """
        Have work done, and give how long it took by the clock of the database.

        Raises:
            Stalled: it does not end.
        """
        told = starter.tell(self._peer.start, *work)
        self.wait_all(work)
        first, last = self._one(f"SELECT extract(epoch FROM min(done_at)), extract(epoch FROM max(done_at)) {self._of}")
        began = told["began"]
        return Timed(total=float(last) - began, first=float(first) - began, between=float(last) - float(first))

    def begin(self, starter: _Starter, work: Work) -> None:
        """Have work begun."""
        starter.tell(self._peer.start, *work)

    def wait_all(self, work: Work) -> None:
        """Wait until all rows are done."""
        self.wait(lambda: self.all_done(work))

    def wait(self, condition: Callable[[], bool]) -> None:
        """
        Wait for something that rows bring about.

        Raises:
            Stalled: for long no more of them are done.
        """
        moved_at, seen = time.monotonic(), -1
        while not condition():
            time.sleep(_POLL_SECONDS)
            if time.monotonic() - moved_at > _STALL_SECONDS:
                now = self.done()
                if now == seen:
                    raise Stalled(f"{self._peer.label}: no more than {now} rows are done\n{self.logs()}")
                moved_at, seen = time.monotonic(), now

    def all_done(self, work: Work) -> bool:
        """Tell whether all rows are done, that of the callback too."""
        # To look at the last row takes no time, to look at all of them does.
        return self._is_done(work.items) and self.done() == self._rows(work)

    def now(self) -> float:
        """Give the time by the clock of the database."""
        return float(self._one("SELECT extract(epoch FROM clock_timestamp())")[0])

    def done(self) -> int:
        """Count the rows that are done."""
        return int(self._one(f"SELECT count(*) {self._of} WHERE times > 0")[0])

    def lost_and_repeated(self, work: Work) -> tuple[int, int]:
        """Count the rows that were never done, and those that were done more than once."""
        counts = "count(*) FILTER (WHERE times = 0), count(*) FILTER (WHERE times > 1)"
        lost, repeated = self._one(f"SELECT {counts} {self._of} WHERE id > 0 AND id <= {work.items}")
        return int(lost), int(repeated)

    def first_done_after(self, moment: float) -> float | None:
        """Give the time of the first commit after a moment."""
        found = self._one(f"SELECT extract(epoch FROM min(done_at)) {self._of} WHERE done_at > to_timestamp({moment})")
        return None if found[0] is None else float(found[0])

    def last_done(self) -> float | None:
        """Give the time of the last commit."""
        found = self._one(f"SELECT extract(epoch FROM max(done_at)) {self._of}")
        return None if found[0] is None else float(found[0])

    def has_called_back(self) -> bool | None:
        """Tell whether what is to be done after all chunks was; None where nothing is to be."""
        return self._is_done(rows.FINISH) if self._peer.has_callback else None

    # What is stored

    def stored(self) -> tuple[int, int]:
        """Give the bytes that the system has in Redis and in PostgreSQL, connections and our rows left out."""
        with closing(Redis.from_url(self.redis_url)) as redis:
            memory = redis.info("memory")
            in_redis = int(memory["used_memory"]) - int(memory["mem_clients_normal"])
        size = "coalesce(sum(pg_total_relation_size(c.oid)), 0)"
        where = "c.relkind = 'r' AND n.nspname !~ '^(pg_|information_schema)' AND c.relname <> %s"
        query = f"SELECT {size} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {where}"
        return in_redis, int(self._one(query, rows.item.name)[0])

    @property
    def _of(self) -> str:
        return f"FROM {rows.item.name}"

    def _rows(self, work: Work) -> int:
        return work.items + (1 if self._peer.has_callback else 0)

    def _is_done(self, number: int) -> bool:
        found = self.connection.execute(f"SELECT times > 0 {self._of} WHERE id = {number}".encode()).fetchone()
        return bool(found and found[0])

    def _one(self, query: str, *arguments: object) -> tuple[Any, ...]:
        found = self.connection.execute(query.encode(), arguments or None).fetchone()
        if found is None:
            raise LookupError(query)
        return found

    def _execute(self, statement: str) -> None:
        self.connection.execute(statement.encode())

    def _program(self, arguments: tuple[str, ...]) -> QueueWorker:
        command = _guarded(self._servers.python, *(each.format(redis=self.redis_url) for each in arguments))

        def start(output: int) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command,
                cwd=_ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

        # What it says when it is ready differs; that a first run is done says it for all.
        return QueueWorker(start, ready="", log=self._log("worker"))

    def _log(self, what: str) -> Path:
        path = self._servers.folder / f"{self._name}-{next(_numbers)}-{what}.log"
        path.touch()
        return path


class Warm:
    """A system whose processes run, to be given work again and again."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._starter = scene.starter()
        scene.workers()

    def run(self, work: Work) -> Timed:
        """Have new rows worked."""
        self._scene.fill(work)
        # What is settled after the last commit of the run before is not in the figure of this one.
        time.sleep(_SETTLE_SECONDS)
        return self._scene.run(self._starter, work)


@contextmanager
def warm(at: Servers, peer: Peer, *, env: Mapping[str, str] | None = None) -> Iterator[Warm]:
    """Start a system, and end it."""
    scene = Scene(at, peer, env=env)
    try:
        yield Warm(scene)
    finally:
        scene.close()


class _Starter:
    """The process that starts work when it is told to."""

    def __init__(self, python: Path, app: str, env: Mapping[str, str], log: Path) -> None:
        self._app = app
        self._log = log
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                _guarded(python, "benchmarks.peers.starter", app),
                cwd=_ROOT,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                start_new_session=True,
            )

    def tell(self, *words: object) -> dict[str, float]:
        """Have something done, and give when it began and returned."""
        if self.process.stdin is None:
            raise AssertionError
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self, *, within: float = _STALL_SECONDS * 5) -> dict[str, float]:
        """
        Wait for the answer.

        Raises:
            Stalled: it has ended, or does not answer.
        """
        output = self.process.stdout
        line = output.readline() if output is not None and select.select([output], [], [], within)[0] else ""
        if not line:
            raise Stalled(f"{self._app} does not answer:\n{self._log.read_text(errors='replace')[-3000:]}")
        found: dict[str, float] = json.loads(line)
        return found

    def end(self) -> None:
        """Kill it, unless it is gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def _guarded(python: Path, *arguments: str) -> list[str]:
    """Give the command of a module that is killed when this process is gone."""
    guard = shutil.which("setpriv")
    return [*([guard, "--pdeathsig", "KILL", "--"] if guard else []), str(python), "-m", *arguments]
