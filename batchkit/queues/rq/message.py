"""An RQ job, seen from inside the function that it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rq import get_current_job
from rq.job import Job, Retry
from rq.registry import ScheduledJobRegistry

from batchkit.delivery import start_key
from batchkit.errors import InvalidQueue
from batchkit.job import JOBS, Definition
from batchkit.model import Progress, RunId, WakeUp
from batchkit.queues.rq import horses, notes
from batchkit.queues.rq.shutdown import WorkerStop, stopping
from batchkit.telling import Telling

PROGRESS = "progress"

#: More than a job ever needs. RQ counts each slice as a retry.
_ENDLESS = 1_000_000_000
#: With fewer retries left, RQ is soon to take a killed horse for the job's end.
_ENOUGH = 1_000
#: How long a parked job stays scheduled. A wake-up comes first; where a scheduler is quicker, the job parks again.
_PARKED_SECONDS = 7 * 24 * 3600
_TELLS_SECONDS = 1.0


class RQMessage:
    """
    The RQ job that this process works.

    A job that wakes a worker up for a run that a program started is ours: it ends with the slice. A job that somebody
    enqueued has dependents and callbacks that wait for the real end: between slices it is retried.
    """

    is_eager = False
    #: parking and coming again are what the function returns
    ends: tuple[type[Exception], ...] = ()

    def __init__(self, job: Job, of: Definition, *, send: Callable[[WakeUp, int], None]) -> None:
        self._job = job
        self._send = send
        self._is_woken = False
        self.key = start_key("rq", job.id)
        self.use = notes.use_of(job)
        self.is_of_the_job: bool = job.func_name == path_of(of)
        noted = notes.notes_of(job)
        self.run_id: RunId | None = noted.get(notes.RUN)
        self.partition: int = noted.get(notes.PARTITION, 0)
        self.wake_no: int = noted.get(notes.WAKE, 0)
        self.hops: int = noted.get(notes.HOPS, 0)

    def is_delivered_as(self, job: Job) -> bool:
        """Tell whether *job* is the RQ job as it was taken this time."""
        return self._job is job

    @property
    def call_key(self) -> str:
        """Names this doing of its task, and its tries alike."""
        return start_key("rq", f"{self._job.id}/{self.use}/{notes.success_before(self._job)}")

    @property
    def is_ours(self) -> bool:
        """Whether it wakes a worker up, and nobody waits for its end."""
        return self.run_id is not None

    @property
    def shows_progress(self) -> bool:
        """Whether somebody may look at the job's meta."""
        return True

    @property
    def survives_kills(self) -> bool:
        """Whether the worker's main process, which knows the job as it took it, retries it when the horse is killed."""
        return (self._job.retries_left or 0) >= _ENOUGH

    def written_down(self) -> str:
        """Give what it takes to find it again, as JSON."""
        return json.dumps({"rq": 1, "id": self._job.id, "queue": self._job.origin, "use": self.use})

    @contextmanager
    def stopping(self) -> Iterator[WorkerStop]:
        """Learn of the worker's shutdown while the job is worked; who finds it killed learns that it was at it."""
        with horses.noted(self._job), stopping(self._job) as stop:
            yield stop

    def show(self, progress: Progress) -> None:
        """Keep the progress in the job's meta, in the shape that celery-progress reads."""
        self._job.meta[PROGRESS] = {
            "pending": False,
            "current": progress.done + progress.failed,
            "total": progress.total,
            "percent": progress.percent or 0,
            "description": "",
        }
        self._job.save_meta()

    def wake_itself(self, wake_up: WakeUp, hops: int) -> None:
        """Be the message of *wake_up*, which has hopped so often, when it is retried, at the end of this slice."""
        notes.note(self._job, **notes.of_wake_up(wake_up, hops))
        self._job.save_meta()
        self._is_woken = True

    def hand_on(self, wake_up: WakeUp) -> None:
        """Send *wake_up* as a copy of it that has hopped once more."""
        self._send(wake_up, self.hops + 1)

    def parked(self) -> Retry | None:
        """End this slice: a job of ours is done, another is retried at once or waits for its wake-up."""
        if self.is_ours:
            return None
        return Retry(max=_ENDLESS, interval=0 if self._is_woken else _PARKED_SECONDS)

    def again(self, seconds: float) -> Retry | None:
        """Have RQ run the same job again; it knows no delays without a scheduler, so wait here."""
        if seconds:
            with self.stopping() as stop:
                stop.wait(seconds)
        return None if self.is_ours else Retry(max=_ENDLESS)

    def left_to_another(self) -> Retry | None:
        """Come again in a moment, when the other has told: a job that is parked shows as scheduled, ended or not."""
        return self.again(_TELLS_SECONDS)

    def again_surviving(self) -> Retry:
        """Have RQ run the same job next, with retries for the horses that are killed."""
        self._job.retries_left = _ENDLESS
        # RQ would lose a job that waits between slices for longer, and with it its callbacks.
        self._job.ttl = None
        self._job.connection.hdel(self._job.key, "ttl")
        retry = Retry(max=_ENDLESS)
        # It has waited for its turn. Older releases of RQ do not know of that.
        retry.enqueue_at_front = True
        return retry

    def takes_turns(self) -> None:
        """Let other jobs have their turn between slices; RQ remembers that it was to go first once."""
        if getattr(self._job, "enqueue_at_front_on_retry", False):
            self._job.enqueue_at_front_on_retry = False
            self._job.connection.hdel(self._job.key, "enqueue_at_front_on_retry")

    def is_copy_of(self, written: str) -> bool:
        """Whether it is the very use of its id that was written down, and not a later one."""
        return bool(json.loads(written).get("use") == self.use)

    def is_asked_for_again(self, run_id: RunId) -> bool:
        """Whether RQ has told of the run's end, and somebody has enqueued it again since."""
        return notes.is_asked_for_again(self._job, run_id)

    def was_told(self, run_id: RunId) -> bool:
        """Whether RQ has told of the run's end."""
        return notes.was_told(self._job, run_id)

    def hush(self) -> None:
        """Have the end that is given next call nobody back."""
        self._job.retries_left = 0
        # RQ reads the functions by their names, unless it has them already.
        self._job._success_callback = None  # noqa: SLF001
        self._job._failure_callback = None  # noqa: SLF001

    def when_told(self, telling: Telling) -> None:
        """RQ tells of the end when the function has returned; a sweep looks at the job then."""
        self.ends_now(telling.run_id)

    def ends_now(self, run_id: RunId) -> None:
        """Let what is about to be returned or raised be the job's end: RQ would retry an error."""
        notes.note_end(self._job, run_id)
        self._job.retries_left = 0
        # What a copy has left there that was worked beside it
        ScheduledJobRegistry(self._job.origin, connection=self._job.connection).remove(self._job.id)


def refuse_without_kit() -> None:
    """
    Refuse to make a kit for an RQ job that a kit elsewhere has sent, or that is a job of ours.

    It would work a new run in another database. What the job waits for is sent again by a sweep.

    Raises:
        InvalidQueue: the module that builds the kit was not imported here.
    """
    job = get_current_job()
    if job is None:
        return
    ours = next((each for each in JOBS.values() if path_of(each) == job.func_name), None)
    if ours is None and not notes.notes_of(job):
        return
    # Not at once and for ever: the next try has the same modules.
    job.retries_left = 0
    where = job.func_name.rpartition(".")[0]
    raise InvalidQueue(
        f"no BatchKit was built in this worker, which is to work {job.func_name}; "
        f"have {where} import the module that builds the kit"
    )


def path_of(job: Definition) -> str:
    """Give the path by which workers import the job."""
    return f"{job.function.__module__}.{job.function.__qualname__}"
