"""The handle of one run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from batchkit.durations import Duration, seconds
from batchkit.errors import RunNotCommitted, RunNotFound, WaitTimeout
from batchkit.model import Failure, Partition, Progress, RunError, RunId, RunRecord, Transition
from batchkit.promises import Delivery
from batchkit.states import FINAL, Request, RunState
from batchkit.values import loads

_POLL_SECONDS = 0.1


class Control(Protocol):
    """What a handle needs of the kit it came from."""

    def load(self, run_id: RunId) -> RunRecord:
        """Read a run."""
        ...

    def pause(self, run_id: RunId) -> None:
        """Have a run stop at its next chunk boundary."""
        ...

    def resume(self, run_id: RunId, *, accept: bool = False, skip: bool = False) -> None:
        """Let a paused or failed run go on; with *accept*, with what its job gives now; with *skip*, past a killer."""
        ...

    def cancel(self, run_id: RunId) -> None:
        """Have a run end at its next chunk boundary."""
        ...

    def rerun(self, run_id: RunId) -> Run:
        """Start a new run of the same job with the same params."""
        ...

    def retry_failures(self, run_id: RunId, *, in_doubt: bool = False) -> Run:
        """Start a run whose items are the failures of another."""
        ...

    def failures(self, run_id: RunId, *, after: int, limit: int) -> Sequence[Failure]:
        """Read failures of a run."""
        ...

    def partitions(self, run_id: RunId) -> Sequence[Partition]:
        """Read a run's partitions."""
        ...

    def history(self, run_id: RunId) -> Sequence[Transition]:
        """Read a run's changes of state."""
        ...


class Run:
    """
    One logical execution of a job with given params; it survives crashes, deploys and retries.

    The attributes are as they were when last read; `refresh()` reads them again.
    """

    __slots__ = ("_is_committed", "_record", "_seen_control", "_was_joined")

    def __init__(
        self, record: RunRecord, *, control: Control, was_joined: bool = False, is_committed: bool = True
    ) -> None:
        self._record = record
        self._seen_control = control
        self._was_joined = was_joined
        self._is_committed = is_committed

    def __repr__(self) -> str:
        return f"<Run {self.id} of {self.job}: {self.state}, {self.progress.done} items done>"

    @property
    def id(self) -> RunId:
        """The run's id; it sorts by the time of starting."""
        return self._record.id

    @property
    def job(self) -> str:
        """The name of the job."""
        return self._record.job

    @property
    def params(self) -> dict[str, object]:
        """The params it was started with, defaults included."""
        params = loads(self._record.params)
        return dict(params) if isinstance(params, dict) else {}

    @property
    def queue(self) -> str:
        """The name of the queue that its wake-ups go to."""
        return self._record.queue

    @property
    def state(self) -> RunState:
        """Where it stands."""
        return self._record.state

    @property
    def requested(self) -> Request | None:
        """What a person asked of it that its workers have not yet seen."""
        return self._record.requested

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._record.progress

    @property
    def result(self) -> object:
        """What the job's `finish` returned; None before and without one."""
        return None if self._record.result is None else loads(self._record.result)

    @property
    def error(self) -> RunError | None:
        """What made it fail."""
        return self._record.error

    @property
    def retries(self) -> int:
        """How often a chunk was tried again, whole."""
        return self._record.retries

    @property
    def retry_reason(self) -> str | None:
        """Why the last of those attempts failed."""
        return self._record.retry_reason

    @property
    def rerun_of(self) -> RunId | None:
        """The run that this one was started from, by `rerun` or `retry_failures`."""
        return self._record.rerun_of

    @property
    def failures_of(self) -> RunId | None:
        """The run whose failures are the items of this one."""
        return self._record.failures_of

    @property
    def was_joined(self) -> bool:
        """Whether the start that gave this handle found the run there, by its `key` or by `if_active="return"`."""
        return self._was_joined

    @property
    def limit(self) -> int | None:
        """How many items it works at most."""
        return self._record.limit

    @property
    def max_workers(self) -> int | None:
        """How many workers it has at a time; None for any number."""
        return self._record.max_workers

    @property
    def after(self) -> object:
        """The cursor that it was started behind."""
        return None if self._record.after is None else loads(self._record.after)

    @property
    def is_dry_run(self) -> bool:
        """Whether every chunk of it is rolled back, so that `done` counts items that went through and were undone."""
        return self._record.is_dry_run

    @property
    def delivery(self) -> Delivery:
        """What is promised for the effects of its chunks: `exactly-once`, `at-least-once` or `at-most-once`."""
        return self._record.delivery

    @property
    def waiting_reason(self) -> str | None:
        """Why no worker works it though one could: its throttle holds it off, or their code does not fit."""
        return self._record.waiting_reason

    @property
    def created_at(self) -> datetime:
        """When it was started."""
        return self._record.created_at

    @property
    def started_at(self) -> datetime | None:
        """When a worker first claimed it."""
        return self._record.started_at

    @property
    def finished_at(self) -> datetime | None:
        """When it succeeded, failed or was cancelled."""
        return self._record.finished_at

    @property
    def has_ended(self) -> bool:
        """Whether it succeeded, failed or was cancelled."""
        return self.state in FINAL

    def refresh(self) -> Run:
        """
        Read the run again, and give the same handle.

        Raises:
            RunNotCommitted: it was started in a session that has not committed it; so all that follows.
        """
        self._record = self._control.load(self.id)
        return self

    def wait(self, timeout: Duration | None = None) -> Run:
        """
        Wait until the run has ended, and give the same handle.

        Raises:
            WaitTimeout: it has not ended within *timeout*; it goes on without being waited for.
        """
        limit = None if timeout is None else seconds(timeout, name="timeout")
        began = time.monotonic()
        while not self.refresh().has_ended:
            if limit is not None and time.monotonic() - began > limit:
                raise WaitTimeout(self.id, state=self.state.value, seconds=limit)
            time.sleep(_POLL_SECONDS)
        return self

    def pause(self) -> Run:
        """
        Have it stop at its next chunk boundary until `resume()`; at once when nobody works it.

        Raises:
            IllegalTransition: it has ended, or is being cancelled.
        """
        self._control.pause(self.id)
        return self.refresh()

    def resume(self, *, accept: bool = False, skip: bool = False) -> Run:
        """
        Let it go on behind the last committed item, after a pause or a failure; takes back a pause not yet seen.

        Args:
            accept: go on with what the job gives now, though its source, key, version or content is another than the
                one that the run began with. Its cursor must mean the same there. A run that workers have left waiting
                for that reason can be resumed so as well.
            skip: record the item that has killed its workers as a failure, which max_failures does not judge, and go on
                behind it.

        Raises:
            IllegalTransition: it is neither paused nor failed.
            RunActive: another unfinished run has its unique key.
            NothingToSkip: no item of it is known to have killed its workers.
        """
        self._control.resume(self.id, accept=accept, skip=skip)
        return self.refresh()

    def cancel(self) -> Run:
        """
        End it for good at its next chunk boundary; at once when nobody works it. What was committed stays.

        Raises:
            IllegalTransition: it has ended.
        """
        self._control.cancel(self.id)
        return self.refresh()

    def rerun(self) -> Run:
        """
        Start a new run of the same job with the same params and the same `limit`, `after` and `dry_run`.

        Raises:
            RunActive: another unfinished run has its unique key.
        """
        return self._control.rerun(self.id)

    def failures(self, *, after: int = 0, limit: int = 1000) -> Sequence[Failure]:
        """
        Read the items that failed in it, oldest first: at most *limit*, those whose `id` is higher than *after*.

        Those that were done since by `retry_failures` are there too, with their `resolved_at`.
        """
        return self._control.failures(self.id, after=after, limit=limit)

    def retry_failures(self, *, in_doubt: bool = False) -> Run:
        """
        Start a new run of the items that failed and are not done since, and of no others.

        It is linked to this one by `failures_of`, resolves what it does, and leaves here what fails again.

        Args:
            in_doubt: try those in doubt as well. They may have happened, so that they may happen twice.

        Raises:
            NoFailures: there are none.
            RunActive: another unfinished run has its unique key, or tries the same failures at most once.
        """
        return self._control.retry_failures(self.id, in_doubt=in_doubt)

    def partitions(self) -> Sequence[Partition]:
        """Read its partitions: the ranges of items, each with its cursor, counters and worker."""
        return self._control.partitions(self.id)

    def history(self) -> Sequence[Transition]:
        """Read all its changes of state, oldest first, each with its reason."""
        return self._control.history(self.id)

    @property
    def _control(self) -> Control:
        if not self._is_committed:
            try:
                self._seen_control.load(self.id)
            except RunNotFound:
                raise RunNotCommitted(self.id, job=self.job) from None
            self._is_committed = True
        return self._seen_control
