"""
Wrong uses, each of which both type checkers must find.

The comments silence them; a comment that silences nothing is an error itself, to mypy and to pyright.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from batchkit import (
    BatchKit,
    Chunk,
    Finish,
    Steps,
    Throttle,
    batched,
    nested,
    pages,
    parquet_rows,
    resumable,
    rows,
    span,
    stream,
)
from batchkit.sources import Source
from batchkit.testing import interrupt_after


class Base(DeclarativeBase):
    """Tables."""


class User(Base):
    """A table."""

    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    domain: Mapped[str]


def users(domain: str) -> Source[User]:
    """Take users."""
    return rows(select(User).where(User.domain == domain), key=User.id)


@batched(users)
def good(chunk: Chunk[User], domain: str) -> None:
    """Be right."""


# A param that is missing, unknown, or of another type.
good.start()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
good.start(name="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
good.start(domain=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
good(domain=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
good.delay("x", "y")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
good.using(limit=5).start(domain=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
good.using(limit=5).start()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
good.using(key="k").delay(name="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

interrupt_after(1, good, domain=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Terms that are unknown, or of another type.
good.using(limit="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
good.using(if_active="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
good.using(session="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
good.using(dry=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# Items of another type than the source gives.
@batched(users)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def other_items(chunk: Chunk[int], domain: str) -> None:
    """Take numbers."""


@batched(span(10))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def other_items_of_a_source(chunk: Chunk[str]) -> None:
    """Take text."""


def page(token: str | None) -> tuple[list[float], str | None]:
    """Give a page."""
    return [1.5], token


@batched(pages(page))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def other_items_of_pages(chunk: Chunk[str]) -> None:
    """Take text."""


@batched(stream(lambda: iter([1])))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def other_items_of_a_stream(chunk: Chunk[str]) -> None:
    """Take text."""


@batched(nested(span(3), lambda _: span(3)))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def inner_items_alone(chunk: Chunk[int]) -> None:
    """Take numbers that are no pairs."""


@batched(parquet_rows("x"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def tuples_of_a_file(chunk: Chunk[tuple[int, str]]) -> None:
    """Take tuples."""


def no_page(token: str | None) -> list[float]:
    """Give no token."""
    return [1.5] if token else []


# What gives no page, no iterable and no source.
pages(no_page)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
stream(lambda: 5)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
nested(span(3), no_page)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Other params than the source's.
@batched(users)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def other_param(chunk: Chunk[User], name: int) -> None:
    """Take a name."""


@batched(users)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def no_param(chunk: Chunk[User]) -> None:
    """Take nothing."""


def wrong_finish(finish: Finish, domain: int) -> None:
    """Finish."""


# A finish of other params, an option of another type, and what is no source.
batched(users, finish=wrong_finish)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
batched(users, chunk_size="5")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
batched(users, chunksize=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
batched([1, 2, 3])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
batched(users, throttle=100)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
Throttle(rate="fast")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
BatchKit(hooks=[len])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
BatchKit(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# A function of a chunk where one of an item is wanted, and of an item of another type.
@batched.each(users)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def each_chunk(chunk: Chunk[User], domain: str) -> None:
    """Take a chunk."""


@batched.each(users)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def each_number(number: int, domain: str) -> None:
    """Take a number."""


@resumable
def crawl(steps: Steps[str], account: str) -> Iterator[str]:
    """Be right."""
    yield account


crawl.start(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
crawl.start()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# A cursor of another type than the steps', no steps, no generator, and an option that only chunks have.
@resumable  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
def other_cursor(steps: Steps[str]) -> Iterator[int]:
    """Yield a number."""
    yield 1


@resumable()  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
def other_cursor_with_options(steps: Steps[str]) -> Iterator[int]:
    """Yield a number."""
    yield 1


@resumable  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def no_steps(account: str) -> Iterator[str]:
    """Take a param first."""
    yield account


@resumable  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def no_generator(steps: Steps[str]) -> None:
    """Yield nothing."""


@resumable(finish=wrong_finish)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def other_finish(steps: Steps[str], domain: str) -> Iterator[str]:
    """Have a finish of other params."""
    yield domain


resumable(chunk_size=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
