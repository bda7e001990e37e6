"""The options of a job: what each may be. What it may not be raises InvalidJob, with the right form in the message."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Signature
from typing import Any

from batchkit.durations import Duration, seconds
from batchkit.errors import InvalidJob
from batchkit.params import check_same_params, params_signature, signature_of
from batchkit.promises import AT_MOST_ONCE, DELIVERIES, Delivery
from batchkit.sizing import Adaptive
from batchkit.sources.base import MOST_PARTITIONS, Source, Splittable, cannot_be_cut
from batchkit.throttle import Throttle

_DEFAULT_CHUNK_SIZE = Adaptive()
_LONGEST_NAME = 255


def checked_source(source: object) -> tuple[Callable[..., Source[Any]], Signature]:
    """Give what makes the source from the params, and what the params are."""
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


def check_function(function: object, params: Signature, *, role: str, first: str) -> None:
    """Refuse what is no plain function of a *first* argument and the params."""
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


def checked_chunk_size(chunk_size: object) -> int | Adaptive:
    """Give a number of items that is one, or an `Adaptive`."""
    if isinstance(chunk_size, Adaptive):
        return chunk_size
    if not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1:
        raise InvalidJob(
            f"chunk_size is the number of items per transaction, 1 or more, or Adaptive(...): got {chunk_size!r}"
        )
    return chunk_size


def default_chunk_size(delivery: Delivery | None) -> int | Adaptive:
    """Give the size of chunks where the job says none."""
    # What is in doubt after a crash is a whole chunk.
    return 1 if delivery == AT_MOST_ONCE else _DEFAULT_CHUNK_SIZE


def checked_partitions(partitions: object, source: object) -> int:
    """Give a number of ranges into which *source* can be cut, as far as that is known yet."""
    if type(partitions) is not int or not 1 <= partitions <= MOST_PARTITIONS:
        raise InvalidJob(
            f"partitions is the number of ranges that can be worked at the same time, 1 to {MOST_PARTITIONS}: "
            f"got {partitions!r}"
        )
    if partitions > 1 and isinstance(source, Source) and not isinstance(source, Splittable):
        raise InvalidJob(f"partitions={partitions}, but {cannot_be_cut(source)}")
    return partitions


def checked_max_workers(max_workers: object) -> int | None:
    """Give a number of workers, or None."""
    if max_workers is None or (type(max_workers) is int and max_workers >= 1):
        return max_workers
    raise InvalidJob(f"max_workers is the number of workers that a run has at a time, 1 or more: got {max_workers!r}")


def checked_delivery(delivery: object, retry: object) -> Delivery | None:
    """Give a mode of delivery that is one, and that goes with *retry*."""
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


def checked_interruptible(interruptible: object) -> bool:
    """Give a boolean."""
    if isinstance(interruptible, bool):
        return interruptible
    raise InvalidJob(
        f"interruptible is True, or False for chunks that must not be stopped: got {interruptible!r}; "
        f"for a part of a chunk write `with chunk.protected():` around it"
    )


def checked_max_failures(max_failures: object) -> float:
    """Give a number of items, or a share of them."""
    if isinstance(max_failures, bool) or not isinstance(max_failures, int | float) or max_failures < 0:
        raise InvalidJob(f"max_failures is a number of items, or a share such as 0.01: got {max_failures!r}")
    if isinstance(max_failures, float) and not max_failures <= 1:
        raise InvalidJob(f"max_failures={max_failures!r} is more than all items; write an int for a number of items")
    return max_failures


def checked_throttle(throttle: object) -> Throttle | None:
    """Give a throttle, or None."""
    if throttle is None or isinstance(throttle, Throttle):
        return throttle
    raise InvalidJob(f"throttle is a Throttle(rate=..., hold=...), such as Throttle(rate=1000): got {throttle!r}")


def check_unique(unique: object, params: Signature) -> None:
    """Refuse what makes no key of the params."""
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


def checked_retry(retry: object) -> Any:  # noqa: ANN401  None or a Retrying, whose import takes long
    """Give a policy of tenacity's, or None."""
    kind = type(retry)
    if retry is not None and (not hasattr(retry, "copy") or not kind.__module__.startswith("tenacity")):
        raise InvalidJob(f"retry is a tenacity.Retrying(stop=..., wait=..., retry=...): got {retry!r}")
    if inspect.iscoroutinefunction(getattr(retry, "__call__", None)):  # noqa: B004  whether it is one is the question
        raise InvalidJob(f"retry is a {kind.__qualname__}, but chunks are worked in plain functions: use Retrying(...)")
    return retry


def checked_version(version: object) -> str | int | None:
    """Give a text or a number, or None."""
    if version is None or (isinstance(version, str | int) and not isinstance(version, bool)):
        return version
    raise InvalidJob(f"version is a string or a number: got {version!r}")


def checked_describe_item(describe_item: object) -> Any:  # noqa: ANN401  None or a callable
    """Give a function of an item, or None."""
    if describe_item is not None and not callable(describe_item):
        raise InvalidJob(f"describe_item is a function of an item: got {describe_item!r}")
    return describe_item


def checked_seconds(duration: Duration, name: str) -> float:
    """Give a duration in seconds."""
    try:
        return seconds(duration, name=name)
    except (TypeError, ValueError) as error:
        raise InvalidJob(str(error)) from None


def checked_name(name: object, option: str) -> str:
    """Give a name that the tables have room for."""
    if not isinstance(name, str) or not name or len(name) > _LONGEST_NAME:
        raise InvalidJob(f"{option} must be a string of 1 to {_LONGEST_NAME} characters: got {name!r}")
    return name
