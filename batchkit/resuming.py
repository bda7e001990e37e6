"""The decorator that makes a job of a generator which yields its cursors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from inspect import Signature
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from batchkit.chunk import Finish
from batchkit.decorator import resumable_job
from batchkit.durations import Duration
from batchkit.errors import InvalidJob
from batchkit.job import ResumableJob
from batchkit.params import params_signature
from batchkit.sources.base import Source
from batchkit.steps import Steps
from batchkit.throttle import Throttle

if TYPE_CHECKING:
    from tenacity import Retrying

P = ParamSpec("P")
C = TypeVar("C")

_RIGHT = "def crawl(steps: Steps[str], account: str) -> Generator[str, None, None]"
#: What a first parameter is annotated with that is a param, or belongs to another decorator.
_NO_STEPS = ("Chunk", "Finish", "Session", "str", "int", "float", "bool", "bytes", "list", "dict", "set", "tuple")


class _Decorator(Protocol):
    """What `resumable(...)` gives where there is no `finish`."""

    def __call__(self, function: Callable[Concatenate[Steps[C], P], Iterator[C]], /) -> ResumableJob[P, C]: ...


class _DecoratorWithFinish(Protocol[P]):
    """What `resumable(...)` gives where there is a `finish`, which has the same params."""

    def __call__(self, function: Callable[Concatenate[Steps[C], P], Iterator[C]], /) -> ResumableJob[P, C]: ...


@overload
def resumable(function: Callable[Concatenate[Steps[C], P], Iterator[C]], /) -> ResumableJob[P, C]: ...
@overload
def resumable(
    *,
    name: str | None = None,
    slice_time: Duration | None = None,
    lease: Duration | None = None,
    chunk_timeout: Duration | None = None,
    queue: str = "default",
    unique: bool | Callable[..., object] = False,
    throttle: Throttle | None = None,
    retry: Retrying | None = None,
    interruptible: bool = True,
    version: str | int | None = None,
) -> _Decorator: ...
@overload
def resumable(
    *,
    name: str | None = None,
    slice_time: Duration | None = None,
    lease: Duration | None = None,
    chunk_timeout: Duration | None = None,
    queue: str = "default",
    unique: bool | Callable[..., object] = False,
    throttle: Throttle | None = None,
    retry: Retrying | None = None,
    interruptible: bool = True,
    version: str | int | None = None,
    finish: Callable[Concatenate[Finish, P], object],
) -> _DecoratorWithFinish[P]: ...
def resumable(
    function: Callable[..., object] | None = None,
    /,
    *,
    name: str | None = None,
    slice_time: Duration | None = None,
    lease: Duration | None = None,
    chunk_timeout: Duration | None = None,
    queue: str = "default",
    unique: bool | Callable[..., object] = False,
    throttle: Throttle | None = None,
    retry: Retrying | None = None,
    interruptible: bool = True,
    version: str | int | None = None,
    finish: Callable[..., object] | None = None,
) -> Any:
    """
    Make a generator into a job that survives the death of its workers: each `yield` of a cursor is a chunk boundary.

    What was written through `steps.session` since the last `yield` commits together with the cursor that is yielded,
    and what comes behind the last one with the end. On resume the function is called again, and finds in
    `steps.cursor` what it yielded last; it must go on from there. An error rolls back to the last `yield`; one that
    stays makes the run failed, and `resume()` goes on from that cursor.

    Args:
        function: a generator function whose first parameter is a `Steps`; the others are the params of its runs.
        name: the job's stable name; by default the module and name of the function.
        slice_time: how long a worker works before it gives others their turn, at the next `yield`.
        lease: how long a claim lasts without a renewal; a killed worker's run goes on after this long.
        chunk_timeout: a step that takes longer is no longer renewed; by default ten leases.
        queue: the name of the queue that wakes its workers up.
        unique: True for one unfinished run with the same params, or a function of the params that gives the key.
        throttle: `Throttle(rate=5)` for at most so many steps per second, and `Throttle(hold=...)` for a function that
            says when the run is to be held off; both are heeded at a `yield`.
        retry: what to try again, how often, and how long to wait before (`tenacity.Retrying(...)`): each try is a new
            generator from the last cursor. Passing faults of the run's own database are tried again in any case.
        interruptible: False for steps that must not be stopped; see `batched`.
        version: change it when runs that are unfinished must not go on with this code, since a cursor or
            `steps.carry` means something else; they wait until `resume(accept=True)` or workers of their version.
        finish: a function run once after the end of the generator, in the transaction that makes the run succeeded; it
            takes a `Finish` and the params, and what it returns is the run's result.

    Raises:
        InvalidJob: the function or an option cannot make a job.
        DuplicateJob: another function has the name.
    """

    def decorate(function: Callable[..., object]) -> Any:  # noqa: ANN401  see the overloads
        return resumable_job(
            function,
            _checked_generator(function),
            name=name,
            slice_time=slice_time,
            lease=lease,
            chunk_timeout=chunk_timeout,
            queue=queue,
            unique=unique,
            throttle=throttle,
            retry=retry,
            interruptible=interruptible,
            version=version,
            finish=finish,
        )

    return decorate if function is None else decorate(function)


def _checked_generator(function: object) -> Signature:
    """Give the signature of the params of a generator function; refuse what is none, with what to write instead."""
    if hasattr(function, "function") and hasattr(function, "start"):
        raise InvalidJob(f"{function!r} is a job already; a function is either @batched over a source or @resumable")
    if isinstance(function, Source):
        raise InvalidJob(f"{function!r} is a source, but a resumable has none: write @resumable above {_RIGHT}")
    if not inspect.isfunction(function):
        raise InvalidJob(
            f"a resumable must be a plain generator function: got {function!r}; write @resumable above {_RIGHT}"
        )
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidJob(
            f"{function.__qualname__} is a coroutine, but steps are worked in plain generators; "
            f"write `def` and call asyncio.run() inside it where you must"
        )
    if not inspect.isgeneratorfunction(function):
        raise InvalidJob(
            f"{function.__qualname__} yields nothing, but a resumable is a generator that yields its cursor after each "
            f"part of its work: write @resumable above {_RIGHT} and `yield cursor` in it; for a function of a chunk of "
            f"items write @batched(source)"
        )
    params = params_signature(function, role="the function", first="Steps")
    _check_first(function)
    return params


def _check_first(function: Callable[..., object]) -> None:
    first = next(iter(inspect.signature(function).parameters.values()))
    annotation = first.annotation
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    if text.split("[")[0].rsplit(".", 1)[-1] in _NO_STEPS:
        raise InvalidJob(
            f"the first parameter of {function.__qualname__} is `{first}`, but it gets a Steps there, and the params "
            f"behind it: write {_RIGHT}"
        )
