"""Pairs of outer and inner items: each once, from behind any of them, with the outer item of that moment."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import DateTime, ForeignKey, create_engine, delete, event, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from batchkit import csv_rows, items, nested, pages, rows, span
from batchkit.errors import InvalidSource
from batchkit.planning import Cursors, read_whatever_it_takes
from batchkit.sources import Bounded, Continued, NotFetched, Source

NO_SESSION = cast("Session", None)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    born: Mapped[datetime] = mapped_column(DateTime, primary_key=True)
    orders: Mapped[list[Order]] = relationship(order_by="Order.id")


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_born: Mapped[datetime] = mapped_column(ForeignKey(User.born))


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class ByColour:
    """A source with cursors that JSON lacks, which it writes itself."""

    def __init__(self, *names: str) -> None:
        self._colours = [Colour[name] for name in names]

    def read(self, after: Colour | None, limit: int, session: Session) -> list[tuple[str, Colour]]:
        begin = 0 if after is None else self._colours.index(after) + 1
        return [(colour.name, colour) for colour in self._colours[begin : begin + limit]]

    def encode(self, cursor: Colour) -> int:
        return cursor.value

    def decode(self, stored: Any) -> Colour:
        return Colour(stored)


def _walk(make: Callable[[], Source[Any]], session: Session = NO_SESSION, *, limit: int) -> list[Any]:
    """Read to the end with sources that *make* gives, each cursor stored and read back as a run does."""
    found: list[Any] = []
    stored = None
    while True:
        source = make()
        cursors = Cursors(source)
        read = list(read_whatever_it_takes(source, cursors.read(stored), limit=limit, session=session))
        if not read:
            return found
        assert len(read) <= limit
        found += [item for item, _ in read]
        stored = cursors.write(read[-1][1])


@given(
    sizes=st.lists(st.integers(0, 5), max_size=10),
    limit=st.integers(1, 7),
    is_one_slice=st.booleans(),
    is_paged=st.booleans(),
)
def test_each_pair_comes_once_in_one_slice_and_in_many(
    sizes: list[int], limit: int, *, is_one_slice: bool, is_paged: bool
):
    def fetch(size: int, token: int | None) -> tuple[list[int], int | None]:
        begin = token or 0
        return list(range(begin, min(begin + 2, size))), begin + 2 if begin + 2 < size else None

    def inner(size: int) -> Source[int]:
        return pages(lambda token: fetch(size, token)) if is_paged else span(size)

    def make() -> Source[Any]:
        return nested(items(sizes), inner)

    source = make()
    wanted = [(size, number) for size in sizes for number in range(size)]
    assert wanted == _walk(lambda: source if is_one_slice else make(), limit=limit)


def test_three_deep():
    source = lambda: nested(nested(span(3), span), lambda pair: items([pair] * (pair[1] + 1)))  # noqa: E731
    wanted = [((a, b), (a, b)) for a in range(3) for b in range(a) for _ in range(b + 1)]
    for limit in (1, 2, 100):
        assert wanted == _walk(source, limit=limit)


def test_cursors_that_json_lacks_come_back(tmp_path: Path):
    names = {"RED": "one", "BLUE": "two"}
    for name in names.values():
        (tmp_path / name).write_text(f"a\n{name}\n\n{name}!\n")
    source = lambda: nested(ByColour("BLUE", "RED"), lambda name: csv_rows(tmp_path / names[name]))  # noqa: E731
    wanted = [("BLUE", {"a": "two"}), ("BLUE", {"a": "two!"}), ("RED", {"a": "one"}), ("RED", {"a": "one!"})]
    assert wanted == _walk(source, limit=1)
    assert wanted == _walk(source, limit=3)
    turned = lambda: nested(items(["x", "y"]), lambda _: ByColour("RED", "BLUE"))  # noqa: E731
    assert [("x", "RED"), ("x", "BLUE"), ("y", "RED"), ("y", "BLUE")] == _walk(turned, limit=1)


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    """Give a session on each database, with users of whom some have orders."""
    engine = create_engine(database_url)
    Base.metadata.create_all(engine)
    with engine.begin() as tx:
        tx.execute(insert(User), [{"born": _day(day)} for day in range(1, 7)])
        orders = [(1, 1), (1, 2), (3, 3), (4, 4), (4, 5), (4, 6), (6, 7)]
        tx.execute(insert(Order), [{"id": number, "user_born": _day(day)} for day, number in orders])
    with Session(engine) as made:
        yield made
    engine.dispose()


def _day(day: int) -> datetime:
    return datetime(2026, 1, day, 12, 30, tzinfo=timezone.utc).replace(tzinfo=None)


def _orders(user: User) -> Source[Order]:
    return rows(select(Order).where(Order.user_born == user.born), key=Order.id)


def _users_orders() -> Source[tuple[User, Order]]:
    return nested(rows(select(User), key=User.born), _orders)


_WANTED = [(1, 1), (1, 2), (3, 3), (4, 4), (4, 5), (4, 6), (6, 7)]


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("inner", [_orders, lambda user: items(user.orders)], ids=["rows", "relationship"])
def test_rows_in_rows_of_one_session(session: Session, limit: int, inner: Any):
    source = nested(rows(select(User), key=User.born), inner)
    found = _walk(lambda: source, session, limit=limit)
    assert _WANTED == [(user.born.day, order.id) for user, order in found]
    assert all(each in session for pair in found for each in pair)


def test_an_outer_row_that_was_written_between_two_others_meanwhile_misleads_nobody(session: Session):
    pairs = list(_users_orders().read(None, 4, session))
    assert (4, 4) == (pairs[-1][0][0].born.day, pairs[-1][0][1].id)
    session.execute(insert(User), [{"born": _day(3).replace(hour=20)}])
    session.execute(insert(Order), [{"id": 8, "user_born": _day(3).replace(hour=20)}])
    assert [5, 6, 7] == [order.id for (_, order), _ in _users_orders().read(pairs[-1][1], 10, session)]


def test_an_outer_row_that_is_gone_takes_its_inner_ones_with_it_and_no_others(session: Session):
    after = list(_users_orders().read(None, 4, session))[-1][1]
    session.execute(delete(Order).where(Order.user_born == _day(4)))
    session.execute(delete(User).where(User.born == _day(4)))
    assert [7] == [order.id for (_, order), _ in _users_orders().read(after, 10, session)]


def test_outer_rows_are_bounded_and_those_added_behind_the_end_are_left_alone(session: Session):
    source = _users_orders()
    assert isinstance(source, Bounded)
    upper = Cursors(source).read(Cursors(source).write(source.upper(session)))
    session.execute(insert(User), [{"born": _day(9)}])
    session.execute(insert(Order), [{"id": 9, "user_born": _day(9)}])
    assert 7 == len(_walk(lambda: source.until(upper), session, limit=3))
    session.execute(delete(Order))
    session.execute(delete(User))
    assert source.upper(session) is None
    assert not isinstance(nested(ByColour(), lambda _: span(3)), Bounded)


def test_small_inner_sources_do_not_cost_a_query_of_the_outer_one_each(sqlite_url: str):
    engine = create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.execute(insert(User), [{"born": _day(1).replace(minute=number)} for number in range(60)])
        statements: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
        source = nested(rows(select(User), key=User.born), lambda _: items(["one"]))
        assert 60 == len(list(source.read(None, 100, session)))
    assert len(statements) <= 8
    engine.dispose()


def test_a_file_that_was_changed_while_an_outer_item_is_worked_is_refused(tmp_path: Path):
    path = tmp_path / "x"
    path.write_text("a\n1\n2\n3\n")
    source = lambda: nested(items([path]), csv_rows)  # noqa: E731
    after = list(source().read(None, 1, NO_SESSION))[-1][1]
    path.write_text("a\n9\n2\n3\n")
    with pytest.raises(InvalidSource, match="is another than the one that was begun, or its content was changed"):
        source().read(after, 1, NO_SESSION)
    path.write_text("a\n1\n2\n3\n")
    assert [{"a": "2"}, {"a": "3"}] == [item for (_, item), _ in source().read(after, 5, NO_SESSION)]


def test_an_inner_source_of_another_kind_is_refused():
    after = list(nested(span(3), lambda _: span(5)).read(None, 2, NO_SESSION))[-1][1]
    with pytest.raises(InvalidSource, match="is another than the one that was begun"):
        nested(span(3), lambda _: span(5, 10)).read(after, 1, NO_SESSION)


def test_an_inner_source_that_asks_others_is_read_only_after_it_has_fetched():
    fetched: list[Any] = []

    def inner(number: int) -> Source[int]:
        def fetch(_: int | None) -> tuple[list[int], int | None]:
            fetched.append(number)
            return [number * 10], None

        return pages(fetch)

    source: Any = nested(span(2), inner)
    with pytest.raises(NotFetched):
        source.read(None, 5, NO_SESSION)
    assert [] == fetched
    source.prefetch(None, 5)
    assert [0] == fetched
    ((pair, after),) = source.read(None, 5, NO_SESSION)
    assert ((0, 0), [0]) == (pair, fetched)
    source.prefetch(after, 5)
    with pytest.raises(NotFetched):
        source.read(after, 5, NO_SESSION)
    source.prefetch(after, 5)
    assert [0, 1] == fetched
    assert [(1, 10)] == [pair for pair, _ in source.read(after, 5, NO_SESSION)]


def test_what_is_no_source_or_no_function_is_refused():
    for wrong in (([1], span), (span(3), span(3)), (span(3), None)):
        with pytest.raises(InvalidSource, match="write nested"):
            nested(*cast("Any", wrong))
    with pytest.raises(InvalidSource, match="gave 5 for 0, which is no source"):
        nested(span(3), cast("Any", lambda _: 5)).read(None, 1, NO_SESSION)


@pytest.mark.parametrize("after", [3, [1, 2, 3], [1, 2, 3, 4]])
def test_what_is_no_cursor_is_refused(after: Any):
    source = nested(span(3), span)
    assert isinstance(source, Continued)
    with pytest.raises(InvalidSource, match=r"is not a cursor of nested\(\)"):
        source.behind(after)


def test_a_beginning_is_left_out():
    source: Any = nested(span(4), span)
    pairs = list(source.read(None, 100, NO_SESSION))
    behind = source.behind(pairs[2][1]).anew()
    assert [pair for pair, _ in pairs[3:]] == [pair for pair, _ in behind.read(None, 100, NO_SESSION)]
