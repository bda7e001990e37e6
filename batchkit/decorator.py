"""The decorator that makes a job of a function."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from inspect import Signature
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast, overload

from batchkit.chunk import Chunk, Finish
from batchkit.durations import Duration
from batchkit.job import JOBS, Definition, EachJob, Job, Options, current_kit
from batchkit.options import (
    check_function,
    check_unique,
    checked_chunk_size,
    checked_delivery,
    checked_describe_item,
    checked_interruptible,
    checked_max_failures,
    checked_max_workers,
    checked_name,
    checked_partitions,
    checked_retry,
    checked_seconds,
    checked_source,
    checked_throttle,
    checked_version,
    default_chunk_size,
)
from batchkit.promises import Delivery
from batchkit.run import Run
from batchkit.sizing import Adaptive
from batchkit.sources.base import Source
from batchkit.steps import Resumable
from batchkit.throttle import Throttle
from batchkit.using import Terms, Using

if TYPE_CHECKING:
    from tenacity import Retrying

P = ParamSpec("P")
T = TypeVar("T")

_DEFAULT_SLICE_TIME = 60.0
_DEFAULT_LEASE = 60.0
_CHUNK_TIMEOUT_LEASES = 10


class _Batched:
    """The decorator `batched`, and `batched.each` beside it."""

    @overload
    def __call__(
        self,
        source: Callable[P, Source[T]],
        *,
        name: str | None = None,
        chunk_size: int | Adaptive | None = None,
        partitions: int = ...,
        max_workers: int | None = None,
        slice_time: Duration = ...,
        lease: Duration = ...,
        chunk_timeout: Duration | None = None,
        queue: str = ...,
        unique: bool | Callable[..., object] = ...,
        retry: Retrying | None = None,
        max_failures: float = ...,
        throttle: Throttle | None = None,
        delivery: Delivery | None = None,
        interruptible: bool = True,
        version: str | int | None = None,
        describe_item: Callable[[T], object] | None = None,
        finish: Callable[Concatenate[Finish, P], object] | None = None,
    ) -> Callable[[Callable[Concatenate[Chunk[T], P], object]], Job[P, T]]: ...
    @overload
    def __call__(
        self,
        source: Source[T],
        *,
        name: str | None = None,
        chunk_size: int | Adaptive | None = None,
        partitions: int = ...,
        max_workers: int | None = None,
        slice_time: Duration = ...,
        lease: Duration = ...,
        chunk_timeout: Duration | None = None,
        queue: str = ...,
        unique: bool | Callable[..., object] = ...,
        retry: Retrying | None = None,
        max_failures: float = ...,
        throttle: Throttle | None = None,
        delivery: Delivery | None = None,
        interruptible: bool = True,
        version: str | int | None = None,
        describe_item: Callable[[T], object] | None = None,
        finish: Callable[[Finish], object] | None = None,
    ) -> Callable[[Callable[[Chunk[T]], object]], Job[[], T]]: ...
    def __call__(
        self,
        source: Callable[..., Source[Any]] | Source[Any],
        *,
        name: str | None = None,
        chunk_size: int | Adaptive | None = None,
        partitions: int = 1,
        max_workers: int | None = None,
        slice_time: Duration = _DEFAULT_SLICE_TIME,
        lease: Duration = _DEFAULT_LEASE,
        chunk_timeout: Duration | None = None,
        queue: str = "default",
        unique: bool | Callable[..., object] = False,
        retry: Retrying | None = None,
        max_failures: float = 0,
        throttle: Throttle | None = None,
        delivery: Delivery | None = None,
        interruptible: bool = True,
        version: str | int | None = None,
        describe_item: Callable[[Any], object] | None = None,
        finish: Callable[..., object] | None = None,
    ) -> Callable[[Callable[..., object]], Any]:
        """
        Make a function of a chunk into a job that survives the death of its workers.

        Args:
            source: a function of the run's params that gives a source, or a source for a job without params.
            name: the job's stable name; by default the module and name of the function.
            chunk_size: items per chunk, or `Adaptive(target=...)` for as many as take that long; by default as many as
                take a second, or 1 with `delivery="at-most-once"`.
            partitions: how many ranges of a run's items can be worked at the same time, each by a worker of its own;
                the source must be one that can be cut (docs/partitions.md). A small one is cut into fewer.
            max_workers: how many workers one run has at a time; by default as many as are free and it has partitions.
            slice_time: how long a worker works before it gives others their turn.
            lease: how long a claim lasts without a renewal; a killed worker's run goes on after this long.
            chunk_timeout: a chunk that takes longer is no longer renewed; by default ten leases.
            queue: the name of the queue that wakes its workers up.
            unique: True for one unfinished run with the same params; or a function of the params that gives the key
                which one unfinished run has, such as `lambda tenant_id, month: tenant_id`. Another start raises
                `RunActive`; see `using(if_active=...)`.
            retry: what to try again, how often, and how long to wait before
                (`tenacity.Retrying(retry=..., stop=..., wait=...)`); a chunk is tried again whole, and its waits end
                when the worker is asked to stop. Deadlocks, lock timeouts, serialization failures and lost connections
                of the run's own database are tried again in any case.
            max_failures: how many items may fail before the run does: a number, or a share (0.01) of the items that
                were tried, which is judged from 100 items on. By default the first that fails does.
            throttle: `Throttle(rate=1000)` for at most so many items per second over the whole run, and
                `Throttle(hold=...)` for what gives the run back for a while, such as a database in need.
            delivery: what a crash may do to the function's effects. `"exactly-once"`, for writes through the chunk's
                session, is the default; said so, it is refused where the kit's sessions are on another database.
                `"at-least-once"` is for calls to other systems that may be repeated: no transaction is open during
                them. `"at-most-once"` is for those that must not: each item is tried once, and after a crash recorded
                as in doubt.
            interruptible: False for chunks that must not be stopped: workers count as protected while they work one, no
                chunk is cut short when the grace ends, and `chunk_timeout` is off unless it is given.
            version: change it when runs that are unfinished must not go on with this code, such as when `chunk.carry`
                means something else; they wait and say so, until `resume(accept=True)` or workers of their version.
            describe_item: gives what is recorded of an item that failed, such as its id; by default its `repr`, or the
                loaded columns of an ORM object.
            finish: a function run once after the last item, in the transaction that makes the run succeeded; it takes
                a `Finish` and the params, and what it returns is the run's result.

        Raises:
            InvalidJob: the function, its source or an option cannot make a job.
            DuplicateJob: another function has the name.
        """
        return _decorator(
            source,
            is_each=False,
            name=name,
            chunk_size=chunk_size,
            partitions=partitions,
            max_workers=max_workers,
            slice_time=slice_time,
            lease=lease,
            chunk_timeout=chunk_timeout,
            queue=queue,
            unique=unique,
            retry=retry,
            max_failures=max_failures,
            throttle=throttle,
            delivery=delivery,
            interruptible=interruptible,
            version=version,
            describe_item=describe_item,
            finish=finish,
        )

    @overload
    def each(
        self,
        source: Callable[P, Source[T]],
        *,
        name: str | None = None,
        chunk_size: int | Adaptive | None = None,
        partitions: int = ...,
        max_workers: int | None = None,
        slice_time: Duration = ...,
        lease: Duration = ...,
        chunk_timeout: Duration | None = None,
        queue: str = ...,
        unique: bool | Callable[..., object] = ...,
        retry: Retrying | None = None,
        max_failures: float = ...,
        throttle: Throttle | None = None,
        delivery: Delivery | None = None,
        interruptible: bool = True,
        version: str | int | None = None,
        describe_item: Callable[[T], object] | None = None,
        finish: Callable[Concatenate[Finish, P], object] | None = None,
    ) -> Callable[[Callable[Concatenate[T, P], object]], EachJob[P, T]]: ...
    @overload
    def each(
        self,
        source: Source[T],
        *,
        name: str | None = None,
        chunk_size: int | Adaptive | None = None,
        partitions: int = ...,
        max_workers: int | None = None,
        slice_time: Duration = ...,
        lease: Duration = ...,
        chunk_timeout: Duration | None = None,
        queue: str = ...,
        unique: bool | Callable[..., object] = ...,
        retry: Retrying | None = None,
        max_failures: float = ...,
        throttle: Throttle | None = None,
        delivery: Delivery | None = None,
        interruptible: bool = True,
        version: str | int | None = None,
        describe_item: Callable[[T], object] | None = None,
        finish: Callable[[Finish], object] | None = None,
    ) -> Callable[[Callable[[T], object]], EachJob[[], T]]: ...
    def each(
        self,
        source: Callable[..., Source[Any]] | Source[Any],
        *,
        name: str | None = None,
        chunk_size: int | Adaptive | None = None,
        partitions: int = 1,
        max_workers: int | None = None,
        slice_time: Duration = _DEFAULT_SLICE_TIME,
        lease: Duration = _DEFAULT_LEASE,
        chunk_timeout: Duration | None = None,
        queue: str = "default",
        unique: bool | Callable[..., object] = False,
        retry: Retrying | None = None,
        max_failures: float = 0,
        throttle: Throttle | None = None,
        delivery: Delivery | None = None,
        interruptible: bool = True,
        version: str | int | None = None,
        describe_item: Callable[[Any], object] | None = None,
        finish: Callable[..., object] | None = None,
    ) -> Callable[[Callable[..., object]], Any]:
        """
        Make a function of one item into a job: chunks of items are committed all the same, each with its checkpoint.

        The function writes through `current_session()`. Where one of a chunk's items raises, the chunk is tried again
        with a savepoint in front of each: what raises then is rolled back to it and recorded, and the others are done.
        The options are those of `batched`.

        Raises:
            InvalidJob: the function, its source or an option cannot make a job.
            DuplicateJob: another function has the name.
        """
        return _decorator(
            source,
            is_each=True,
            name=name,
            chunk_size=chunk_size,
            partitions=partitions,
            max_workers=max_workers,
            slice_time=slice_time,
            lease=lease,
            chunk_timeout=chunk_timeout,
            queue=queue,
            unique=unique,
            retry=retry,
            max_failures=max_failures,
            throttle=throttle,
            delivery=delivery,
            interruptible=interruptible,
            version=version,
            describe_item=describe_item,
            finish=finish,
        )


batched = _Batched()


def _decorator(
    source: Callable[..., Source[Any]] | Source[Any],
    *,
    is_each: bool,
    name: str | None,
    chunk_size: int | Adaptive | None,
    partitions: int,
    max_workers: int | None,
    slice_time: Duration,
    lease: Duration,
    chunk_timeout: Duration | None,
    queue: str,
    unique: bool | Callable[..., object],
    retry: Retrying | None,
    max_failures: float,
    throttle: Throttle | None,
    delivery: Delivery | None,
    interruptible: bool,
    version: str | int | None,
    describe_item: Callable[[Any], object] | None,
    finish: Callable[..., object] | None,
) -> Callable[[Callable[..., object]], Any]:
    lease_seconds = checked_seconds(lease, "lease")
    options = Options(
        chunk_size=checked_chunk_size(default_chunk_size(delivery) if chunk_size is None else chunk_size),
        slice_time=checked_seconds(slice_time, "slice_time"),
        lease=lease_seconds,
        chunk_timeout=_chunk_timeout(chunk_timeout, lease_seconds, interruptible=interruptible),
        queue=checked_name(queue, "queue"),
        partitions=checked_partitions(partitions, source),
        max_workers=checked_max_workers(max_workers),
        max_failures=checked_max_failures(max_failures),
        throttle=checked_throttle(throttle),
        delivery=checked_delivery(delivery, retry),
        interruptible=checked_interruptible(interruptible),
        unique=unique,
        retry=checked_retry(retry),
        version=checked_version(version),
        describe_item=checked_describe_item(describe_item),
    )
    make_source, signature = checked_source(source)
    check_unique(unique, signature)
    if finish is not None:
        check_function(finish, signature, role="finish", first="Finish")
    first = "Item" if is_each else "Chunk"

    def decorate(function: Callable[..., object]) -> Any:  # noqa: ANN401
        check_function(function, signature, role="the function", first=first)
        definition = Definition(
            name=checked_name(name or _name_of(function), "name"),
            function=function,
            make_source=make_source,
            signature=signature,
            options=options,
            finish=finish,
            is_each=is_each,
        )
        job = _callable_job(definition)
        JOBS.add(definition, job)
        return job

    return decorate


def _chunk_timeout(given: Duration | None, lease: float, *, interruptible: bool) -> float:
    if given is not None:
        return checked_seconds(given, "chunk_timeout")
    # What must not be stopped is not given up because it takes long, either.
    return lease * _CHUNK_TIMEOUT_LEASES if interruptible else math.inf


def resumable_job(
    function: Callable[..., object],
    signature: Signature,
    *,
    name: str | None,
    slice_time: Duration | None,
    lease: Duration | None,
    chunk_timeout: Duration | None,
    queue: str,
    unique: bool | Callable[..., object],
    throttle: Throttle | None,
    retry: Retrying | None,
    interruptible: bool,
    version: str | int | None,
    finish: Callable[..., object] | None,
) -> Any:  # noqa: ANN401  typed where it is offered
    """
    Make a job of a generator function, whose params are those of *signature*.

    Raises:
        InvalidJob: an option cannot make a job.
        DuplicateJob: another function has the name.
    """
    lease_seconds = checked_seconds(_DEFAULT_LEASE if lease is None else lease, "lease")
    options = Options(
        chunk_size=1,
        slice_time=checked_seconds(_DEFAULT_SLICE_TIME if slice_time is None else slice_time, "slice_time"),
        lease=lease_seconds,
        chunk_timeout=_chunk_timeout(chunk_timeout, lease_seconds, interruptible=interruptible),
        interruptible=checked_interruptible(interruptible),
        queue=checked_name(queue, "queue"),
        unique=unique,
        throttle=checked_throttle(throttle),
        retry=checked_retry(retry),
        version=checked_version(version),
    )
    check_unique(unique, signature)
    if finish is not None:
        check_function(finish, signature, role="finish", first="Finish")
    definition = Definition(
        name=checked_name(name or _name_of(function), "name"),
        function=function,
        make_source=_no_source(function),
        signature=signature,
        options=options,
        finish=finish,
        is_resumable=True,
    )
    job = _callable_job(definition)
    JOBS.add(definition, job)
    return job


def _no_source(function: Callable[..., object]) -> Callable[..., Source[Any]]:
    # It passes for the function, where the types of the params are looked up.
    @functools.wraps(function)
    def make_source(**_: object) -> Source[Any]:
        return Resumable()

    return make_source


def _callable_job(definition: Definition) -> Job[..., Any]:
    """Make the function that stands for the job: a real one, so that queues can pickle it by name and inspect it."""

    @functools.wraps(definition.function, assigned=("__module__", "__name__", "__qualname__", "__doc__"), updated=())
    def job(*args: object, **kwargs: object) -> Run:
        return current_kit().call_job(definition, args, kwargs)

    def start(*args: object, **kwargs: object) -> Run:
        """Start a run: O(1), whatever the size of the job."""
        return current_kit().start_run(definition, definition.pack(args, kwargs))

    def using(**terms: Any) -> Using[...]:  # noqa: ANN401  the types are those of `Startable.using`
        """Say how the next run is to be started."""
        on = Terms(**terms)

        def start_on(*args: object, **kwargs: object) -> Run:
            return current_kit().start_run(definition, definition.pack(args, kwargs), on)

        return Using(start_on)

    def s(*args: object, **kwargs: object) -> object:
        """Give Celery's signature of the job: a result that a chain hands on comes first."""
        return current_kit().signature(definition, args, kwargs, immutable=False)

    def si(*args: object, **kwargs: object) -> object:
        """Give Celery's immutable signature of the job: results that a chain hands on are left out."""
        return current_kit().signature(definition, args, kwargs, immutable=True)

    # wraps() leaves this behind; inspect would follow it to the plain function, whose first parameter is the chunk.
    del job.__wrapped__
    shown = definition.signature.replace(return_annotation=Run)
    made = cast("Any", job)
    made.__signature__ = shown
    job.__annotations__ = {
        **{name: p.annotation for name, p in shown.parameters.items() if p.annotation is not Signature.empty},
        "return": Run,
    }
    cast("Any", start).__signature__ = shown
    made.name = definition.name
    made.function = definition.function
    made.start = made.delay = start
    made.using = using
    made.s, made.si = s, si
    return cast("Job[..., Any]", made)


def _name_of(function: Callable[..., object]) -> str:
    module = function.__module__
    if module == "__main__":
        # `python -m package.module` runs a module that workers import under its own name.
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        module = spec.name if spec is not None else module
    return f"{module}.{function.__qualname__}"
