"""A job: the definition that a decorated function makes, and the table of all of them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Signature
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from batchkit.chunk import Chunk
from batchkit.errors import DuplicateJob, JobNotFound
from batchkit.params import pack, unpack
from batchkit.promises import Delivery
from batchkit.run import Run
from batchkit.sizing import Adaptive
from batchkit.sources.base import Source
from batchkit.steps import Steps
from batchkit.throttle import Throttle
from batchkit.using import NO_TERMS, AnySession, IfActive, Terms, Using

if TYPE_CHECKING:
    from tenacity import Retrying

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")
T_contra = TypeVar("T_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Options:
    """How a job's runs are worked. Durations are in seconds."""

    chunk_size: int | Adaptive
    slice_time: float
    lease: float
    chunk_timeout: float
    queue: str
    #: how many ranges of a run's items can be worked at the same time
    partitions: int = 1
    #: how many workers a run has at a time; None for any number
    max_workers: int | None = None
    #: how many items may fail before the run does: a number, or a share of the items that were tried
    max_failures: float = 0
    #: what a crash may do to the effects of a chunk; None for what the kit can promise
    delivery: Delivery | None = None
    #: whether a run may be alone with its params, or what of them makes the key that it may be alone with
    unique: bool | Callable[..., object] = False
    #: what else than faults of the database is tried again, and how often
    retry: Retrying | None = None
    #: what a run must have begun with to go on with this code
    version: str | int | None = None
    #: how fast a run may be worked, and what holds it off
    throttle: Throttle | None = None
    #: whether a worker may be stopped while it works a chunk, once that has had the time to end
    interruptible: bool = True
    #: what is shown of an item that failed
    describe_item: Callable[[Any], object] | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """All that `@batched` was told of one job."""

    name: str
    function: Callable[..., object]
    make_source: Callable[..., Source[Any]]  # Any: jobs of all item types stand in one table
    signature: Signature
    options: Options
    finish: Callable[..., object] | None
    #: whether the function takes an item, and not a chunk
    is_each: bool = False
    #: whether the function is a generator that yields its cursors, and the source stands for nothing
    is_resumable: bool = False

    def pack(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
        """
        Write the params of a run down.

        Raises:
            InvalidParams: the job does not take them.
        """
        return pack(self.name, self.signature, args, kwargs)

    def params(self, stored: str) -> dict[str, object]:
        """
        Read the params of a run.

        Raises:
            InvalidParams: the job takes other params now.
        """
        return unpack(self.name, self.signature, stored)

    @property
    def place(self) -> str:
        """Where the function stands, for error texts."""
        code = self.function.__code__
        return f"{self.function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


class Startable(Protocol[P]):
    """What all jobs can do; a job is a real function, so that queues can pickle and inspect it."""

    __name__: str
    __qualname__: str
    #: the job's stable name
    name: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Run:
        """
        Start a run and work it in this process until it ends, checkpointed all the same.

        Raises:
            RunFailed: the run failed; what was committed stays.
        """
        ...

    def start(self, *args: P.args, **kwargs: P.kwargs) -> Run:
        """Start a run: O(1), whatever the size of the job."""
        ...

    def using(
        self,
        *,
        session: AnySession | None = None,
        queue: str | None = None,
        key: str | None = None,
        if_active: IfActive = "raise",
        partitions: int | None = None,
        max_workers: int | None = None,
        limit: int | None = None,
        dry_run: bool = False,
        after: object = None,
    ) -> Using[P]:
        """
        Say how the next run is to be started: `job.using(...).start(...)`.

        Args:
            session: write the run in this session's transaction; its workers are woken up after the commit. No
                commit, no run.
            queue: the name of the queue that wakes its workers up, in place of the job's.
            key: names the start. The same key gives the same run, for ever, so that a start can be repeated.
            if_active: what to do where an unfinished run has the unique key: raise `RunActive`, or return that run.
            partitions: into how many ranges the items are cut, in place of the job's.
            max_workers: how many workers the run has at a time, in place of the job's.
            limit: end after so many items, those that fail included; of a resumable, after so many steps.
            dry_run: roll every chunk back, and what `finish` wrote; the functions are called, so that errors are found.
            after: begin behind the item with this cursor: for `rows` its key, for `items` and `span` its index, for a
                resumable what it yields.

        Raises:
            InvalidStart: one of them is of the wrong kind.
        """
        ...

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Run:
        """Start a run, as `start` does, for Celery habits."""
        ...

    def s(self, *args: object, **kwargs: object) -> Any:  # noqa: ANN401  Celery has no types
        """
        Give Celery's signature of the job, for chains, groups and chords; a result that a chain hands on comes first.

        Raises:
            InvalidQueue: the kit's queue is not a CeleryQueue.
        """
        ...

    def si(self, *args: P.args, **kwargs: P.kwargs) -> Any:  # noqa: ANN401  Celery has no types
        """
        Give Celery's immutable signature of the job: results that a chain hands on are left out.

        Raises:
            InvalidQueue: the kit's queue is not a CeleryQueue.
        """
        ...


class Job(Startable[P], Protocol[P, T]):
    """A function decorated with `@batched`: calling it starts a run and works it in this process until it ends."""

    @property
    def function(self) -> Callable[Concatenate[Chunk[T], P], object]:
        """The plain function, for unit tests."""
        ...


class EachJob(Startable[P], Protocol[P, T_contra]):
    """A function decorated with `@batched.each`, which does as those of `@batched` do."""

    @property
    def function(self) -> Callable[Concatenate[T_contra, P], object]:
        """The plain function, for unit tests."""
        ...


class ResumableJob(Startable[P], Protocol[P, C]):
    """A generator decorated with `@resumable`, which does as those of `@batched` do."""

    @property
    def function(self) -> Callable[Concatenate[Steps[C], P], Iterator[C]]:
        """The plain generator function, for unit tests."""
        ...


class Registry(Mapping[str, Definition]):
    """The jobs of this process by name."""

    def __init__(self) -> None:
        self._jobs: dict[str, Definition] = {}
        self._functions: dict[str, Callable[..., Run]] = {}
        self._listeners: list[Callable[[Definition], None]] = []
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Definition:
        try:
            return self._jobs[name]
        except KeyError:
            raise JobNotFound(name, known=self._jobs) from None

    def __contains__(self, name: object) -> bool:
        return name in self._jobs

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._jobs))

    def __len__(self) -> int:
        return len(self._jobs)

    def function_of(self, name: str) -> Callable[..., Run]:
        """Give the function that stands for a job: the decorated one."""
        return self._functions[name]

    def when_added(self, listener: Callable[[Definition], None]) -> None:
        """Have *listener* told of each job, those that are there already and those to come."""
        with self._lock:
            self._listeners.append(listener)
            known = list(self._jobs.values())
        for job in known:
            listener(job)

    def add(self, job: Definition, function: Callable[..., Run]) -> None:
        """
        Register *job*, which *function* stands for.

        The same function anew, as after a reload, takes the place of the old one.

        Raises:
            DuplicateJob: another function has its name.
        """
        with self._lock:
            known = self._jobs.get(job.name)
            if known is not None and not _is_same_function(known.function, job.function):
                raise DuplicateJob(job.name, first=known.place, second=job.place)
            self._jobs[job.name] = job
            self._functions[job.name] = function
            listeners = list(self._listeners)
        for listener in listeners:
            listener(job)


#: Every job that this process has decorated.
JOBS = Registry()


def _is_same_function(first: Callable[..., object], second: Callable[..., object]) -> bool:
    if first.__qualname__ != second.__qualname__:
        return False
    before, after = first.__code__, second.__code__
    if before.co_filename == after.co_filename:
        # One place in one file: a reload, or a script that is imported under its own name as well.
        return before.co_firstlineno == after.co_firstlineno
    # A cell of a notebook that was run again has another file name.
    return first.__module__ == second.__module__


class Starter(Protocol):
    """What a job needs of the kit that starts its runs."""

    def start_run(self, job: Definition, params: str, terms: Terms = NO_TERMS) -> Run:
        """Write a run and wake a worker up."""
        ...

    def signature(
        self, job: Definition, args: tuple[object, ...], kwargs: dict[str, object], *, immutable: bool
    ) -> object:
        """Give Celery's signature of a job."""
        ...

    def call_job(self, job: Definition, args: tuple[object, ...], kwargs: dict[str, object]) -> Run:
        """Start a run and work it in this process until it ends, or a slice of it in a queue's message."""
        ...

    def is_at_work_here(self) -> bool:
        """Tell whether this thread works a task of the kit's own queue."""
        ...


class Current:
    """
    The kit that jobs use: the one built last, or one made from the environment when first needed.

    Inside a task of a queue it is the kit of that queue: to any other, the task's message would mean nothing.
    """

    def __init__(self) -> None:
        self._kit: Starter | None = None
        self._kits: weakref.WeakSet[Starter] = weakref.WeakSet()
        self._make: Callable[[], Starter] | None = None
        self._lock = threading.Lock()

    def use(self, kit: Starter) -> None:
        """Make *kit* the one that jobs use."""
        self._kit = kit
        # Anew, since another thread may be going through them
        self._kits = weakref.WeakSet([*self._kits, kit])

    def make_with(self, make: Callable[[], Starter]) -> None:
        """Say how to make a kit where none was built."""
        self._make = make

    def __call__(self) -> Starter:
        """Give the kit that jobs use."""
        with self._lock:
            if self._kit is None:
                if self._make is None:  # the app module says how when it is imported, and every import of batchkit does
                    message = "import batchkit before starting a job"
                    raise RuntimeError(message)
                self._kit = self._make()
            kit, kits = self._kit, list(self._kits)
        if len(kits) == 1 or kit.is_at_work_here():
            return kit
        return next((each for each in kits if each.is_at_work_here()), kit)


current_kit = Current()
