"""What people and programs do with runs: start, pause, resume, cancel, rerun."""

from __future__ import annotations

from collections.abc import Sequence

from batchkit.errors import InvalidJob, NoFailures
from batchkit.job import Definition
from batchkit.model import Failure, NewRun, Partition, RunId, RunRecord, Transition
from batchkit.queue import Queue
from batchkit.run import Run
from batchkit.states import RunState
from batchkit.store import Sessions, Store
from batchkit.sweep import wake_run

_EXACTLY_ONCE = "exactly-once"
_AT_LEAST_ONCE = "at-least-once"


class Controls:
    """Writes what is wanted into the store, then wakes a worker up; the commit comes first, always."""

    def __init__(self, store: Store, sessions: Sessions, queue: Queue) -> None:
        self._store = store
        self._sessions = sessions
        self._queue = queue

    def start(self, job: Definition, params: str) -> Run:
        """
        Start a run of *job*.

        Raises:
            InvalidJob: its workers, other processes, could not import the job.
        """
        if self._queue.crosses_processes and job.name.startswith("__main__."):
            raise InvalidJob(
                f"{job.place} is defined in the script that is being run, which workers cannot import; "
                f"move it into a module (and give that to them: batchkit -A module:kit work)"
            )
        return self._start(NewRun(job=job.name, params=params, queue=job.options.queue, delivery=self.promise))

    def start_here(self, job: Definition, params: str) -> Run:
        """Start a run that is going to be worked in this process: no worker is woken up."""
        new = NewRun(job=job.name, params=params, queue=job.options.queue, delivery=self.promise)
        self._store.runs.create(new)
        return self.run(new.id)

    def rerun(self, run_id: RunId) -> Run:
        """Start a new run with the job and params of another."""
        record = self._store.runs.load(run_id)
        return self._start(
            NewRun(
                job=record.job,
                params=record.params,
                queue=record.queue,
                delivery=self.promise,
                rerun_of=run_id,
                failures_of=record.failures_of,
            )
        )

    def retry_failures(self, run_id: RunId) -> Run:
        """
        Start a run whose items are the failures of another that are not done since.

        Raises:
            NoFailures: there are none.
        """
        record = self._store.runs.load(run_id)
        # A run that tried failures again has left them with the run in which they failed first.
        origin = record.failures_of or run_id
        if not self._store.failures.count_open(origin):
            raise NoFailures(run_id)
        return self._start(
            NewRun(
                job=record.job,
                params=record.params,
                queue=record.queue,
                delivery=self.promise,
                rerun_of=run_id,
                failures_of=origin,
            )
        )

    def failures(self, run_id: RunId, *, after: int, limit: int) -> Sequence[Failure]:
        """Read failures of a run."""
        return self._store.failures.page(run_id, after=after, limit=limit)

    @property
    def promise(self) -> str:
        """What can be promised for writes made through chunks' sessions."""
        return _EXACTLY_ONCE if self._sessions.is_ours else _AT_LEAST_ONCE

    def run(self, run_id: RunId) -> Run:
        """Give the handle of a run."""
        return Run(self._store.runs.load(run_id), control=self)

    def load(self, run_id: RunId) -> RunRecord:
        """Read a run."""
        return self._store.runs.load(run_id)

    def pause(self, run_id: RunId) -> None:
        """Have a run stop at its next chunk boundary."""
        self._store.runs.pause(run_id)

    def cancel(self, run_id: RunId) -> None:
        """Have a run end at its next chunk boundary."""
        self._store.runs.cancel(run_id)

    def resume(self, run_id: RunId, *, accept: bool = False) -> None:
        """Let a paused or failed run go on; with *accept*, with what its job gives now."""
        if self._store.runs.resume(run_id, accept=accept) is RunState.QUEUED:
            wake_run(self._store, self._queue, run_id)

    def partitions(self, run_id: RunId) -> Sequence[Partition]:
        """Read a run's partitions."""
        return self._store.runs.partitions(run_id)

    def history(self, run_id: RunId) -> Sequence[Transition]:
        """Read a run's changes of state."""
        return self._store.runs.history(run_id)

    def _start(self, new: NewRun) -> Run:
        self._store.runs.create(new)
        wake_run(self._store, self._queue, new.id)
        return self.run(new.id)
