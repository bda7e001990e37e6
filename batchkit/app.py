"""The kit: wires a database, a queue and the jobs together."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from batchkit.busy import Busy
from batchkit.control import Controls
from batchkit.delivery import Deliveries, MessageQueue
from batchkit.durations import seconds
from batchkit.errors import (
    DatabaseUnavailable,
    IllegalTransition,
    InvalidDatabase,
    InvalidGrace,
    InvalidPurge,
    InvalidQueue,
    JobNotFound,
    RunFailed,
)
from batchkit.grace import grace_seconds, working_seconds
from batchkit.hooks import FleetHook, checked_hooks
from batchkit.job import JOBS, Definition, Registry, current_kit
from batchkit.model import Lease, RunId, WakeUp
from batchkit.notifying import Notifier
from batchkit.queue import Queue
from batchkit.queues.inline import InlineQueue
from batchkit.queues.local import LocalQueue, work_until_stopped
from batchkit.run import Run
from batchkit.slicing import Ending, Outcome
from batchkit.states import FINAL, RunState
from batchkit.stopping import Stop, stopped_by_signals
from batchkit.store import Clock, Health, Purged, Sessions, Store
from batchkit.suspicion import Death
from batchkit.sweep import Swept, sweep
from batchkit.totals import JobTotals
from batchkit.tracking import SUPERVISOR, Breaks, Duty, Tracker, WorkerKind
from batchkit.using import NO_TERMS, Terms
from batchkit.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import URL, Engine, MetaData

    from batchkit.durations import Duration
    from batchkit.hooks import BusyHook, RunHook
    from batchkit.store.transaction import SessionFactory

_logger = logging.getLogger("batchkit")

DATABASE_VARIABLE = "BATCHKIT_DATABASE_URL"
EMBEDDED_DATABASE = "sqlite:///batchkit.db"
_SUPERVISE_SECONDS = 5.0
_MAX_PROTECT_SECONDS = 1800.0


class BatchKit:
    """
    Keeps the runs of the decorated jobs in a database, and wakes workers up through a queue.

    Building one makes it the kit that `@batched` jobs use. Nothing is connected to before it is needed.

    Args:
        database: a URL or an engine: PostgreSQL, MySQL, MariaDB or SQLite. Without one: the environment variable
            BATCHKIT_DATABASE_URL, else the embedded default, a file `batchkit.db` here, whose tables make themselves.
        queue: what wakes workers up; by default the built-in `LocalQueue`.
        schema: the schema that holds batchkit's tables.
        session_factory: makes the sessions of chunks, such as your `sessionmaker`. Where it is bound to another
            database than *database*, a chunk and its checkpoint cannot commit together, and runs say `at-least-once`.
        grace: how long your platform waits between SIGTERM and SIGKILL: seconds, a timedelta, or the name of a
            platform (docs/platforms.md), such as heroku or kubernetes. Without it: the environment variable
            BATCHKIT_GRACE_SECONDS. Where it is known, a chunk that would outlive it is rolled back in
            time and its run handed on.
        hooks: what is told of the starts, interruptions and ends of runs, in this process, and what tells a platform
            that this worker is busy; see `batchkit.hooks`.
        max_protect: for how long a worker may refuse to be stopped, at the most: after that, all workers of the fleet
            are free to be stopped for a moment, at the next checkpoint of each. By default half an hour where there is
            a `BusyHook`, else for ever.

    Raises:
        InvalidDatabase: the database cannot keep batchkit's promises, or its driver is missing.
        InvalidGrace: the grace is none of these, or max_protect no duration.
        InvalidHook: a hook is none, or would not be called as it is written.
    """

    def __init__(
        self,
        database: str | URL | Engine | None = None,
        *,
        queue: Queue | None = None,
        schema: str | None = None,
        session_factory: SessionFactory | None = None,
        grace: Duration | str | None = None,
        hooks: Sequence[RunHook | BusyHook] = (),
        max_protect: Duration | None = None,
        clock: Clock | None = None,
    ) -> None:
        address = database if database is not None else os.environ.get(DATABASE_VARIABLE)
        if address == "":
            raise InvalidDatabase(f"{DATABASE_VARIABLE} is empty; set it to a database URL, or unset it")
        if address is None and isinstance(queue, MessageQueue):
            raise InvalidDatabase(
                f"{type(queue).__name__} needs a database that all its workers reach; "
                f"give one: BatchKit('postgresql+psycopg://...', queue=...), or set {DATABASE_VARIABLE}"
            )
        self._makes_its_tables = address is None
        checked = checked_hooks(hooks)
        self._store = Store(address if address is not None else EMBEDDED_DATABASE, schema=schema, clock=clock)
        self._sessions = Sessions(self._store.database, session_factory)
        Notifier(self._store, checked.of_runs)
        self._queue: Queue = queue or LocalQueue()
        self._busy_hooks = checked.of_busyness
        self._breaks = Breaks(_max_protect(max_protect, has_hooks=bool(self._busy_hooks)))
        known = grace_seconds(grace)
        duty = Duty(None if known is None else working_seconds(known), self._breaks)
        self._worker = Worker(self._store, self._sessions, JOBS, known, duty)
        self._controls = Controls(self._store, self._sessions, self._queue, JOBS)
        self._deliveries = Deliveries(
            self._store, self._worker, self._queue, commits_together=self._sessions.is_ours, ready=self._ready
        )
        if isinstance(self._queue, InlineQueue):
            self._queue.attach(self._worker)
        if isinstance(self._queue, MessageQueue):
            self._queue.attach(self)
        current_kit.use(self)

    def __repr__(self) -> str:
        return f"<BatchKit on {self._store.database.url}, {type(self._queue).__name__}>"

    @property
    def jobs(self) -> Registry:
        """The jobs of this process by name."""
        return JOBS

    @property
    def queue(self) -> Queue:
        """What wakes workers up."""
        return self._queue

    @property
    def grace(self) -> float | None:
        """The seconds between the signal to stop and the kill; None where nobody said."""
        return self._worker.grace

    @property
    def busy_hooks(self) -> list[str]:
        """The names of the hooks that tell a platform of this worker."""
        return [type(hook).__name__ for hook in self._busy_hooks]

    @property
    def health(self) -> Health:
        """What the database says of itself, for `batchkit doctor`."""
        return self._store.health

    @property
    def database_url(self) -> str:
        """The address of the database, without its password and other secrets."""
        return self._store.database.url

    @property
    def metadata(self) -> MetaData:
        """The tables, for those who migrate them with an Alembic environment of their own."""
        return self._store.database.tables.metadata

    # Runs

    def run(self, run_id: str) -> Run:
        """
        Give the handle of a run.

        Raises:
            RunNotFound: there is none with this id.
        """
        self._ready()
        return self._controls.run(RunId(run_id))

    def runs(
        self,
        *,
        job: str | None = None,
        state: RunState | str | Collection[RunState | str] | None = None,
        limit: int = 50,
    ) -> list[Run]:
        """Give the newest runs, of one job or in some states where asked for."""
        self._ready()
        wanted = [state] if isinstance(state, str) else state
        states = None if wanted is None else [RunState(each) for each in wanted]
        records = self._store.records.newest(job=job, states=states, limit=limit)
        return [Run(record, control=self._controls) for record in records]

    def start_run(self, job: Definition, params: str, terms: Terms = NO_TERMS) -> Run:
        """Start a run of a job; `job.start(...)` and `job.using(...).start(...)` call this."""
        self._ready()
        return self._controls.start(job, params, terms)

    def start_run_here(self, job: Definition, params: str, terms: Terms = NO_TERMS) -> Run:
        """Start a run that `work_run` is going to work in this process."""
        self._ready()
        return self._controls.start_here(job, params, terms)

    def signature(
        self, job: Definition, args: tuple[object, ...], kwargs: dict[str, object], *, immutable: bool
    ) -> object:
        """
        Give Celery's signature of a job; `job.s(...)` calls this.

        Raises:
            InvalidQueue: the queue is not a CeleryQueue.
        """
        make = getattr(self._queue, "signature", None)
        if make is None:
            raise InvalidQueue(
                f"{job.name}.s() is Celery's signature, but the queue of this kit is {type(self._queue).__name__}; "
                f"build the kit with queue=CeleryQueue(app), or use {job.name}.start(...)"
            )
        made: object = make(job, args, kwargs, immutable=immutable)
        return made

    def call_job(self, job: Definition, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:  # noqa: ANN401  a task returns what finish returned
        """
        Start a run and work it in this process until it ends; calling a job calls this.

        SIGTERM and SIGINT stop it after the chunk in flight; then the run is given as it stands, queued.

        In a task of the kit's queue that is the job itself, a slice is worked, and what the task is to return is given.
        In another task the run is worked to its end; the same message delivered again goes on with the same run, also
        when that has failed.

        Raises:
            RunFailed: the run failed.
        """
        message = self._queue.message_at_hand(job) if isinstance(self._queue, MessageQueue) else None
        if message is None:
            run = self.start_run_here(job, job.pack(args, kwargs))
            with Stop() as stop, stopped_by_signals(stop):
                return self._worked(run, job, stop)
        if message.is_of_the_job and not self._deliveries.is_working(message):
            return self._deliveries.work(message, job, lambda: job.pack(args, kwargs))
        self._ready()
        run = self.run(self._deliveries.joined(message, job, job.pack(args, kwargs)))
        with Stop() as never:
            # A task that calls a job cannot be cut into slices, so its worker's own way of stopping applies.
            return self._worked(run, job, never)

    def is_at_work_here(self) -> bool:
        """Tell whether this thread works a task of the kit's own queue."""
        return isinstance(self._queue, MessageQueue) and self._queue.is_at_work_here()

    def _worked(self, run: Run, job: Definition, stop: Stop) -> Run:
        outcome = self.work_run(run.id, stop=stop)
        if outcome is not None and outcome.ending is Ending.DECLINED and outcome.error is not None:
            raise outcome.error
        if run.refresh().state is RunState.FAILED:
            cause = outcome.error if outcome is not None else None
            raise RunFailed(run.id, job=job.name, error=str(run.error)) from cause
        return run

    # Work

    def work(self, *, queues: Collection[str] | None = None, is_main: bool = True) -> None:
        """
        Work whatever is due, in this process, until SIGTERM or SIGINT.

        *is_main* is False in a process whose parent tells hooks of it.

        Raises:
            InvalidDatabase: another queue than `LocalQueue` wakes this kit's workers up.
        """
        self._ready()
        if not isinstance(self._queue, LocalQueue):
            raise InvalidDatabase(
                f"this kit's workers are those of {type(self._queue).__name__}; `work` is for the built-in LocalQueue"
            )
        tracker = self.tracker() if is_main else None
        with Stop() as stop:
            if tracker is not None:
                kind = WorkerKind("local", None if queues is None else tuple(sorted(queues)), 1)
                tracker.start(kind, is_stopping=lambda: stop.requested)
            try:
                with stopped_by_signals(stop):
                    work_until_stopped(self._worker, self._store, self._queue, queues=queues, stop=stop)
            finally:
                if tracker is not None:
                    tracker.stop()

    def work_run(self, run_id: RunId, *, stop: Stop, watch: Callable[[Lease], None] | None = None) -> Outcome | None:
        """Work one run in this process until it ends, is paused or is stopped; *watch* is called after each commit."""
        self._ready()
        job = self._store.records.job_of(run_id)
        if job not in JOBS:
            raise JobNotFound(job, known=JOBS)
        if watch is None:
            return self._worker.work_run(run_id, stop=stop)
        return self._worker.work_run(run_id, stop=stop, watch=watch)

    def end_leases_of(self, worker: str, *, death: Death = Death.UNSEEN) -> None:
        """End the leases of a worker that is known to be gone, and how, and wake others up for its runs."""
        for run_id in self._store.runs.held_by(worker):
            state = self._store.leases.end_leases_of(worker, run_id, death=death)
            _logger.info("a worker is gone", extra={"run_id": run_id, "worker": worker, "state": state.value})
        self.recover()

    def waiting(self, run_id: RunId, partition: int) -> list[WakeUp]:
        """Give the wake-up of a partition, if it waits for a worker."""
        return self._store.wake_ups.waiting(run_id, partition=partition)

    def announced(self, run_id: RunId) -> None:
        """Take note that the end of a run was told to those who wait at the queue."""
        self._store.announcements.announced(run_id)

    def cancel_message(self, key: str, run_id: RunId | None) -> None:
        """Cancel the run that a queue's message started or is about, if there is one that has not ended."""
        self._ready()
        found = run_id or self._store.starts.find(start_key=key)
        if found is None:
            return
        try:
            self._controls.cancel(found)
        except IllegalTransition:
            _logger.info("a run had ended before its message was revoked", extra={"run_id": found})
            # The queue throws away what is to tell of it.
            self._store.announcements.announced(found)

    # Who is busy

    def busy(self) -> Busy:
        """
        Tell who is busy, by queue and by worker, and what waits.

        It is what the live leases in the store say: a worker that was killed drops out when its lease does. The queues
        of this process's jobs are among the answer though they be empty.
        """
        self._ready()
        return self._store.fleet.busy(sorted({job.options.queue for job in JOBS.values()}))

    def totals(self) -> tuple[JobTotals, ...]:
        """
        Sum up the runs, items, checkpoints and interruptions of each job, over all runs that are in the store.

        All of them are read, so it takes longer the more there are.
        """
        self._ready()
        return self._store.totals.by_job()

    def busy_on(self, instance: str) -> int:
        """Count the slices that the workers of an instance work."""
        self._ready()
        return self._store.fleet.held_on(instance)

    def drain(self, instance: str) -> int:
        """
        Have the workers of an instance stop at their next checkpoint and take nothing more, within some seconds.

        Give how many of them are there to see it: those that have said lately that they are. `batchkit drain`, run on
        the instance itself, is seen by all of them, and at once.
        """
        self._ready()
        return self._store.fleet.drain(instance)

    def undrain(self, instance: str) -> None:
        """Take back a `drain` of an instance; its notice is taken down by `batchkit drain --off`, run there."""
        self._ready()
        self._store.fleet.undrain_instance(instance)

    def tracker(self) -> Tracker:
        """Make what tracks the worker whose main process this is; queues, and `batchkit work`, call this."""
        return Tracker(self._store.fleet, self._busy_hooks, busy=self.busy, max_protect=self._breaks.max_protect)

    def recover(self) -> Swept:
        """Sweep once: settle runs whose workers died, and wake workers up for those that wait."""
        self._ready()
        return sweep(self._store, self._queue)

    def purge(
        self,
        older_than: Duration,
        *,
        state: RunState | str | Collection[RunState | str] | None = None,
        limit: int | None = None,
    ) -> Purged:
        """
        Remove the runs that ended longer ago than *older_than*, with their failures and histories.

        It works in short transactions, a thousand rows each, and may be interrupted and done again. Runs that have not
        ended stay, and so do those whose failures are being tried again, or whose end a queue has yet to tell of. Of a
        run with a `key=` its row stays, with counters and result, since another start with the key is to find it.

        Args:
            older_than: such as `timedelta(days=30)`, or seconds.
            state: only those in this state, or these; by default succeeded, failed and cancelled ones.
            limit: so many runs at the most.

        Raises:
            InvalidPurge: the time is none, or a state is not one in which a run has ended.
        """
        self._ready()
        wanted = [state] if isinstance(state, str) else state
        try:
            age = seconds(older_than, name="older_than")
            states = FINAL if wanted is None else frozenset(RunState(each) for each in wanted)
        except (TypeError, ValueError) as error:
            raise InvalidPurge(str(error)) from None
        if not states <= FINAL:
            raise InvalidPurge(f"only runs that have ended can be purged: {', '.join(sorted(FINAL))}; got {state!r}")
        return self._store.purging.purge(seconds=age, states=states, limit=limit)

    def supervise(self, *, every: float = _SUPERVISE_SECONDS, stop: Stop | None = None) -> None:
        """
        Sweep every few seconds until SIGTERM or SIGINT. Any number of supervisors at once is safe.

        Hooks that tell of the whole fleet are called here too: stock `rq worker`s call none.
        """
        hooks = [each for each in self._busy_hooks if isinstance(each, FleetHook)]
        tracker = Tracker(self._store.fleet, hooks, busy=self.busy, max_protect=self._breaks.max_protect)
        with Stop() as own, stopped_by_signals(stop or own) as stopping:
            _logger.info("sweeping", extra={"every_seconds": every})
            tracker.start(SUPERVISOR, is_stopping=lambda: stopping.requested)
            try:
                self._sweep_until(stopping, every=every)
            finally:
                tracker.stop()

    def _sweep_until(self, stopping: Stop, *, every: float) -> None:
        while not stopping.requested:
            try:
                self.recover()
            except DatabaseUnavailable:
                _logger.warning("the database cannot be used; sweeping again later", exc_info=True)
            stopping.wait(every)

    # Tables

    def migrate(self) -> None:
        """Bring batchkit's tables to this version. To do it twice, or from several processes at once, is harmless."""
        self._store.schema.migrate()

    def check_tables(self) -> None:
        """
        Refuse tables that are not those of this version; the embedded default makes them.

        Raises:
            SchemaMismatch: it says what to run.
        """
        self._ready()

    def schema_version(self) -> tuple[str | None, str]:
        """Give the version of the tables in the database and the one that this batchkit works with."""
        return self._store.schema.current(), self._store.schema.head()

    def schema_sql(self) -> str:
        """Give the statements that make the tables."""
        return self._store.schema.sql()

    def make_busy_view(self) -> None:
        """
        Make the view `batchkit_busy`, which tells by queue what `busy()` does; `migrate()` keeps it from then on.

        Raises:
            InvalidDatabase: it is not for this kind of database.
        """
        self._store.schema.make_busy_view()

    def busy_view_sql(self) -> str:
        """Give the statement that makes that view."""
        return self._store.schema.busy_view_sql()

    def close(self) -> None:
        """Close the pooled connections."""
        self._store.close()

    def _ready(self) -> None:
        if self._makes_its_tables:
            self.migrate()
            self._makes_its_tables = False
        self._store.schema.check()


def _max_protect(given: Duration | None, *, has_hooks: bool) -> float | None:
    if given is None:
        return _MAX_PROTECT_SECONDS if has_hooks else None
    try:
        return seconds(given, name="max_protect")
    except (TypeError, ValueError) as error:
        raise InvalidGrace(str(error)) from None


current_kit.make_with(BatchKit)
