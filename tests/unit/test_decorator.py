"""What `@batched` makes of a function, and what it refuses at decoration."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from batchkit import Chunk, Finish, batched, items
from batchkit.errors import DuplicateJob, InvalidJob
from batchkit.job import JOBS
from batchkit.sources import Source


def numbers(limit: int, label: str = "x") -> Source[int]:
    return items(list(range(limit)))


@batched(numbers, chunk_size=3)
def count(chunk: Chunk[int], limit: int, label: str = "x") -> None:
    """Count."""


def test_a_job_is_a_real_function_with_the_signature_of_its_params():
    made: object = count
    assert inspect.isfunction(made)
    assert ["limit", "label"] == list(inspect.signature(count).parameters)
    assert ["limit", "label"] == list(inspect.signature(count.start).parameters)
    assert ("count", "Count.", __name__) == (count.__name__, count.__doc__, count.__module__)


def test_a_job_can_be_pickled_by_name():
    assert pickle.loads(pickle.dumps(count)) is count  # noqa: S301  our own bytes


def test_a_job_is_registered_under_its_module_and_name():
    assert f"{__name__}.count" == count.name
    assert count.name in JOBS


def test_the_plain_function_is_there_for_unit_tests():
    assert ["chunk", "limit", "label"] == list(inspect.signature(count.function).parameters)


def test_two_jobs_of_one_name_are_refused_with_both_places():
    @batched(numbers, name="tests.twice")
    def first(chunk: Chunk[int], limit: int, label: str = "x") -> None: ...

    with pytest.raises(DuplicateJob) as refused:

        @batched(numbers, name="tests.twice")
        def second(chunk: Chunk[int], limit: int, label: str = "x") -> None: ...

    assert "first (" in str(refused.value)
    assert "second (" in str(refused.value)
    assert 'name="..."' in str(refused.value)


def test_the_same_function_decorated_anew_takes_its_own_place():
    def again(chunk: Chunk[int], limit: int, label: str = "x") -> None: ...

    batched(numbers, name="tests.again")(again)
    batched(numbers, name="tests.again")(again)


async def _coroutine(chunk: Chunk[int], limit: int, label: str = "x") -> None: ...


def _generator(chunk: Chunk[int], limit: int, label: str = "x") -> Iterator[None]:
    yield


class _Callable:
    def __call__(self, chunk: Chunk[int], limit: int, label: str = "x") -> None: ...


@pytest.mark.parametrize(
    ("function", "mend"),
    [
        (_coroutine, "asyncio.run"),
        (_generator, "instead of yielding"),
        (_Callable(), "plain function"),
        (lambda: None, "its first parameter"),
        (lambda chunk: None, r"write \(chunk: Chunk, limit"),
        (lambda chunk, label, limit: None, r"write \(chunk: Chunk, limit"),
        (lambda chunk, *args: None, "write each of them out"),
        (lambda chunk, **options: None, "write each of them out"),
    ],
)
def test_a_function_that_cannot_work_chunks_is_refused_with_the_right_form(function: Any, mend: str):
    with pytest.raises(InvalidJob, match=mend):
        batched(numbers, name="tests.refused")(function)
    assert "tests.refused" not in JOBS


async def _coroutine_source(limit: int) -> None: ...


def _generator_source(limit: int) -> Iterator[int]:
    yield limit


@pytest.mark.parametrize(
    ("source", "mend"),
    [
        (42, "is not a source"),
        ([1, 2, 3], "is not a source"),
        (_coroutine_source, "return a source from a plain function"),
        (_generator_source, "return a source from a plain function"),
        (lambda *ids: None, "write each of them out"),
        (count, "is a job"),
        (Source, "is not a source"),
    ],
)
def test_what_is_not_a_source_is_refused_with_the_right_form(source: Any, mend: str):
    with pytest.raises(InvalidJob, match=mend):
        batched(source)


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 0},
        {"chunk_size": -5},
        {"chunk_size": 2.5},
        {"chunk_size": True},
        {"chunk_size": "500"},
        {"lease": 0},
        {"lease": "60"},
        {"slice_time": -1},
        {"chunk_timeout": float("nan")},
        {"queue": ""},
        {"name": "x" * 256},
    ],
)
def test_an_option_out_of_range_is_refused_and_named(options: dict[str, Any]):
    make: Callable[..., Any] = batched
    with pytest.raises(InvalidJob, match=next(iter(options))):
        make(numbers, **options)(lambda chunk, limit, label: None)


def test_finish_must_take_the_params_too():
    def finish(finish: Finish, other: int) -> None: ...

    make: Callable[..., Any] = batched
    with pytest.raises(InvalidJob, match=r"write \(finish: Finish, limit"):
        make(numbers, finish=finish)
