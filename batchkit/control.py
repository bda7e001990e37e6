"""What people and programs do with runs: start, pause, resume, cancel, rerun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from batchkit.errors import (
    InvalidJob,
    KeyTaken,
    NoFailures,
    RunActive,
    RunNotFound,
    RunPurged,
)
from batchkit.job import Definition
from batchkit.model import Failure, NewRun, Partition, RunId, RunRecord, Transition
from batchkit.promises import AT_MOST_ONCE, Delivery, promised
from batchkit.queue import Queue
from batchkit.run import Run
from batchkit.starting import is_same_start, key_of_retries, new_run, shown_start
from batchkit.states import RunState
from batchkit.store import Sessions, Store, Tx, after_commit, session_itself
from batchkit.using import NO_TERMS, Terms
from batchkit.waking import wake_run


class Controls:
    """Writes what is wanted into the store, then wakes a worker up; the commit comes first, always."""

    def __init__(self, store: Store, sessions: Sessions, queue: Queue, jobs: Mapping[str, Definition]) -> None:
        self._store = store
        self._jobs = jobs
        self._sessions = sessions
        self._queue = queue

    def start(self, job: Definition, params: str, terms: Terms) -> Run:
        """
        Start a run of *job*.

        Raises:
            InvalidJob: its workers, other processes, could not import the job.
            InvalidStart: the terms do not fit the job, or the session is on another database.
            RunActive: another unfinished run has its unique key.
            KeyTaken: the key has started a run with other params or terms.
        """
        if self._queue.crosses_processes and job.name.startswith("__main__."):
            raise InvalidJob(
                f"{job.place} is defined in the script that is being run, which workers cannot import; "
                f"move it into a module (and give that to them: batchkit -A module:kit work)"
            )
        return self._start(new_run(job, params, terms=terms, commits_together=self._sessions.is_ours), terms, job=job)

    def start_here(self, job: Definition, params: str, terms: Terms) -> Run:
        """
        Start a run that is going to be worked in this process: no worker is woken up.

        Raises:
            InvalidStart, RunActive, KeyTaken: as `start` does.
        """
        return self._start(
            new_run(job, params, terms=terms, commits_together=self._sessions.is_ours), terms, job=job, wakes=False
        )

    def rerun(self, run_id: RunId) -> Run:
        """
        Start a new run with the job and params of another, and its limits; one of a dry run is a dry run.

        Raises:
            RunActive: another unfinished run has its unique key.
            RunPurged: it tried failures again that were removed.
        """
        record = self._store.records.load(run_id)
        return self._start(
            NewRun(
                job=record.job,
                params=record.params,
                queue=record.queue,
                delivery=self._promised(record),
                rerun_of=run_id,
                failures_of=record.failures_of,
                retries_in_doubt=record.retries_in_doubt,
                unique_key=record.unique_key,
                after=record.after,
                limit=record.limit,
                is_dry_run=record.is_dry_run,
                partitions=record.partitions,
                max_workers=record.max_workers,
            )
        )

    def retry_failures(self, run_id: RunId, *, in_doubt: bool = False) -> Run:
        """
        Start a run whose items are the failures of another that are not done since; *in_doubt*: those in doubt, too.

        Raises:
            NoFailures: there are none.
            RunPurged: they were removed.
            RunActive: another unfinished run has its unique key.
        """
        record = self._store.records.load(run_id)
        if record.purged_at is not None:
            raise RunPurged(run_id)
        # A run that tried failures again has left them with the run in which they failed first.
        origin = record.failures_of or run_id
        if not self._store.failures.count_open(origin, in_doubt=in_doubt):
            self._check_not_purged(origin, retry=run_id)
            raise NoFailures(run_id, in_doubt=self._store.failures.count_open(origin, in_doubt=True))
        delivery = self._promised(record)
        return self._start(
            NewRun(
                job=record.job,
                params=record.params,
                queue=record.queue,
                delivery=delivery,
                rerun_of=run_id,
                failures_of=origin,
                retries_in_doubt=in_doubt,
                # What is done at most once must not be done by two at once; elsewhere one of them is rolled back.
                unique_key=record.unique_key or (key_of_retries(origin) if delivery == AT_MOST_ONCE else None),
                is_dry_run=record.is_dry_run,
            )
        )

    def failures(self, run_id: RunId, *, after: int, limit: int) -> Sequence[Failure]:
        """Read failures of a run."""
        return self._store.failures.page(run_id, after=after, limit=limit)

    def run(self, run_id: RunId) -> Run:
        """Give the handle of a run."""
        return Run(self._store.records.load(run_id), control=self)

    def load(self, run_id: RunId) -> RunRecord:
        """Read a run."""
        return self._store.records.load(run_id)

    def pause(self, run_id: RunId) -> None:
        """Have a run stop at its next chunk boundary."""
        self._store.runs.pause(run_id)

    def cancel(self, run_id: RunId) -> None:
        """Have a run end at its next chunk boundary."""
        self._store.runs.cancel(run_id)

    def resume(self, run_id: RunId, *, accept: bool = False, skip: bool = False) -> None:
        """Let a paused or failed run go on; with *accept*, with what its job gives now; with *skip*, past a killer."""
        if self._store.runs.resume(run_id, accept=accept, skip=skip) is RunState.QUEUED:
            wake_run(self._store, self._queue, run_id)

    def partitions(self, run_id: RunId) -> Sequence[Partition]:
        """Read a run's partitions."""
        return self._store.records.partitions(run_id)

    def history(self, run_id: RunId) -> Sequence[Transition]:
        """Read a run's changes of state."""
        return self._store.records.history(run_id)

    def _check_not_purged(self, origin: RunId, *, retry: RunId) -> None:
        """
        Refuse to say of failures that were removed that there are none.

        Raises:
            RunPurged: they were.
        """
        try:
            is_purged = self._store.records.load(origin).purged_at is not None
        except RunNotFound:
            is_purged = True
        if is_purged:
            raise RunPurged(origin, retry=retry)

    def _promised(self, record: RunRecord) -> Delivery:
        """Say what a new run of a run's job promises; a job that this process does not know asks for what it did."""
        asked = self._jobs[record.job].options.delivery if record.job in self._jobs else record.delivery
        return promised(asked, commits_together=self._sessions.is_ours)

    def _start(self, new: NewRun, terms: Terms = NO_TERMS, *, job: Definition | None = None, wakes: bool = True) -> Run:
        session = None if terms.session is None else session_itself(terms.session)
        tx = None if session is None else self._store.connection_of(session)
        try:
            run_id = self._store.starts.join(new) if tx is None else self._store.starts.join_in(tx, new)
        except RunActive as active:
            if terms.if_active == "raise":
                raise
            return self._handle(self._record(RunId(active.run_id), tx), tx, was_joined=True)
        if run_id != new.id:
            record = self._record(run_id, tx)
            _check_same_start(job, record, new)
            return self._handle(record, tx, was_joined=True)
        if session is not None:
            after_commit(session, lambda: wake_run(self._store, self._queue, run_id))
        elif wakes:
            wake_run(self._store, self._queue, run_id)
        return self._handle(self._record(run_id, tx), tx)

    def _record(self, run_id: RunId, tx: Tx | None) -> RunRecord:
        record = None if tx is None else self._store.records.load_in(tx, run_id)
        # A transaction that began before the run was committed may not see it, but then others do.
        return record or self._store.records.load(run_id)

    def _handle(self, record: RunRecord, tx: Tx | None, *, was_joined: bool = False) -> Run:
        return Run(record, control=self, was_joined=was_joined, is_committed=tx is None)


def _check_same_start(job: Definition | None, record: RunRecord, new: NewRun) -> None:
    """
    Refuse to take a run that has the key of *new* for something else.

    Raises:
        KeyTaken: it has other params or terms.
    """
    if job is not None and not is_same_start(job, record, new):
        was, wanted = shown_start(record), shown_start(new)
        raise KeyTaken(str(new.key), run_id=record.id, job=job.name, was=was, wanted=wanted)
