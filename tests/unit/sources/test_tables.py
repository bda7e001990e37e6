"""Rows by key: every row once, in order, from behind any row; and refusals that say how to mend the key."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    Column,
    DateTime,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    UniqueConstraint,
    Uuid,
    column,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    table,
    text,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from batchkit import rows
from batchkit.errors import InvalidSource
from batchkit.planning import Cursors
from batchkit.sources import Bounded, Counted, Estimate, Source


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    code: Mapped[str] = mapped_column(String(20), unique=True)
    born: Mapped[datetime | None]
    orders: Mapped[list[Order]] = relationship(back_populates="user")


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    user: Mapped[User] = relationship(back_populates="orders")


metadata = MetaData()
by_uuid = Table("by_uuid", metadata, Column("id", Uuid, primary_key=True))
by_text = Table("by_text", metadata, Column("id", String(50), primary_key=True))
# Without digits for it, MySQL keeps whole seconds.
_moment = DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")
by_time = Table("by_time", metadata, Column("id", _moment, primary_key=True))
by_decimal = Table("by_decimal", metadata, Column("id", Numeric(12, 3), primary_key=True, autoincrement=False))
pairs = Table(
    "pairs",
    metadata,
    Column("a", Integer, primary_key=True),
    Column("b", Integer, primary_key=True),
    Column("c", Integer, nullable=False),
    Column("d", Integer),
    UniqueConstraint("c", "d"),
    # MySQL has no partial indexes, and would make a whole one of it.
    Index("partly", "c", unique=True, postgresql_where=Column("d") > 5, sqlite_where=Column("d") > 5).ddl_if(
        callable_=lambda *_, dialect, **__: dialect.name != "mysql"
    ),
)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Give an engine with the tables above."""
    made = create_engine(database_url)
    metadata.create_all(made)
    Base.metadata.create_all(made)
    yield made
    made.dispose()


@contextmanager
def _reading(engine: Engine) -> Iterator[Session]:
    with engine.connect() as connection, Session(bind=connection) as session:
        yield session


def _walk(source: Source[Any], session: Session, *, limit: int) -> list[Any]:
    """Read to the end, with each cursor stored and read back as a run does."""
    cursors = Cursors(source)
    found: list[Any] = []
    stored = None
    while True:
        read = list(source.read(cursors.read(stored), limit, session))
        if not read:
            return found
        assert len(read) <= limit
        found += [item for item, _ in read]
        stored = cursors.write(read[-1][1])


_START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    ("of", "values"),
    [
        (by_uuid, [uuid.UUID(int=i * 7919 % 101) for i in range(20)]),
        (by_text, [f"k{i * 37 % 101:03}" for i in range(20)] + ["Ünï", "a'b", ""]),
        (by_time, [_START + timedelta(microseconds=i * 333_333) for i in range(20)]),
        (by_decimal, [Decimal(i * 37 % 101) / 8 for i in range(20)]),
    ],
    ids=["uuid", "text", "datetime", "decimal"],
)
@pytest.mark.filterwarnings("ignore:.*support Decimal objects natively")
def test_every_kind_of_key_is_walked_in_order_without_gaps(
    engine: Engine, of: Table, values: list[Any], *, descending: bool, limit: int
):
    with engine.begin() as tx:
        tx.execute(insert(of), [{"id": value} for value in values])
    key = of.c.id.desc() if descending else of.c.id
    with _reading(engine) as session:
        wanted = list(session.execute(select(of.c.id).order_by(key)).scalars())
        assert wanted == _walk(rows(select(of.c.id), key=key), session, limit=limit)


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"
    BLUE = "blue"


class Painted(TypeDecorator[Colour]):
    impl = EnumType(Colour)
    cache_ok = True


def _by_colour(name: str, kind: Any) -> Table:
    return Table(name, metadata, Column("colour", kind, primary_key=True), Column("id", Integer, primary_key=True))


by_colour = _by_colour("by_colour", EnumType(Colour))
by_text_of_colour = _by_colour("by_text_of_colour", EnumType(Colour, native_enum=False, length=10))
by_paint = _by_colour("by_paint", Painted())


@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("of", [by_colour, by_text_of_colour, by_paint], ids=["native", "text", "decorated"])
def test_a_key_of_words_is_walked_in_the_order_that_the_database_gives_them(
    engine: Engine, of: Table, limit: int, *, descending: bool
):
    with engine.begin() as tx:
        tx.execute(insert(of), [{"colour": colour, "id": i} for colour in Colour for i in range(3)])
    key = tuple(each.desc() if descending else each for each in (of.c.colour, of.c.id))
    source = rows(select(of.c.colour, of.c.id), key=key)
    assert isinstance(source, Bounded)
    with _reading(engine) as session:
        wanted = session.execute(select(of.c.colour, of.c.id).order_by(*key)).all()
        bounded = source.until(source.upper(session))
        assert wanted == _walk(bounded, session, limit=limit)


def test_a_key_whose_collation_ignores_case_is_walked_once(mysql_url: str):
    engine = create_engine(mysql_url)
    metadata.create_all(engine)
    words = ["b", "A", "a1", "B1", "Zz", "é", "Éa", "z", "ß", "st"]
    with engine.begin() as tx:
        tx.execute(insert(by_text), [{"id": word} for word in words])
    with _reading(engine) as session:
        for limit in (1, 2, 100):
            assert sorted(words) == sorted(_walk(rows(select(by_text.c.id), key=by_text.c.id), session, limit=limit))
    engine.dispose()


def test_chunks_of_a_composite_key_are_found_by_its_index_on_mysql(mysql_url: str):
    engine = create_engine(mysql_url)
    metadata.create_all(engine)
    with engine.begin() as tx:
        tx.execute(insert(pairs), [{"a": i // 50, "b": i % 50, "c": i} for i in range(5000)])
        tx.exec_driver_sql("ANALYZE TABLE pairs")
    with _reading(engine) as session:
        source = rows(select(pairs.c.a), key=(pairs.c.a, pairs.c.b))
        session.execute(text("FLUSH STATUS"))
        read = source.read((90, 10), 10, session)
        assert 10 == len(list(read))
        examined = dict(tuple(row) for row in session.execute(text("SHOW SESSION STATUS LIKE 'Handler_read_%'")))
        assert sum(map(int, examined.values())) < 200, examined
    engine.dispose()


def test_orm_selects_give_objects_of_the_session(engine: Engine):
    with engine.begin() as tx:
        tx.execute(insert(User), [{"id": i, "name": "n", "code": str(i)} for i in range(1, 8)])
    with _reading(engine) as session:
        users = _walk(rows(select(User), key=User.id.desc()), session, limit=3)
        assert [7, 6, 5, 4, 3, 2, 1] == [user.id for user in users]
        assert all(user in session for user in users)


def test_core_selects_of_several_columns_give_rows_with_names(engine: Engine):
    with engine.begin() as tx:
        tx.execute(insert(pairs), [{"a": 1, "b": i, "c": i} for i in range(5)])
    with _reading(engine) as session:
        found = _walk(rows(select(pairs.c.c, pairs.c.b), key=(pairs.c.a, pairs.c.b)), session, limit=2)
        assert [(i, i) for i in range(5)] == [(row.c, row.b) for row in found]


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(
    data=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=25),
    down=st.tuples(st.booleans(), st.booleans()),
    limit=st.integers(1, 6),
)
def test_composite_keys_in_all_directions_give_the_sorted_table(
    engine: Engine, data: set[tuple[int, int]], down: tuple[bool, bool], limit: int
):
    with engine.begin() as tx:
        tx.execute(delete(pairs))
        if data:
            tx.execute(insert(pairs), [{"a": a, "b": b, "c": a} for a, b in data])
    key = tuple(each.desc() if is_down else each for each, is_down in zip((pairs.c.a, pairs.c.b), down, strict=True))
    source = rows(select(pairs.c.a, pairs.c.b), key=key)
    wanted = sorted(data, key=lambda ab: tuple(-v if is_down else v for v, is_down in zip(ab, down, strict=True)))
    with _reading(engine) as session:
        assert wanted == [tuple(row) for row in _walk(source, session, limit=limit)]
        assert isinstance(source, Bounded)
        upper = source.upper(session)
        assert (wanted[-1] if wanted else None) == upper
        if wanted:
            half = source.until(wanted[len(wanted) // 2])
            assert wanted[: len(wanted) // 2 + 1] == [tuple(row) for row in _walk(half, session, limit=limit)]
            assert isinstance(half, Counted)
            assert len(wanted) // 2 + 1 == half.count(session)


def test_offset_is_never_sent(engine: Engine):
    with engine.begin() as tx:
        tx.execute(insert(User), [{"id": i, "name": "n", "code": str(i)} for i in range(1, 8)])
    sent: list[tuple[str, Any]] = []
    event.listen(engine, "before_cursor_execute", lambda *args: sent.append((args[2], args[3])))
    with _reading(engine) as session:
        _walk(rows(select(User), key=User.id), session, limit=2)
    assert sent
    # For SQLite, SQLAlchemy writes an OFFSET beside each LIMIT, whose value is 0.
    assert not [statement for statement, values in sent if "OFFSET" in statement.upper() and values[-1] != 0]


def test_a_growing_table_ends_where_it_ended_when_it_was_planned_unless_followed(engine: Engine):
    with engine.begin() as tx:
        tx.execute(insert(by_text), [{"id": f"{i:03}"} for i in range(5)])
    source = rows(select(by_text.c.id), key=by_text.c.id)
    followed = rows(select(by_text.c.id), key=by_text.c.id, follow=True)
    assert isinstance(source, Bounded)
    assert not isinstance(followed, Bounded)
    with _reading(engine) as session:
        bounded = source.until(source.upper(session))
    with engine.begin() as tx:
        tx.execute(insert(by_text), [{"id": f"{i:03}"} for i in range(5, 9)])
    with _reading(engine) as session:
        assert 5 == len(_walk(bounded, session, limit=2))
        assert 9 == len(_walk(followed, session, limit=2))


def test_collections_loaded_by_a_join_do_not_repeat_their_owner(engine: Engine):
    with engine.begin() as tx:
        tx.execute(insert(User), [{"id": i, "name": "n", "code": str(i)} for i in range(1, 4)])
        tx.execute(insert(Order), [{"id": 1 + i, "user_id": 1 + i % 3} for i in range(9)])
    with _reading(engine) as session:
        users = _walk(rows(select(User).options(joinedload(User.orders)), key=User.id), session, limit=2)
        assert [(1, 3), (2, 3), (3, 3)] == [(user.id, len(user.orders)) for user in users]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_join_that_repeats_keys_is_refused_even_where_only_the_boundary_shows_it(engine: Engine, limit: int):
    with engine.begin() as tx:
        tx.execute(insert(User), [{"id": i, "name": "n", "code": str(i)} for i in range(1, 5)])
        tx.execute(insert(Order), [{"id": i, "user_id": user} for i, user in enumerate([1, 2, 3, 3, 4], start=1)])
    source = rows(select(User.id, Order.id).join(Order, Order.user_id == User.id), key=User.id)
    with _reading(engine) as session, pytest.raises(InvalidSource, match="add the key of the joined table"):
        _walk(source, session, limit=limit)


def test_a_join_with_a_key_of_both_tables_is_walked(engine: Engine):
    with engine.begin() as tx:
        tx.execute(insert(User), [{"id": i, "name": "n", "code": str(i)} for i in range(1, 5)])
        tx.execute(insert(Order), [{"id": i, "user_id": user} for i, user in enumerate([1, 2, 3, 3, 4], start=1)])
    source = rows(select(User.id, Order.id).join(Order, Order.user_id == User.id), key=(User.id, Order.id))
    with _reading(engine) as session:
        assert 5 == len(_walk(source, session, limit=2))


def test_an_outer_join_with_null_in_the_key_is_refused(engine: Engine):
    with engine.begin() as tx:
        tx.execute(insert(User), [{"id": 1, "name": "n", "code": "1"}])
    source = rows(select(User.id, Order.id).outerjoin(Order, Order.user_id == User.id), key=(User.id, Order.id))
    with _reading(engine) as session, pytest.raises(InvalidSource, match="NULL in its key"):
        _walk(source, session, limit=2)


def test_a_count_that_takes_too_long_is_the_planners_estimate(postgres_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchkit.sources.tables.counting._COUNT_SECONDS", 0.001)
    engine = create_engine(postgres_url)
    Base.metadata.create_all(engine)
    with engine.begin() as tx:
        tx.execute(insert(User), [{"id": i, "name": "n", "code": str(i)} for i in range(5000)])
    slow = select(User.id).where(func.pg_sleep(0.01).is_not(None))
    source = rows(slow, key=User.id)
    assert isinstance(source, Counted)
    with _reading(engine) as session:
        assert isinstance(source.count(session), Estimate)
        # The transaction goes on, and with the timeout that it had.
        assert "0" == session.execute(select(func.current_setting("statement_timeout"))).scalar_one()
    engine.dispose()


def test_a_count_that_takes_mysql_too_long_is_the_planners_estimate(mysql_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchkit.sources.tables.counting._COUNT_SECONDS", 0.01)
    engine = create_engine(mysql_url)
    Base.metadata.create_all(engine)
    with engine.begin() as tx:
        tx.execute(insert(User), [{"id": i, "name": "n", "code": str(i)} for i in range(1, 5001)])
        tx.execute(insert(Order), [{"id": i, "user_id": i} for i in range(1, 101)])
        tx.exec_driver_sql("ANALYZE TABLE users, orders")
    limit = text("SELECT @@SESSION.max_statement_time")
    with _reading(engine) as session:
        session.execute(text("SET @@SESSION.max_statement_time = 17"))
        session.execute(insert(Order), [{"id": 101, "user_id": 101}])
        sleeps = func.sleep(0.01) == 0
        for slow, about in (
            (select(User.id).where(sleeps), 5000),
            (select(User.id).where(User.id < 0, sleeps), 0),
            (select(User.id).where(User.id.in_(select(Order.user_id)), sleeps), 100),
        ):
            source = rows(slow, key=User.id)
            assert isinstance(source, Counted)
            counted = source.count(session)
            assert isinstance(counted, Estimate) or not about
            assert about * 0.5 <= counted <= about * 2 + 1
            # The transaction goes on, and with the timeout that the session had.
            assert 17 == session.execute(limit).scalar_one()
        assert 101 == session.execute(select(func.count()).select_from(Order)).scalar_one()
        wrong = rows(select(User.id).where(text("nowhere = 1")), key=User.id)
        assert isinstance(wrong, Counted)
        with pytest.raises(DBAPIError, match="nowhere"):
            wrong.count(session)
        assert 17 == session.execute(limit).scalar_one()
    engine.dispose()


@pytest.mark.parametrize(
    ("make", "mend"),
    [
        (lambda: rows("SELECT 1", key=User.id), "takes a select"),
        (lambda: rows(select(User).limit(5), key=User.id), "LIMIT"),
        (lambda: rows(select(User).with_for_update(), key=User.id), "for_update=True"),
        (lambda: rows(select(User).offset(5), key=User.id), "OFFSET"),
        (lambda: rows(select(User).fetch(5), key=User.id), "FETCH"),
        (lambda: rows(select(User).order_by(User.name), key=User.id), "ORDER BY.*leave it out"),
        (lambda: rows(select(User), key=func.lower(User.name)), "not a column of a table"),
        (lambda: rows(select(User), key="id"), "not a column of a table"),
        (lambda: rows(select(User), key=User.id.label("x")), "not a column of a table"),
        (lambda: rows(select(User), key=User.born), r"may be NULL.*key=\(users.id\)"),
        (lambda: rows(select(User), key=(User.born, User.id)), "may be NULL"),
        (lambda: rows(select(User), key=User.name), r"not unique.*key=\(users.name, users.id\)"),
        (lambda: rows(select(pairs.c.a), key=pairs.c.a), r"not unique.*key=\(pairs.a, pairs.b\)"),
        (lambda: rows(select(pairs.c.a), key=pairs.c.c), "not unique"),
        (lambda: rows(select(table("t", column("id"))), key=column("id")), "not a column of a table"),
        (lambda: rows(select(User), key=()), "the key is empty"),
    ],
)
def test_what_cannot_be_walked_without_skipping_is_refused_with_the_mend(make: Any, mend: str):
    with pytest.raises(InvalidSource, match=mend):
        make()


@pytest.mark.parametrize("key", [User.id, User.code, (User.name, User.id), User.code.desc()])
def test_keys_that_are_unique_and_never_null_are_taken(key: Any):
    assert isinstance(rows(select(User), key=key), Source)


def test_the_identity_names_key_direction_and_type():
    source: Any = rows(select(User), key=(User.name.desc(), User.id))
    assert {
        "kind": "rows",
        "key": ["users.name desc", "users.id asc"],
        "types": ["str", "int"],
    } == source.identity()


def _spelled_otherwise() -> list[tuple[Table, list[str]]]:
    """Give tables whose keys are stored in other spellings than SQLAlchemy's, as raw SQL and defaults store them."""
    large = 2**53
    return [
        (by_time, [f"'2026-11-23 18:33:{i:02}'" for i in range(10)] + ["'2026-11-23 18:33:09.500'"]),
        (by_uuid, [f"'00000000-0000-0000-0000-0000000000{i:02}'" for i in range(10)]),
        (by_decimal, [str(large + i * 2) for i in range(10)] + ["3.123456789012", "3.123456789013"]),
    ]


@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.filterwarnings("ignore:.*support Decimal objects natively")
def test_keys_that_are_spelled_in_another_way_are_walked_without_gaps_or_repeats(
    sqlite_url: str, limit: int, *, descending: bool
):
    engine = create_engine(sqlite_url)
    metadata.create_all(engine)
    for of, literals in _spelled_otherwise():
        with engine.begin() as tx:
            for literal in literals:
                tx.exec_driver_sql(f"INSERT INTO {of.name} VALUES ({literal})")
        source: Any = rows(select(of.c.id), key=of.c.id.desc() if descending else of.c.id)
        with _reading(engine) as session:
            bounded = source.until(source.upper(session))
            assert len(literals) == bounded.count(session)
            assert len(literals) == len(_walk(bounded, session, limit=limit))
    engine.dispose()


@pytest.mark.parametrize("count", [1, 2])
def test_rows_are_as_wide_as_their_select_though_the_key_is_read_too(engine: Engine, count: int):
    with engine.begin() as tx:
        tx.execute(insert(pairs), [{"a": 1, "b": i, "c": i} for i in range(5)])
        tx.execute(insert(User), [{"id": 1, "name": "n", "code": "1"}])
    with _reading(engine) as session:
        for row in _walk(rows(select(pairs.c.c, pairs.c.d), key=(pairs.c.a, pairs.c.b)), session, limit=count):
            c, d = row
            assert (c, d) == (row.c, row.d)
        ((user, name),) = _walk(rows(select(User, User.name), key=User.code), session, limit=count)
        assert (1, "n") == (user.id, name)


def test_floating_point_keys_are_refused():
    floats = Table("floats", MetaData(), Column("id", Float, primary_key=True))
    with pytest.raises(InvalidSource, match="floating-point"):
        rows(select(floats.c.id), key=floats.c.id)
