"""A fleet: instances that are started, deployed and killed, and what is seen of them by the minute."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from batchkit.grace import working_seconds
from batchkit.model import RunId
from batchkit.states import FINAL, RunState
from benchmarks.fleet.database import Database, Server
from benchmarks.fleet.kernel import Process, Simulation, Steps
from benchmarks.fleet.measuring import start_run
from benchmarks.fleet.prices import Prices, prices_for
from benchmarks.fleet.tally import Ledger, Tally
from benchmarks.fleet.working import Around, Broker, Job, Polled, Worker, swept

_ATTEND_SECONDS = 10.0  # store/fleet.py
_SWEEP_SECONDS = 5.0  # queues/sweeper.py


@dataclass(frozen=True)
class Setting:
    """What is simulated."""

    workers: int = 1000
    #: how many of them one instance has, which starts and ends as one
    per_instance: int = 8
    queue: Literal["messages", "polling"] = "messages"
    runs: int = 1
    partitions: int = 4000
    items: int = 1_000_000_000
    job: Job = field(default_factory=Job)
    grace: float = 30.0
    #: seconds from the start of an instance until it works, at least and at most
    boots: tuple[float, float] = (5.0, 15.0)
    latency: float = 0.005
    server: Server = field(default_factory=Server)
    #: seconds between deploys of everything, and instances that are killed in an hour
    deploy_every: float | None = None
    kills_per_hour: float = 0.0
    seed: int = 1
    has_ledger: bool = False
    sweeps_apart: float = 1.0


@dataclass
class Sample:
    """What was seen in the seconds before a moment."""

    at: float
    items: int
    counts: Counter[str]
    working: int
    processors: float
    held: int


@dataclass
class Instance:
    """A main process and its workers."""

    number: int
    workers: list[tuple[Worker, Process]]
    main: list[Process]
    is_stopping: bool = False


@dataclass
class Fleet:
    """A fleet, ready to be run."""

    setting: Setting
    simulation: Simulation
    database: Database
    around: Around
    runs: list[RunId]
    instances: list[Instance] = field(default_factory=list)
    #: those that were sent SIGTERM, until their grace is over
    leaving: list[Instance] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    kills: int = 0
    deploys: int = 0
    started: int = 0
    sample_every: float = 1.0

    @property
    def tally(self) -> Tally:
        """What became of the work."""
        return self.around.tally

    # What happens to it

    def start(self) -> None:
        """Start all instances."""
        for _ in range(-(-self.setting.workers // self.setting.per_instance)):
            self._start_instance()
        self.simulation.begin(self._sample())
        if self.setting.deploy_every:
            self.simulation.begin(self._deploy_now_and_then(self.setting.deploy_every))
        if self.setting.kills_per_hour:
            self.simulation.begin(self._kill_now_and_then(self.setting.kills_per_hour))

    def deploy(self) -> None:
        """Stop all instances, and start as many."""
        self.deploys += 1
        for instance in list(self.instances):
            self.stop(instance)
            self._start_instance()

    def stop(self, instance: Instance) -> None:
        """Send an instance SIGTERM, and SIGKILL when the grace is over."""
        instance.is_stopping = True
        self.instances.remove(instance)
        self.leaving.append(instance)
        for process in instance.main:
            process.kill()
        for worker, process in instance.workers:
            worker.is_stopping = True
            if worker.is_idle:
                process.kill()
        self.simulation.after(working_seconds(self.setting.grace), lambda: _cut(instance))
        self.simulation.after(self.setting.grace, lambda: self._end(instance))

    def kill(self, instance: Instance) -> None:
        """Kill an instance with all its processes, and start another."""
        self.kills += 1
        self.instances.remove(instance)
        _kill(instance)
        self._start_instance()

    def replace(self, _: Instance) -> None:
        """Start an instance in place of another."""
        self._start_instance()

    def run(self, *, until: float) -> None:
        """Let time pass until a moment or the end of all runs."""
        self.simulation.run(until=until, is_over=lambda: self.is_done)

    @property
    def is_done(self) -> bool:
        """Whether every run has ended: a killed worker may have been the one to say so."""
        are_all_done = self.tally.items >= self.setting.items * self.setting.runs and not self.working
        return are_all_done and set(self.states()) <= FINAL

    @property
    def working(self) -> int:
        """How many workers hold a partition."""
        return sum(worker.is_working for each in (*self.instances, *self.leaving) for worker, _ in each.workers)

    @property
    def ours(self) -> int:
        """How many statements of batchkit's were sent."""
        return sum(count for kind, count in self.database.counts.items() if kind != "user")

    def check(self) -> None:
        """
        Hold the store against what was committed.

        Raises:
            ItemsWrongError: they differ.
        """
        self.tally.check(self.database.store, self.runs)

    def states(self) -> Counter[RunState]:
        """Count the runs by their states."""
        return Counter(self.database.store.records.load(run_id).state for run_id in self.runs)

    # Its own processes

    def _end(self, instance: Instance) -> None:
        self.leaving.remove(instance)
        _kill(instance)

    def _start_instance(self) -> None:
        low, high = self.setting.boots
        self.simulation.after(self.around.noise.uniform(low, high), self._has_booted)

    def _has_booted(self) -> None:
        self.started += 1
        number = self.started
        workers = []
        for child in range(self.setting.per_instance):
            worker = Worker(self.around, f"host-{number}:{child}")
            queue = self.around.queue
            steps = worker.listen(queue) if isinstance(queue, Broker) else worker.poll()
            workers.append((worker, self.simulation.begin(steps)))
        main = [self.simulation.begin(self._attend(f"host-{number}"))]
        if isinstance(self.around.queue, Broker):
            main.append(self.simulation.begin(self._sweep()))
        self.instances.append(Instance(number, workers, main))

    def _attend(self, name: str) -> Steps[None]:
        fleet, is_new = self.database.store.fleet, True
        while True:
            attend = partial(fleet.attend, name, instance=name, kind="sim", queues=None, slots=8, is_new=is_new)
            yield from self.database.call("attendance", "attend", attend)
            is_new = False
            yield _ATTEND_SECONDS

    def _sweep(self) -> Steps[None]:
        while True:
            yield from swept(self.around)
            yield self.around.noise.uniform(0.8, 1.2) * _SWEEP_SECONDS

    def _deploy_now_and_then(self, seconds: float) -> Steps[None]:
        while True:
            yield seconds
            self.deploy()

    def _kill_now_and_then(self, per_hour: float) -> Steps[None]:
        while True:
            yield self.around.noise.expovariate(per_hour / 3600)
            if self.instances:
                self.kill(self.around.noise.choice(self.instances))

    def _sample(self) -> Steps[None]:
        items, counts, spent = 0, Counter[str](), 0.0
        while True:
            yield self.sample_every
            now = Counter(self.database.counts)
            self.samples.append(
                Sample(
                    at=self.simulation.now,
                    items=self.tally.items - items,
                    counts=now - counts,
                    working=self.working,
                    processors=(self.database.processors.spent - spent) / self.sample_every,
                    held=self.database.processors.busy,
                )
            )
            items, counts, spent = self.tally.items, now, self.database.processors.spent


def _cut(instance: Instance) -> None:
    for worker, process in instance.workers:
        if worker.is_in_chunk:
            process.interrupt()


def _kill(instance: Instance) -> None:
    for process in instance.main:
        process.kill()
    for worker, process in instance.workers:
        if not process.has_ended:
            worker.is_killed()
            process.kill()


@contextmanager
def fleet(setting: Setting, *, prices: Prices | None = None) -> Iterator[Fleet]:
    """Make a fleet whose runs are started and planned."""
    simulation = Simulation()
    # Not on a disk, where there is another place.
    shared = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        database = Database(
            simulation,
            Path(folder),
            server=setting.server,
            prices=prices or prices_for(runs=setting.runs, partitions=setting.partitions),
        )
        try:
            is_messages = setting.queue == "messages"
            around = Around(
                simulation=simulation,
                database=database,
                queue=Broker(simulation, latency=setting.latency) if is_messages else Polled(),
                tally=Tally(),
                job=setting.job,
                grace=setting.grace,
                noise=random.Random(setting.seed),
                ledger=Ledger(database.store) if setting.has_ledger else None,
                sweeps_apart=setting.sweeps_apart,
            )
            runs = [
                start_run(database.store, partitions=setting.partitions, items=setting.items)
                for _ in range(setting.runs)
            ]
            yield Fleet(setting, simulation, database, around, runs)
        finally:
            database.close()
