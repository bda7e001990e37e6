"""What a queue's message does when it reaches a worker: join its run, work a slice, hand on, tell of the end."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol, runtime_checkable

from batchkit.errors import InvalidParams, MessageIdTaken, RunActive, RunCancelled, RunFailed, RunNotFound
from batchkit.job import Definition, Registry
from batchkit.model import NewRun, Progress, RunId, RunRecord, WakeUp
from batchkit.queue import Queue
from batchkit.reporting import Reporter
from batchkit.slicing import Ending, Outcome
from batchkit.starting import new_run
from batchkit.states import FINAL, RunState
from batchkit.stopping import Deadline, Stopping
from batchkit.store import Store
from batchkit.suspicion import Death
from batchkit.telling import Telling
from batchkit.tracking import Tracker
from batchkit.values import loads
from batchkit.waking import share, wake, wake_run
from batchkit.worker import Worker

_logger = logging.getLogger("batchkit")

#: How often workers that are not to take a message, since they stop, are drained or not protected, hand it on at once;
#: after that a sweep sends it, to begin anew.
MOST_HOPS = 5
_HOP_SECONDS = 0.2
_AGAIN_SECONDS = 10.0
#: The store keeps 255 characters; others come behind it.
_LONGEST_NAME = 150


def start_key(queue: str, name: str) -> str:
    """Make the start key of a message from the name that its *queue* knows it by."""
    # MySQL takes keys that differ by spaces at their end for the same.
    if len(name) > _LONGEST_NAME or name.endswith(" "):
        name = hashlib.sha256(name.encode()).hexdigest()
    return f"{queue}:{name}"


class Message(Protocol):
    """A message of a queue, seen from inside the task that it runs."""

    @property
    def key(self) -> str:
        """Its name among all messages; copies of it have the same."""
        ...

    @property
    def call_key(self) -> str:
        """Names this doing of its task, and its tries alike, for the jobs that the task calls."""
        ...

    @property
    def is_of_the_job(self) -> bool:
        """Whether its task is the job itself, and not one that calls the job."""
        ...

    @property
    def is_eager(self) -> bool:
        """Whether it is worked where it was sent, with nothing to hand it on to."""
        ...

    @property
    def run_id(self) -> RunId | None:
        """The run that it wakes a worker up for; None for a message that starts one."""
        ...

    @property
    def partition(self) -> int:
        """The partition that it wakes a worker up for."""
        ...

    @property
    def wake_no(self) -> int:
        """Which wake-up of the partition it is; 0 for a message that starts a run."""
        ...

    @property
    def hops(self) -> int:
        """How often workers that were stopping have handed it on without working."""
        ...

    @property
    def survives_kills(self) -> bool:
        """Whether the queue takes a worker that is killed with it for an interruption, and not for its task's end."""
        ...

    @property
    def ends(self) -> tuple[type[Exception], ...]:
        """The exceptions by which `parked` and `again` end its task."""
        ...

    @property
    def shows_progress(self) -> bool:
        """Whether somebody may look for progress at the queue."""
        ...

    def written_down(self) -> str:
        """Give all that it takes to send it again: its id, route, callbacks and limits."""
        ...

    def stopping(self) -> AbstractContextManager[Stopping]:
        """
        Learn of a shutdown while the message is worked.

        Where the queue tells of the end after that, signals do not cut it short before it has.
        """
        ...

    def show(self, progress: Progress) -> None:
        """Show progress at the queue."""
        ...

    def hand_on(self, wake_up: WakeUp) -> None:
        """Send *wake_up* as a copy of it that has hopped once more."""
        ...

    def parked(self) -> object:
        """End this delivery without telling of an end; what the task is to return, unless this raises."""
        ...

    def left_to_another(self) -> object:
        """End this delivery: another is about to tell of the end."""
        ...

    def again(self, seconds: float) -> object:
        """End this delivery and have the same message delivered after *seconds*."""
        ...

    def again_surviving(self) -> object:
        """End this delivery and have the same message delivered at once, so that it survives kills."""
        ...

    def is_copy_of(self, written: str) -> bool:
        """Whether it is the message that was written down, or a copy of it, and not another with the same id."""
        ...

    def is_asked_for_again(self, run_id: RunId) -> bool:
        """Whether the queue has told of the run's end, and somebody wants the task done again since."""
        ...

    def was_told(self, run_id: RunId) -> bool:
        """Whether the queue itself knows that it has told of the run's end."""
        ...

    def hush(self) -> None:
        """Have the end that is given next call nobody back, or end this delivery without one."""
        ...

    def ends_now(self, run_id: RunId) -> None:
        """Be told that what is given next is the end of the run, and of its task, however often that may be retried."""
        ...

    def when_told(self, telling: Telling) -> None:
        """Call `telling.done()` once the queue has told of the end that this delivery is about to give."""
        ...


class Kit(Protocol):
    """What a queue needs of its kit."""

    @property
    def jobs(self) -> Registry:
        """The jobs of this process."""
        ...

    def recover(self) -> object:
        """Sweep once."""
        ...

    def tracker(self) -> Tracker:
        """Make what tracks the worker whose main process this is."""
        ...

    def end_leases_of(self, worker: str, *, death: Death) -> None:
        """End the leases of a worker that is known to be gone, and how, and wake others up for its runs."""
        ...

    def waiting(self, run_id: RunId, partition: int) -> list[WakeUp]:
        """Give the wake-up of a partition, if it waits for a worker."""
        ...

    def announced(self, run_id: RunId) -> None:
        """Take note that the end of a run was told."""
        ...

    def cancel_message(self, key: str, run_id: RunId | None) -> None:
        """Cancel the run that a message started or is about, if there is one that can be cancelled."""
        ...


@runtime_checkable
class MessageQueue(Queue, Protocol):
    """A queue whose workers run tasks of their own, inside which jobs are called."""

    def attach(self, kit: Kit) -> None:
        """Work for *kit*, which is being built."""
        ...

    def message_at_hand(self, job: Definition) -> Message | None:
        """Give the message that is being worked in this thread; None outside a task of the queue."""
        ...

    def is_at_work_here(self) -> bool:
        """Tell whether this thread works a task of this queue."""
        ...


class _AtWork(threading.local):
    """The messages that a thread works slices of, one inside the other."""

    def __init__(self) -> None:
        self.messages: list[Message] = []


class Deliveries:
    """Works what messages bring."""

    def __init__(
        self, store: Store, worker: Worker, queue: Queue, *, commits_together: bool, ready: Callable[[], None]
    ) -> None:
        self._store = store
        self._worker = worker
        self._queue = queue
        self._commits_together = commits_together
        self._ready = ready
        self._at_work = _AtWork()

    def work(self, message: Message, job: Definition, params: Callable[[], str]) -> object:
        """
        Work a slice of the run that *message* belongs to; give what the message's task is to return.

        Raises:
            InvalidParams: the message starts a run with params that the job does not take.
            RunFailed, RunCancelled: the run has ended so, and this delivery is the one to tell of it.
        """
        self._at_work.messages.append(message)
        try:
            with message.stopping() as stop:
                return self._work(message, job, params, stop)
        finally:
            self._at_work.messages.pop()

    def is_working(self, message: Message) -> bool:
        """Tell whether this thread is in the middle of a slice of *message*, whose chunk calls a job."""
        return any(message.key == each.key for each in self._at_work.messages)

    def _work(self, message: Message, job: Definition, params: Callable[[], str], stop: Stopping) -> object:
        try:
            self._ready()
            record = self._find(message, job, params)
        except (InvalidParams, MessageIdTaken, RunActive):
            raise
        except RunNotFound as error:
            _logger.warning("a message is about a run that is not there", extra={"run_id": error.run_id})
            return message.parked()
        except Exception:
            # The run may not be written yet, and then this message is all there is of it: it must not be lost.
            _logger.warning("a message comes again, since its run could not be read", exc_info=True)
            return message.again(_AGAIN_SECONDS)
        try:
            return self._work_known(message, record, stop)
        except (RunFailed, RunCancelled):
            raise
        except message.ends:
            raise
        except Exception:
            # The run is safe in the store; what could not be done now is for the lease and the sweep.
            _logger.exception("a message could not be worked; a sweep wakes its run", extra={"run_id": record.id})
            return message.parked()

    def _work_known(self, message: Message, record: RunRecord, stop: Stopping) -> object:
        if record.state in FINAL:
            return self._tell(message, record, None)
        if not message.survives_kills:
            return message.again_surviving()
        outcome = self._work_slice(message, record, stop)
        if outcome is None:
            return message.parked()
        return self._tell(message, self._store.records.load(record.id), outcome)

    def joined(self, message: Message, job: Definition, params: str) -> RunId:
        """
        Start the run of a job that the task of *message* calls; when the message comes again, it is the same run.

        Two calls with the same params in one task are one run. One that has failed goes on: that is why the task is
        tried again.
        """
        digest = hashlib.sha256(f"{job.name}\0{params}".encode()).hexdigest()[:32]
        run_id = self._store.starts.join(self._new(job, params, start_key=f"{message.call_key}:{digest}"))
        if self._store.records.load(run_id).state is RunState.FAILED:
            self._store.runs.resume(run_id)
        return run_id

    # The run

    def _find(self, message: Message, job: Definition, params: Callable[[], str]) -> RunRecord:
        """Find the run that *message* belongs to; start it where there is none."""
        run_id = message.run_id or self._store.starts.find(start_key=message.key)
        if run_id is None:
            return self._join(message, job, params)
        record = self._store.records.load(run_id)
        # What names its run is of ours, or a copy of the one that started it.
        is_copy = record.message is None or message.run_id is not None or message.is_copy_of(record.message)
        if record.state in FINAL and (not is_copy or message.is_asked_for_again(run_id)):
            return self._begin_again(message, record, job, params, is_copy=is_copy)
        if record.job != job.name or (not is_copy and params() != record.params):
            message.ends_now(run_id)
            raise MessageIdTaken(message.key, run_id=run_id, job=record.job, wanted=job.name)
        if not is_copy:
            # Another message with the id of one whose run has not ended: there is one run of both, and the later
            # message is the one that is there to tell of its end.
            self._store.announcements.change_message(run_id, message.written_down())
        return record

    def _join(self, message: Message, job: Definition, params: Callable[[], str]) -> RunRecord:
        new = self._new(job, params(), start_key=message.key, message=message.written_down())
        return self._store.records.load(self._store.starts.join(new))

    def _begin_again(
        self, message: Message, record: RunRecord, job: Definition, params: Callable[[], str], *, is_copy: bool
    ) -> RunRecord:
        """Do what was asked for after the end: let a failed run go on, start another where there is none to go on."""
        _logger.info("a message was enqueued again after the end of its run", extra={"run_id": record.id})
        if is_copy and record.state is RunState.FAILED:
            self._store.runs.resume(record.id)
            wake_run(self._store, self._queue, record.id)
            return self._store.records.load(record.id)
        if message.run_id is not None:
            return record
        self._store.starts.retire_key(record.id, message.key)
        return self._join(message, job, params)

    def _new(self, job: Definition, params: str, *, start_key: str, message: str | None = None) -> NewRun:
        return new_run(job, params, commits_together=self._commits_together, start_key=start_key, message=message)

    # The slice

    def _work_slice(self, message: Message, record: RunRecord, stop: Stopping) -> Outcome | None:
        if message.is_eager:
            return self._worker.work_run(record.id, stop=stop, waits_for_others=False)
        if self._worker.duty.drained(stop).requested:
            self._hand_on(message, record.id)
            return None
        with Reporter(message.show, self._store, record.id, is_wanted=message.shows_progress) as reporter:
            return self._work_partitions(message, record, stop, reporter)

    def _work_partitions(
        self, message: Message, record: RunRecord, stop: Stopping, reporter: Reporter
    ) -> Outcome | None:
        """
        Work the partition that the message is about, and others of its run while the time of a slice lasts.

        Then other runs have their turn: what is sent for this one now comes behind what they have sent.
        """
        run_id = record.id
        turn = Deadline(self._worker.jobs[record.job].options.slice_time if record.partitions > 1 else None)
        work = partial(self._worker.work_partition, run_id, message.partition, wake_no=message.wake_no)
        last: Outcome | None = None
        while True:
            try:
                outcome = work(stop=stop, watch=reporter.watch, share=self._share)
            except BaseException as error:
                # The worker's own end, in the middle of a chunk: that was rolled back and the lease given back.
                wake_run(self._store, self._queue, run_id)
                if not stop.is_interruption(error):
                    raise
                return Outcome(Ending.INTERRUPTED, chunks=0, items=0, error=error)
            if outcome is not None and outcome.ending is Ending.LEFT:
                self._leave(message, run_id, is_of_message=last is None)
                return last
            last = outcome or last
            if outcome is None or outcome.ending not in {Ending.INTERRUPTED, Ending.EXHAUSTED}:
                return last
            if outcome.ending is Ending.INTERRUPTED or stop.requested or turn.has_passed:
                wake_run(self._store, self._queue, run_id)
                return outcome
            work = partial(self._worker.work_another, run_id)

    def _share(self, run_id: RunId) -> None:
        share(self._store, self._queue, run_id)

    def _hand_on(self, message: Message, run_id: RunId) -> None:
        """Leave a message that came to a worker which is stopping to the others: its wake-up is still good."""
        for wake_up in self._store.wake_ups.waiting(run_id, partition=message.partition):
            if wake_up.number != message.wake_no:
                continue
            if message.hops >= MOST_HOPS:
                self._store.wake_ups.send_soon(wake_up)
            else:
                # For a moment this worker may still be the quickest to take it.
                time.sleep(_HOP_SECONDS)
                message.hand_on(wake_up)

    def _leave(self, message: Message, run_id: RunId, *, is_of_message: bool) -> None:
        """Leave what this worker is not to take to the others: what the message is about, or another partition."""
        if self._worker.duty.breaks.are_now and not self._worker.duty.notice.is_there:
            # They are not to take it either, and it is sent again when the break is over.
            return
        if is_of_message:
            self._hand_on(message, run_id)
        else:
            wake_run(self._store, self._queue, run_id)

    # The end

    def _tell(self, message: Message, record: RunRecord, outcome: Outcome | None) -> object:
        """Give the run's end to the message's task, if there is one and this delivery is to tell of it."""
        if record.state not in FINAL or (outcome is None and record.message is None):
            return message.parked()
        if record.partitions > 1 and not self._is_to_tell(message, record, outcome):
            return message.parked()
        if record.message is None:
            message.ends_now(record.id)
        elif record.is_announced or message.was_told(record.id):
            message.hush()
        elif self._store.announcements.begin_announcing(record.id):
            message.when_told(Telling(self._store, record.id))
        else:
            # Should it die, a sweep sends the message again.
            return message.left_to_another()
        return _end_of(record, outcome)

    def _is_to_tell(self, message: Message, record: RunRecord, outcome: Outcome | None) -> bool:
        """Tell whether the end of a run with several partitions is this message's; have the one sent that it is."""
        if record.message is None:
            # What has failed is told of by the one in whose hands it did.
            return record.state is not RunState.FAILED or outcome is None or outcome.ending is not Ending.REQUESTED
        if message.run_id is None or self._store.starts.find(start_key=message.key) == record.id:
            return True
        if outcome is not None:
            for announcement in self._store.announcements.announcement(record.id):
                wake(self._queue, announcement)
        return False


def _end_of(record: RunRecord, outcome: Outcome | None) -> object:
    if record.state is RunState.SUCCEEDED:
        return None if record.result is None else loads(record.result)
    if record.state is RunState.CANCELLED:
        raise RunCancelled(record.id, job=record.job)
    cause = outcome.error if outcome is not None else None
    raise RunFailed(record.id, job=record.job, error=str(record.error)) from cause
