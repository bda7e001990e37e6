"""Every exception that a user of batchkit can meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class BatchkitError(Exception):
    """
    Base of all errors of batchkit.

    Each keeps what it is about as attributes, and its text says what happened, to which one, and what to do now.
    """

    def __reduce__(self) -> tuple[object, ...]:
        # Queues send errors from process to process; the constructors take more than the text.
        return _restored, (type(self), self.args, self.__dict__)


class InvalidJob(BatchkitError):
    """Raised at decoration when a function, its source or an option cannot make a job."""


class InvalidHold(BatchkitError):
    """Raised when a hold cannot be asked in the database at all; its run fails, and can be resumed."""


class DuplicateJob(BatchkitError):
    """Raised at decoration when another function already has the job's name."""

    def __init__(self, name: str, *, first: str, second: str) -> None:
        self.name = name
        self.first = first
        self.second = second
        super().__init__(
            f"two functions are jobs named {name!r}: {first} and {second}; "
            f'give one of them a name of its own: @batched(..., name="...")'
        )


class JobNotFound(BatchkitError):
    """Raised when no function of this process is the job asked for."""

    def __init__(self, name: str, *, known: Iterable[str]) -> None:
        self.name = name
        self.known = sorted(known)
        listing = ", ".join(self.known) or "none"
        super().__init__(
            f"no job named {name!r} is registered in this process (registered: {listing}); "
            f"import the module that decorates it, or check the spelling"
        )


class InvalidParams(BatchkitError):
    """Raised when params do not fit the job, or hold a value that cannot be stored."""

    def __init__(self, job: str, problem: str) -> None:
        self.job = job
        self.problem = problem
        super().__init__(f"job {job}: {problem}")


class NotSerializable(BatchkitError):
    """Raised when a value cannot be written as JSON and read back as the same value."""

    def __init__(self, value: object, *, where: str, reason: str | None = None) -> None:
        self.value = value
        self.where = where
        kind = type(value)
        detail = reason or "only JSON values, datetime, date, time, timedelta, Decimal, UUID, bytes, Enum and tuple can"
        super().__init__(
            f"{where} is a {kind.__module__}.{kind.__qualname__}, which cannot be stored: {detail}; "
            f"pass what identifies it instead, such as a primary key"
        )


class InvalidSource(BatchkitError):
    """Raised when a source is not one, cannot be used as asked, or gives something unusable."""


class SourceChanged(BatchkitError):
    """Raised when a run would go on with another source, or other content, than it began with."""

    def __init__(self, run_id: str, *, changes: Mapping[str, tuple[object, object]], mend: str) -> None:
        self.run_id = run_id
        self.changes = dict(changes)
        listing = ", ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in self.changes.items())
        super().__init__(
            f"run {run_id} began with another source: {listing}; its cursor would mean something else there. {mend}"
        )


class RunNotFound(BatchkitError):
    """Raised when the store has no run with the id."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"there is no run {run_id!r} in this database; `batchkit runs` lists those that are")


class IllegalTransition(BatchkitError):
    """Raised when a run cannot do what was asked in the state that it is in."""

    def __init__(self, run_id: str, *, current: str, wanted: str, possible: Iterable[str]) -> None:
        self.run_id = run_id
        self.current = current
        self.wanted = wanted
        self.possible = tuple(possible)
        listing = ", ".join(self.possible) or "nothing else"
        super().__init__(
            f"run {run_id} is {current}, so it cannot become {wanted}; from {current} it can become {listing}"
        )


class RunFailed(BatchkitError):
    """Raised by calling a job when the run that was worked in this process failed."""

    def __init__(self, run_id: str, *, job: str, error: str) -> None:
        self.run_id = run_id
        self.job = job
        self.error = error
        super().__init__(
            f"run {run_id} of {job} failed: {error}; what was committed stays, "
            f"and after mending the cause resume() goes on behind it"
        )


class RunCancelled(BatchkitError):
    """The run was cancelled by a person."""

    def __init__(self, run_id: str, *, job: str) -> None:
        self.run_id = run_id
        self.job = job
        super().__init__(f"run {run_id} of {job} was cancelled; what was committed before stays")


class RunActive(BatchkitError):
    """Raised when a run cannot begin or go on, since another has its unique key and has not ended."""

    def __init__(self, run_id: str, *, job: str, resumed: str | None = None) -> None:
        self.run_id = run_id
        self.job = job
        self.resumed = resumed
        what = "start another" if resumed is None else f"resume run {resumed}"
        mend = "wait for it or cancel it"
        if resumed is None:
            mend += ", or take it instead: using(if_active='return')"
        super().__init__(
            f"run {run_id} of {job} has not ended, so you cannot {what}: "
            f"@batched(..., unique=...) allows one unfinished run with the same unique key; {mend}"
        )


class RunPurged(BatchkitError):
    """Raised when something is asked of a run whose history and failures were removed, or that was to try those."""

    def __init__(self, run_id: str, *, retry: str | None = None) -> None:
        self.run_id = run_id
        self.retry = retry
        if retry is None or retry == run_id:
            text = (
                f"run {run_id} was purged: its failures and its history are gone, and it cannot go on; "
                f"rerun() starts another with the same params"
            )
        else:
            text = (
                f"run {run_id} was purged, and with it the failures that are the items of run {retry}, so there is "
                f"nothing left to try again; start the job anew for the items that are still to be done"
            )
        super().__init__(text)


class KeyTaken(BatchkitError):
    """Raised when a start has the key of an earlier one, but asks for something else."""

    def __init__(self, key: str, *, run_id: str, job: str, was: str, wanted: str) -> None:
        self.key = key
        self.run_id = run_id
        self.job = job
        self.was = was
        self.wanted = wanted
        super().__init__(
            f"the key {key!r} has started run {run_id} of {job} with {was}, so it cannot start one with {wanted}; "
            f"the same key gives the same run for ever: put what differs into the key"
        )


class InvalidStart(BatchkitError):
    """Raised when what `using` is told cannot start a run."""


class RunNotCommitted(BatchkitError):
    """Raised when a run is asked for something that was started in a session which has not committed it."""

    def __init__(self, run_id: str, *, job: str) -> None:
        self.run_id = run_id
        self.job = job
        super().__init__(
            f"run {run_id} of {job} was started in a session that has not committed it, so nobody else can see it yet; "
            f"commit the session first (and where that was rolled back, there is no such run)"
        )


class MessageIdTaken(BatchkitError):
    """Raised by a queue's task whose message has the id of one that has started another run, which it cannot join."""

    def __init__(self, key: str, *, run_id: str, job: str, wanted: str) -> None:
        self.key = key
        self.run_id = run_id
        self.job = job
        self.wanted = wanted
        super().__init__(
            f"message {key} has started run {run_id} of {job}, so it cannot start a run of {wanted} with other params; "
            f"give each message an id of its own (leave task_id or job_id out), or use {wanted}.start(...)"
        )


class WaitTimeout(BatchkitError, TimeoutError):
    """Raised by `Run.wait` when the run has not ended in time; the run itself goes on."""

    def __init__(self, run_id: str, *, state: str, seconds: float) -> None:
        self.run_id = run_id
        self.state = state
        self.seconds = seconds
        super().__init__(
            f"run {run_id} is still {state} after {seconds:g} s; it goes on without being waited for "
            f"(if nothing moves, see whether a worker runs: `batchkit work`)"
        )


class NoChunk(BatchkitError):
    """Raised where the current chunk is asked for and none is being worked."""

    def __init__(self) -> None:
        super().__init__(
            "no chunk is being worked in this thread; call current_chunk() and current_session() in a job's function, "
            "and hand the chunk's session to threads that it starts"
        )


class NoStep(BatchkitError):
    """Raised where a resumable's session is asked for though none of its steps is being worked."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(
            f"no step of run {run_id} is being worked, so there is no transaction to write through; a generator that "
            f"is stopped at a yield writes nothing more: write before the yield what must be there, and leave to "
            f"`finally` what is outside of the database"
        )


class InvalidCursor(BatchkitError):
    """Raised when a resumable yields None, which stands for the beginning."""

    def __init__(self, run_id: str, *, where: str) -> None:
        self.run_id = run_id
        self.where = where
        super().__init__(
            f"{where} is None, which means the beginning: run {run_id} would begin anew there after a crash; yield "
            f"what `steps.cursor` is to be when the function is called again (a page's token, an id), or return at the "
            f"end"
        )


class ResultCutOff(BatchkitError):
    """Raised in a resumable that goes on behind a yield with a result which it had not read to its end."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(
            f"run {run_id} reads on in a result that was open at a yield, but it ended there with its transaction; "
            f"read it to its end first (`.all()`), or ask for a part at a time, behind the cursor (`.limit(500)`)"
        )


class TooManyFailures(BatchkitError):
    """Makes a run fail: more items failed than `max_failures` allows. The cursor stays before the last of them."""

    def __init__(self, run_id: str, *, job: str, failed: int, allowed: float, last: str) -> None:
        self.run_id = run_id
        self.job = job
        self.failed = failed
        self.allowed = allowed
        share = f"{allowed}" if isinstance(allowed, int) else f"{allowed:.3g} of the items"
        super().__init__(
            f"{failed} items of run {run_id} failed, which is more than max_failures={share} of job {job}; the last "
            f"was {last}. Mend the code and resume() it, or allow more failures: @batched(..., max_failures=...)"
        )


class WorkerKilled(BatchkitError):
    """Recorded of what has killed its worker process each time that it was tried, alone and several times."""

    def __init__(self, run_id: str, *, what: str) -> None:
        self.run_id = run_id
        super().__init__(
            f"{what} of run {run_id} has killed its worker process again and again (out of memory, a crash in C code, "
            f"os._exit); it is not tried any more"
        )


class NothingToSkip(BatchkitError):
    """Raised when a run is to skip the item that kills its workers, and there is none."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(
            f"run {run_id} knows of no item that has killed its workers, so there is nothing to skip; resume it without"
        )


class NoFailures(BatchkitError):
    """Raised when failures are to be tried again and none is open."""

    def __init__(self, run_id: str, *, in_doubt: int = 0) -> None:
        self.run_id = run_id
        self.in_doubt = in_doubt
        mend = "there is nothing to try again"
        if in_doubt:
            mend = (
                f"nothing is tried again; {in_doubt} are in doubt, and may have happened: where that does no harm, "
                f"retry_failures(in_doubt=True), or batchkit retry-failures {run_id} --in-doubt"
            )
        super().__init__(f"run {run_id} has no failures that are open, so {mend}")


class FailureResolved(BatchkitError):
    """Raised inside a slice when a failure that it tries again was done by another run; the chunk is read anew."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id} tried a failure again that another run has done meanwhile")


class LeaseLost(BatchkitError):
    """Raised when a worker's right to a partition has ended; everything since its last checkpoint is rolled back."""

    def __init__(self, run_id: str, *, partition: int, fence: int) -> None:
        self.run_id = run_id
        self.partition = partition
        self.fence = fence
        super().__init__(
            f"the lease on partition {partition} of run {run_id} (fence {fence}) is over; "
            f"the chunk in flight was rolled back and whoever holds the partition now does it again"
        )


class ChunkTorn(BatchkitError):
    """Raised when the function ended the transaction that its chunk must share with the checkpoint."""

    def __init__(self, run_id: str, *, what: str, mend: str) -> None:
        self.run_id = run_id
        self.what = what
        super().__init__(f"run {run_id}: {what}, but a chunk's writes must commit together with its checkpoint. {mend}")


class WriteInsideChunk(BatchkitError):
    """Raised when a chunk's function starts or steers a run on SQLite, whose only write lock the chunk holds itself."""

    def __init__(self, url: str) -> None:
        self.url = url
        super().__init__(
            f"a chunk holds the only write lock of {url}, so starting, pausing or cancelling a run inside its function "
            f"would wait for itself; do it outside the job, or use PostgreSQL"
        )


class OutputUnusable(BatchkitError):
    """Raised when a file that a run exports cannot be written; no item is at fault."""

    def __init__(self, path: str, *, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path} cannot be written: {problem}; the run goes on with resume() once that is mended")


class OutputExists(OutputUnusable):
    """Raised when a run is to export to a file that is there and has content."""

    def __init__(self, path: str) -> None:
        super().__init__(path, problem="there is a file with content; move it away, or write replace=True")


class OutputLost(OutputUnusable):
    """Raised when what a run has exported and committed is not there any more, or is not what was written."""


class DatabaseUnavailable(BatchkitError):
    """Raised when the database cannot be reached or written."""

    def __init__(self, url: str, problem: str) -> None:
        self.url = url
        super().__init__(f"the database {url} cannot be used: {problem}")


class SchemaMismatch(BatchkitError):
    """Raised when the tables in the database are not those that this version of batchkit works with."""

    def __init__(self, url: str, *, found: str | None, wanted: str, problem: str) -> None:
        self.url = url
        self.found = found
        self.wanted = wanted
        super().__init__(problem)


class InvalidDatabase(BatchkitError):
    """Raised when a database, or the way it was opened, cannot keep batchkit's promises."""


class InvalidHook(BatchkitError):
    """Raised when the kit is given a hook that nothing would call."""


class InvalidQueue(BatchkitError):
    """Raised when the kit's queue cannot do what is asked of it."""


class InvalidGrace(BatchkitError):
    """Raised when a grace is no duration and no preset."""


class DrainImpossible(BatchkitError):
    """Raised when there is no place for the notice that an instance is being drained."""


class InvalidPurge(BatchkitError):
    """Raised when nobody could say what a purge should remove."""


def _restored(kind: type[BatchkitError], args: tuple[object, ...], attributes: dict[str, object]) -> BatchkitError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error
