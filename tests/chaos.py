"""
Hurt workers, brokers and the database at random while runs are worked, then count.

    python -m tests.chaos [--minutes 2] [--seed N] [--queue celery-redis] [--queue rq] ...

Prints each fault as it happens, and at the end how many faults, runs and items there were, and how many items were
lost or done twice. Ends with 1 if there was one, or if a counter is wrong. The seed decides the faults and their
order; what they hit is up to the processes.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis
from celery import Celery
from rq import Queue
from sqlalchemy.exc import SQLAlchemyError

from batchkit import BatchKit, BatchkitError, Run, RunState
from batchkit.queues import InlineQueue
from batchkit.states import FINAL
from tests.queues import ledger
from tests.queues.workers import Crew, QueueWorker, crew
from tests.servers.postgres import PostgresServer
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer

QUEUES = ("celery-redis", "celery-rabbitmq", "celery-gevent", "celery-threads", "rq")
#: Celery's pools other than prefork, each on Redis.
_POOLS = {"celery-gevent": "gevent", "celery-threads": "threads"}
_WORKERS = 3
_RUNS_AT_ONCE = 4
_ITEMS = 400
_SETTLE_SECONDS = 240.0
_LEASE_SECONDS = 3.0


@dataclass
class Outcome:
    """What was done, and what came of it."""

    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    items: int = 0
    lost: int = 0
    doubled: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether every item was done once and every counter says so."""
        return not (self.lost or self.doubled or self.problems)

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        lines = [f"faults: {self.faults.total()} ({faults})"]
        lines.append(f"runs: {self.runs}, items: {self.items}, lost: {self.lost}, doubled: {self.doubled}")
        return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in self.problems)])


class Chaos:
    """One database, one broker, a few workers, and what happens to them."""

    def __init__(self, queue: str, *, seed: int, folder: Path, stack: ExitStack) -> None:
        self.queue = queue
        self.outcome = Outcome()
        self._random = random.Random(seed)
        self._postgres = stack.enter_context(closing(PostgresServer()))
        self._postgres.start()
        self._url = self._postgres.create_database("chaos")
        self._redis: RedisServer | None = None
        self._rabbit: RabbitServer | None = None
        if queue == "celery-rabbitmq":
            self._rabbit = stack.enter_context(closing(RabbitServer()))
            broker = self._rabbit.url
        else:
            self._redis = stack.enter_context(closing(RedisServer()))
            broker = self._redis.url()
        self._queue_name = f"chaos-{uuid.uuid4().hex}"
        env = {"TEST_DATABASE": self._url, "TEST_BROKER": broker, "TEST_QUEUE": self._queue_name}
        self._broker = broker
        ledger.fill(self._url, items=1)
        self._kit = stack.enter_context(closing(BatchKit(self._url, queue=InlineQueue())))
        self._kit.migrate()
        self._crew: Crew = stack.enter_context(crew(folder, env))
        self._celery = Celery(broker=broker, set_as_current=False)
        self._celery.conf.task_default_queue = self._queue_name
        self._batches = 0
        self._workers = [self._new_worker() for _ in range(_WORKERS)]
        self._supervisor = self._crew.supervisor("tests.queues.rq_app:kit") if queue == "rq" else None

    def run(self, *, minutes: float) -> Outcome:
        """Hurt for *minutes*, then let everything settle, and count."""
        ends_at = time.monotonic() + minutes * 60
        faults = self._faults()
        while time.monotonic() < ends_at:
            self._keep_busy()
            name = self._random.choice(list(faults))
            self.outcome.faults[name] += 1
            print(f"{self.queue} {time.strftime('%X')} {name}", flush=True)
            faults[name]()
            # Not to wait for something: this is how long the next fault holds off.
            time.sleep(self._random.uniform(0.1, 2.5))
            self._replace_the_dead()
        self._settle()
        self._count()
        return self.outcome

    # What happens

    def _faults(self) -> dict[str, Callable[[], object]]:
        term, kill, stop = signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP
        faults: dict[str, Callable[[], object]] = {
            "SIGTERM main": lambda: self._victim().send(term),
            "SIGTERM all": lambda: self._victim().send_all(term),
            "SIGTERM children": lambda: self._victim().send_children(term),
            "SIGKILL child": lambda: self._victim().send_children(kill),
            "SIGKILL main": lambda: self._victim().send(kill),
            "SIGKILL all": lambda: self._victim().send_all(kill),
            "SIGTERM then SIGKILL": self._term_then_kill,
            "SIGINT main": lambda: self._victim().send(signal.SIGINT),
            "SIGSTOP past the lease": lambda: self._sleep(stop),
            "doubled message": self._double,
            "pause and resume": self._pause,
            "connections cut": self._cut,
            "database restarted": self._postgres.restart,
            "broker restarted": self._restart_broker,
        }
        if self._redis is not None:
            faults["broker flushed"] = self._flush
        if self.queue != "rq":
            faults["SIGQUIT main"] = lambda: self._victim().send(signal.SIGQUIT)
        return faults

    def _victim(self) -> QueueWorker:
        return self._random.choice(self._workers)

    def _term_then_kill(self) -> None:
        victim = self._victim()
        victim.send(signal.SIGTERM)
        time.sleep(self._random.uniform(0, 0.5))
        victim.send_all(signal.SIGKILL)

    def _sleep(self, stop: signal.Signals) -> None:
        victim = self._victim()
        victim.send_all(stop)
        time.sleep(_LEASE_SECONDS * 1.5)
        victim.send_all(signal.SIGCONT)

    def _double(self) -> None:
        batch = self._new_batch()
        name = uuid.uuid4().hex
        for _ in range(self._random.randint(2, 4)):
            self._send(batch, name)

    def _pause(self) -> None:
        running = [run for run in self._runs() if run.state is RunState.RUNNING]
        for run in running[:1]:
            with suppress(BatchkitError):
                run.pause()

    def _cut(self) -> None:
        with self._postgres.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'chaos' AND random() < 0.5"
            )

    def _flush(self) -> None:
        with redis.Redis.from_url(self._broker) as client:
            client.flushdb()

    def _restart_broker(self) -> None:
        server = self._redis or self._rabbit
        assert server is not None
        server.restart()

    # The work

    def _keep_busy(self) -> None:
        for _ in range(_RUNS_AT_ONCE - sum(run.state not in FINAL for run in self._runs())):
            batch = self._new_batch()
            if self._random.random() < 0.5:
                self._send(batch, uuid.uuid4().hex)
            else:
                self._start(batch)
        for run in self._runs():
            if run.state is RunState.PAUSED:
                self._command("resume", run.id, "--detach")

    def _new_batch(self) -> int:
        self._batches += 1
        ledger.fill_batch(self._url, self._batches, items=_ITEMS)
        return self._batches

    def _send(self, batch: int, name: str) -> None:
        if self.queue == "rq":
            with redis.Redis.from_url(self._broker) as client:
                queue = Queue(connection=client)
                queue.enqueue("tests.queues.rq_app.one_batch", batch, has_bad=True, job_id=name)
        else:
            self._celery.send_task("one-batch", kwargs={"batch": batch, "has_bad": True}, task_id=name)

    def _start(self, batch: int) -> None:
        self._command("start", "one_batch" if self.queue == "rq" else "one-batch", f"batch={batch}", "has_bad=yes")

    def _command(self, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "batchkit", "-A", self._app, *arguments],
            env={**self._environment(), **self._crew.env},
            capture_output=True,
            check=False,  # the database or the broker may be away; then this run is started in vain
        )

    @property
    def _app(self) -> str:
        return "tests.queues.rq_app:kit" if self.queue == "rq" else "tests.queues.celery_app:kit"

    def _environment(self) -> dict[str, str]:
        import os  # noqa: PLC0415  only here

        return dict(os.environ)

    def _new_worker(self) -> QueueWorker:
        if self.queue == "rq":
            return self._crew.rq("--maintenance-interval", "10")
        return self._crew.celery("--pool", _POOLS.get(self.queue, "prefork"), "-c", "2")

    def _replace_the_dead(self) -> None:
        self._workers = [worker if worker.is_alive else self._new_worker() for worker in self._workers]

    def _runs(self) -> list[Run]:
        for _ in range(50):
            try:
                return self._kit.runs(limit=10_000)
            except (BatchkitError, SQLAlchemyError):
                time.sleep(0.2)  # the database restarts
        return self._kit.runs(limit=10_000)

    # The end

    def _settle(self) -> None:
        """Wait until every run that was started has ended; a message that was flushed before it began is no run."""
        ends_at = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < ends_at:
            self._replace_the_dead()
            for run in self._runs():
                if run.state is RunState.PAUSED:
                    self._command("resume", run.id, "--detach")
            if all(run.state in FINAL for run in self._runs()):
                return
            time.sleep(0.5)
        for run in self._runs():
            if run.state not in FINAL:
                history = "; ".join(f"{each.at:%X} {each.after}: {each.reason}" for each in run.history()[-5:])
                self.outcome.problems.append(f"{run!r} has not ended: {run.waiting_reason or ''} {history}")

    def _count(self) -> None:
        by_batch, bad_items = ledger.batch_times(self._url), ledger.bad_items(self._url)
        started: Counter[int] = Counter()
        for run in self._runs():
            batch = int(str(run.params["batch"]))
            started[batch] += 1
            self.outcome.runs += 1
            self.outcome.items += _ITEMS
            times = by_batch[batch]
            # Each bad item is left undone, and recorded once.
            bad = bad_items.get(batch, 0)
            self.outcome.lost += abs(times.get(0, 0) - bad)
            self.outcome.doubled += sum(count for number, count in times.items() if number > 1)
            if run.state is not RunState.SUCCEEDED:
                self.outcome.problems.append(f"{run!r}: {run.error}")
            if (run.progress.done, run.progress.failed) != (_ITEMS - bad, bad):
                self.outcome.problems.append(f"{run!r} says {run.progress} of {_ITEMS} items, {bad} of them bad")
            if len({failure.cursor for failure in run.failures()}) != bad or len(run.failures()) != bad:
                self.outcome.problems.append(f"{run!r} has {len(run.failures())} failures, not {bad}")
        twice = [batch for batch, count in started.items() if count > 1]
        if twice:
            self.outcome.problems.append(f"batches that were started as two runs: {twice}")


@contextmanager
def _chaos(queue: str, *, seed: int) -> Iterator[Chaos]:
    with tempfile.TemporaryDirectory(prefix="batchkit-chaos-") as folder, ExitStack() as stack:
        yield Chaos(queue, seed=seed, folder=Path(folder), stack=stack)


def hurt(queue: str, *, minutes: float, seed: int) -> Outcome:
    """Hurt one queue for *minutes*."""
    with _chaos(queue, seed=seed) as chaos:
        return chaos.run(minutes=minutes)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="for each queue")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--queue", action="append", choices=QUEUES)
    arguments = parser.parse_args()
    is_good = True
    for queue in arguments.queue or QUEUES:
        print(f"{queue}, seed {arguments.seed}, {arguments.minutes:g} minutes", flush=True)
        outcome = hurt(queue, minutes=arguments.minutes, seed=arguments.seed)
        print(f"{queue}\n{outcome}", flush=True)
        is_good = is_good and outcome.is_good
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
