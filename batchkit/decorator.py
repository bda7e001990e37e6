"""The decorator that makes a job of a function."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from inspect import Signature
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast, overload

from batchkit.chunk import Chunk, Finish
from batchkit.durations import Duration, seconds
from batchkit.errors import InvalidJob
from batchkit.job import JOBS, Definition, EachJob, Job, Options, current_kit
from batchkit.params import check_same_params, params_signature, signature_of
from batchkit.promises import AT_MOST_ONCE, DELIVERIES, Delivery
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

_DEFAULT_CHUNK_SIZE = Adaptive()
_DEFAULT_SLICE_TIME = 60.0
_DEFAULT_LEASE = 60.0
_CHUNK_TIMEOUT_LEASES = 10
_LONGEST_NAME = 255


class _Batched:
    """The decorator `batched`, and `batched.each` beside it."""

    @overload
    def __call__(
        self,
        source: Callable[P, Source[T]],
        *,
        name: str | None = None,
        chunk_size: int | Adaptive | None = None,
        slice_time: Duration = ...,
        lease: Duration = ...,
        chunk_timeout: Duration | None = None,
        queue: str = ...,
        unique: bool | Callable[..., object] = ...,
        retry: Retrying | None = None,
        max_failures: float = ...,
        throttle: Throttle | None = None,
        delivery: Delivery | None = None,
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
        slice_time: Duration = ...,
        lease: Duration = ...,
        chunk_timeout: Duration | None = None,
        queue: str = ...,
        unique: bool | Callable[..., object] = ...,
        retry: Retrying | None = None,
        max_failures: float = ...,
        throttle: Throttle | None = None,
        delivery: Delivery | None = None,
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
        slice_time: Duration = _DEFAULT_SLICE_TIME,
        lease: Duration = _DEFAULT_LEASE,
        chunk_timeout: Duration | None = None,
        queue: str = "default",
        unique: bool | Callable[..., object] = False,
        retry: Retrying | None = None,
        max_failures: float = 0,
        throttle: Throttle | None = None,
        delivery: Delivery | None = None,
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
            slice_time=slice_time,
            lease=lease,
            chunk_timeout=chunk_timeout,
            queue=queue,
            unique=unique,
            retry=retry,
            max_failures=max_failures,
            throttle=throttle,
            delivery=delivery,
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
        slice_time: Duration = ...,
        lease: Duration = ...,
        chunk_timeout: Duration | None = None,
        queue: str = ...,
        unique: bool | Callable[..., object] = ...,
        retry: Retrying | None = None,
        max_failures: float = ...,
        throttle: Throttle | None = None,
        delivery: Delivery | None = None,
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
        slice_time: Duration = ...,
        lease: Duration = ...,
        chunk_timeout: Duration | None = None,
        queue: str = ...,
        unique: bool | Callable[..., object] = ...,
        retry: Retrying | None = None,
        max_failures: float = ...,
        throttle: Throttle | None = None,
        delivery: Delivery | None = None,
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
        slice_time: Duration = _DEFAULT_SLICE_TIME,
        lease: Duration = _DEFAULT_LEASE,
        chunk_timeout: Duration | None = None,
        queue: str = "default",
        unique: bool | Callable[..., object] = False,
        retry: Retrying | None = None,
        max_failures: float = 0,
        throttle: Throttle | None = None,
        delivery: Delivery | None = None,
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
            slice_time=slice_time,
            lease=lease,
            chunk_timeout=chunk_timeout,
            queue=queue,
            unique=unique,
            retry=retry,
            max_failures=max_failures,
            throttle=throttle,
            delivery=delivery,
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
    slice_time: Duration,
    lease: Duration,
    chunk_timeout: Duration | None,
    queue: str,
    unique: bool | Callable[..., object],
    retry: Retrying | None,
    max_failures: float,
    throttle: Throttle | None,
    delivery: Delivery | None,
    version: str | int | None,
    describe_item: Callable[[Any], object] | None,
    finish: Callable[..., object] | None,
) -> Callable[[Callable[..., object]], Any]:
    lease_seconds = _checked_seconds(lease, "lease")
    options = Options(
        chunk_size=_checked_chunk_size(_default_chunk_size(delivery) if chunk_size is None else chunk_size),
        slice_time=_checked_seconds(slice_time, "slice_time"),
        lease=lease_seconds,
        chunk_timeout=(
            lease_seconds * _CHUNK_TIMEOUT_LEASES
            if chunk_timeout is None
            else _checked_seconds(chunk_timeout, "chunk_timeout")
        ),
        queue=_checked_name(queue, "queue"),
        max_failures=_checked_max_failures(max_failures),
        throttle=_checked_throttle(throttle),
        delivery=_checked_delivery(delivery, retry),
        unique=unique,
        retry=_checked_retry(retry),
        version=_checked_version(version),
        describe_item=_checked_describe_item(describe_item),
    )
    make_source, signature = _checked_source(source)
    _check_unique(unique, signature)
    if finish is not None:
        _check_function(finish, signature, role="finish", first="Finish")
    first = "Item" if is_each else "Chunk"

    def decorate(function: Callable[..., object]) -> Any:  # noqa: ANN401
        _check_function(function, signature, role="the function", first=first)
        definition = Definition(
            name=_checked_name(name or _name_of(function), "name"),
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
    version: str | int | None,
    finish: Callable[..., object] | None,
) -> Any:  # noqa: ANN401  typed where it is offered
    """
    Make a job of a generator function, whose params are those of *signature*.

    Raises:
        InvalidJob: an option cannot make a job.
        DuplicateJob: another function has the name.
    """
    lease_seconds = _checked_seconds(_DEFAULT_LEASE if lease is None else lease, "lease")
    timeout = lease_seconds * _CHUNK_TIMEOUT_LEASES if chunk_timeout is None else chunk_timeout
    options = Options(
        chunk_size=1,
        slice_time=_checked_seconds(_DEFAULT_SLICE_TIME if slice_time is None else slice_time, "slice_time"),
        lease=lease_seconds,
        chunk_timeout=_checked_seconds(timeout, "chunk_timeout"),
        queue=_checked_name(queue, "queue"),
        unique=unique,
        throttle=_checked_throttle(throttle),
        retry=_checked_retry(retry),
        version=_checked_version(version),
    )
    _check_unique(unique, signature)
    if finish is not None:
        _check_function(finish, signature, role="finish", first="Finish")
    definition = Definition(
        name=_checked_name(name or _name_of(function), "name"),
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


def _checked_source(source: object) -> tuple[Callable[..., Source[Any]], Signature]:
    if isinstance(source, Source) and not isinstance(source, type):
        return (lambda: source), Signature()
    if hasattr(source, "function") and hasattr(source, "start"):
        raise InvalidJob(f"{source!r} is a job, but a job needs a source of items: @batched(my_source)")
    if not callable(source) or isinstance(source, type):
        raise InvalidJob(
            f"{source!r} is not a source; give a function of the params that returns one, such as "
            f"`def users(domain: str): return rows(select(User), key=User.id)`, or a source for a job without params"
        )
    if inspect.iscoroutinefunction(source) or inspect.isgeneratorfunction(source) or inspect.isasyncgenfunction(source):
        raise InvalidJob(
            f"the source {source} is a coroutine or a generator, which cannot go on behind an item; "
            f"return a source from a plain function: `return rows(...)`, `return items(...)`"
        )
    return source, signature_of(source, role="the source")


def _check_function(function: object, params: Signature, *, role: str, first: str) -> None:
    if not inspect.isfunction(function):
        raise InvalidJob(
            f"{role} must be a plain function: got {function!r}; write @batched(source) above a `def` at module level"
        )
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidJob(
            f"{role} {function.__qualname__} is a coroutine, but chunks are worked in plain functions; "
            f"write `def` and call asyncio.run() inside it where you must"
        )
    if inspect.isgeneratorfunction(function):
        raise InvalidJob(
            f"{role} {function.__qualname__} is a generator, so calling it would do nothing; "
            f"loop over the chunk and write through chunk.session instead of yielding"
        )
    check_same_params(params, params_signature(function, role=role, first=first), role=role, first=first)


def _checked_chunk_size(chunk_size: object) -> int | Adaptive:
    if isinstance(chunk_size, Adaptive):
        return chunk_size
    if not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1:
        raise InvalidJob(
            f"chunk_size is the number of items per transaction, 1 or more, or Adaptive(...): got {chunk_size!r}"
        )
    return chunk_size


def _default_chunk_size(delivery: Delivery | None) -> int | Adaptive:
    # What is in doubt after a crash is a whole chunk.
    return 1 if delivery == AT_MOST_ONCE else _DEFAULT_CHUNK_SIZE


def _checked_delivery(delivery: object, retry: object) -> Delivery | None:
    if delivery is None:
        return None
    for known in DELIVERIES:
        if delivery == known:
            if known == AT_MOST_ONCE and retry is not None:
                raise InvalidJob(
                    "retry=... tries items again, but delivery='at-most-once' calls the function once for each; "
                    "leave retry out, or use delivery='at-least-once' with chunk.key(item)"
                )
            return known
    raise InvalidJob(f"delivery is one of {', '.join(map(repr, DELIVERIES))}: got {delivery!r}")


def _checked_max_failures(max_failures: object) -> float:
    if isinstance(max_failures, bool) or not isinstance(max_failures, int | float) or max_failures < 0:
        raise InvalidJob(f"max_failures is a number of items, or a share such as 0.01: got {max_failures!r}")
    if isinstance(max_failures, float) and not max_failures <= 1:
        raise InvalidJob(f"max_failures={max_failures!r} is more than all items; write an int for a number of items")
    return max_failures


def _checked_throttle(throttle: object) -> Throttle | None:
    if throttle is None or isinstance(throttle, Throttle):
        return throttle
    raise InvalidJob(f"throttle is a Throttle(rate=..., hold=...), such as Throttle(rate=1000): got {throttle!r}")


def _check_unique(unique: object, params: Signature) -> None:
    if isinstance(unique, bool):
        return
    names = list(params.parameters)
    right = f"True, or a function of the params: unique=lambda {', '.join(names)}: ..."
    if not callable(unique) or isinstance(unique, type) or inspect.iscoroutinefunction(unique):
        raise InvalidJob(f"unique is {right}: got {unique!r}")
    try:
        inspect.signature(unique).bind(**dict.fromkeys(names))
    except TypeError as error:
        raise InvalidJob(f"the unique function cannot be called with the params ({error}); give {right}") from None


def _checked_retry(retry: object) -> Any:  # noqa: ANN401  None or a Retrying, whose import takes long
    kind = type(retry)
    if retry is not None and (not hasattr(retry, "copy") or not kind.__module__.startswith("tenacity")):
        raise InvalidJob(f"retry is a tenacity.Retrying(stop=..., wait=..., retry=...): got {retry!r}")
    if inspect.iscoroutinefunction(getattr(retry, "__call__", None)):  # noqa: B004  whether it is one is the question
        raise InvalidJob(f"retry is a {kind.__qualname__}, but chunks are worked in plain functions: use Retrying(...)")
    return retry


def _checked_version(version: object) -> str | int | None:
    if version is None or (isinstance(version, str | int) and not isinstance(version, bool)):
        return version
    raise InvalidJob(f"version is a string or a number: got {version!r}")


def _checked_describe_item(describe_item: object) -> Any:  # noqa: ANN401  None or a callable
    if describe_item is not None and not callable(describe_item):
        raise InvalidJob(f"describe_item is a function of an item: got {describe_item!r}")
    return describe_item


def _checked_seconds(duration: Duration, name: str) -> float:
    try:
        return seconds(duration, name=name)
    except (TypeError, ValueError) as error:
        raise InvalidJob(str(error)) from None


def _checked_name(name: object, option: str) -> str:
    if not isinstance(name, str) or not name or len(name) > _LONGEST_NAME:
        raise InvalidJob(f"{option} must be a string of 1 to {_LONGEST_NAME} characters: got {name!r}")
    return name


def _name_of(function: Callable[..., object]) -> str:
    module = function.__module__
    if module == "__main__":
        # `python -m package.module` runs a module that workers import under its own name.
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        module = spec.name if spec is not None else module
    return f"{module}.{function.__qualname__}"
