"""What `@resumable` makes of a generator function, and what it refuses at decoration."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from batchkit import Chunk, Finish, Steps, batched, resumable, span
from batchkit.cli.arguments import param_types
from batchkit.errors import DuplicateJob, InvalidJob
from batchkit.job import JOBS


@resumable
def crawl(steps: Steps[str], account: str, limit: int = 5) -> Iterator[str]:
    """Crawl."""
    yield account


@resumable(name="tests.crawl_by_another_name", lease=5, queue="bulk", version=2)
def crawl_again(steps: Steps[str], account: str) -> Iterator[str]:
    yield account


@batched(span(5))
def counts(chunk: Chunk[int]) -> None: ...


def test_a_resumable_is_a_real_function_with_the_signature_of_its_params():
    made: object = crawl
    assert inspect.isfunction(made)
    assert not inspect.isgeneratorfunction(made)
    assert ["account", "limit"] == list(inspect.signature(crawl).parameters)
    assert ["account", "limit"] == list(inspect.signature(crawl.start).parameters)
    assert ("crawl", "Crawl.", __name__) == (crawl.__name__, crawl.__doc__, crawl.__module__)
    assert pickle.loads(pickle.dumps(crawl)) is crawl  # noqa: S301  our own bytes
    assert f"{__name__}.crawl" == crawl.name
    assert ["steps", "account", "limit"] == list(inspect.signature(crawl.function).parameters)


def test_its_options_are_those_of_a_job():
    options = JOBS["tests.crawl_by_another_name"].options
    assert (5.0, 50.0, "bulk", 2, 60.0) == (
        options.lease,
        options.chunk_timeout,
        options.queue,
        options.version,
        options.slice_time,
    )


def test_the_command_line_reads_its_params_by_their_types():
    assert {"account": str, "limit": int} == param_types(JOBS[crawl.name])


async def _coroutine(steps: Steps[str]) -> None: ...


async def _async_generator(steps: Steps[str]) -> AsyncIterator[str]:
    yield ""


def _plain(steps: Steps[str]) -> None: ...


def _without_steps() -> Iterator[str]:
    yield ""


def _with_a_param_first(account: str) -> Iterator[str]:
    yield account


def _with_a_chunk(chunk: Chunk[int]) -> Iterator[str]:
    yield ""


def _with_any_params(steps: Steps[str], *accounts: str) -> Iterator[str]:
    yield ""


class _Callable:
    def __call__(self, steps: Steps[str]) -> Iterator[str]:
        yield ""


@pytest.mark.parametrize(
    ("function", "mend"),
    [
        (_coroutine, "asyncio.run"),
        (_async_generator, "asyncio.run"),
        (_plain, "`yield cursor` in it"),
        (_without_steps, "Steps is its first parameter"),
        (_with_a_param_first, "the params behind it: write def crawl"),
        (_with_a_chunk, "it gets a Steps there"),
        (_with_any_params, "write each of them out"),
        (_Callable(), "plain generator function"),
        (42, "plain generator function"),
        (span(5), "a resumable has none"),
        (counts, "is a job already"),
        (crawl, "is a job already"),
    ],
)
def test_what_cannot_be_resumed_is_refused_with_the_right_form(function: Any, mend: str):
    with pytest.raises(InvalidJob, match=mend):
        resumable(function)
    with pytest.raises(InvalidJob, match=mend):
        resumable(name="tests.refused")(function)
    assert "tests.refused" not in JOBS


def test_a_resumable_cannot_be_batched_over():
    made: Any = batched
    with pytest.raises(InvalidJob, match="is a job"):
        made(crawl)


@pytest.mark.parametrize(
    "options",
    [
        {"lease": 0},
        {"slice_time": -1},
        {"chunk_timeout": float("nan")},
        {"queue": ""},
        {"name": "x" * 256},
        {"retry": 3},
        {"unique": "account"},
        {"version": True},
    ],
)
def test_an_option_out_of_range_is_refused_and_named(options: dict[str, Any]):
    def fine(steps: Steps[str]) -> Iterator[str]:
        yield ""

    make: Any = resumable
    with pytest.raises(InvalidJob, match=next(iter(options))):
        make(**options)(fine)


def test_finish_must_take_the_params_too():
    def finish(finish: Finish, other: int) -> None: ...

    def fine(steps: Steps[str], account: str) -> Iterator[str]:
        yield account

    make: Any = resumable
    with pytest.raises(InvalidJob, match=r"write \(finish: Finish, account"):
        make(finish=finish)(fine)


def test_two_resumables_of_one_name_are_refused():
    def first(steps: Steps[str]) -> Iterator[str]:
        yield ""

    def second(steps: Steps[str]) -> Iterator[str]:
        yield ""

    resumable(name="tests.resumable_twice")(first)
    resumable(name="tests.resumable_twice")(first)
    with pytest.raises(DuplicateJob):
        resumable(name="tests.resumable_twice")(second)
