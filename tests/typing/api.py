"""The public face as a user writes it. It is checked by type checkers, strictly, and never run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from tenacity import Retrying, stop_after_attempt
from typing_extensions import assert_type

from batchkit import (
    Adaptive,
    BatchKit,
    Chunk,
    Failure,
    Finish,
    Job,
    Progress,
    ResumableJob,
    Run,
    RunState,
    Steps,
    Throttle,
    batched,
    csv_rows,
    current_session,
    items,
    json_lines,
    nested,
    pages,
    parquet_rows,
    resumable,
    rows,
    span,
    stream,
)
from batchkit.holds import HoldOff, dead_tuples, long_transactions, replica_lag
from batchkit.hooks import RunEvent, RunHook
from batchkit.outputs import csv_file, json_lines_file, publish
from batchkit.promises import Delivery
from batchkit.queues import InlineQueue, LocalQueue
from batchkit.sources import Source
from batchkit.testing import CrashTest, crash_test, go_on, interrupt_after, restart_after_every_chunk, run_inline


class Base(DeclarativeBase):
    """Tables."""


class User(Base):
    """A table."""

    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    domain: Mapped[str]


kit = BatchKit("sqlite:///app.db", queue=LocalQueue(processes=2), schema=None)
inline = BatchKit(queue=InlineQueue(), purge_older_than=timedelta(days=90))


# rows() gives what the select gives, in SQLAlchemy 2.0 and 2.1 alike.
assert_type(rows(select(User), key=User.id), Source[User])
assert_type(rows(select(User.email), key=User.id), Source[str])
assert_type(rows(select(User), key=(User.domain.desc(), User.id), follow=True), Source[User])
assert_type(items(["a", "b"]), Source[str])
assert_type(span(0, 10), Source[int])
assert_type(csv_rows(Path("x.csv")), Source[dict[str, str]])
assert_type(json_lines("s3://bucket/x", storage_options={"anon": True}), Source[Any])
assert_type(parquet_rows("x.parquet", columns=["id"]), Source[dict[str, Any]])
assert_type(stream(lambda: iter(["a"])), Source[str])
assert_type(nested(span(3), lambda number: items(["a"] * number)), Source[tuple[int, str]])
assert_type(nested(rows(select(User), key=User.id), lambda user: items([user.email])), Source[tuple[User, str]])


def page(token: str | None) -> tuple[list[float], str | None]:
    """Give a page."""
    return [1.5], None if token else "next"


assert_type(pages(page), Source[float])


@batched(nested(span(3), lambda _: pages(page)))
def take_pairs(chunk: Chunk[tuple[int, float]]) -> None:
    """Take pairs."""
    for number, amount in chunk:
        assert_type(number, int)
        assert_type(amount, float)


def users(domain: str, limit: int = 10) -> Source[User]:
    """Take users."""
    return rows(select(User).where(User.domain == domain), key=User.id)


def report(finish: Finish, domain: str, limit: int = 10) -> dict[str, int]:
    """Finish."""
    assert_type(finish.session, Session)
    assert_type(finish.carries, Sequence[dict[str, object]])
    return {domain: finish.done + limit}


@batched(users, chunk_size=500, lease=timedelta(minutes=1), slice_time=30, queue="bulk", unique=True, finish=report)
def normalize(chunk: Chunk[User], domain: str, limit: int = 10) -> None:
    """Change users."""
    for user in chunk:
        assert_type(user, User)
        user.email = user.email.lower()[:limit] + domain
    assert_type(chunk[0], User)
    assert_type(chunk[1:], Sequence[User])
    assert_type(len(chunk), int)
    assert_type(chunk.session, Session)
    assert_type(chunk.connection, Connection)
    assert_type(chunk.carry, dict[str, object])
    assert_type(chunk.should_stop, bool)


assert_type(normalize.start("example.com"), Run)
assert_type(normalize.start(domain="example.com", limit=5), Run)
assert_type(normalize.delay(domain="example.com"), Run)
assert_type(normalize(domain="example.com"), Run)
assert_type(normalize.name, str)
with Session() as session:
    once = normalize.using(session=session, key="2026-11", queue="bulk", if_active="return")
    assert_type(once.start("example.com"), Run)
    assert_type(once.delay(domain="example.com", limit=5), Run)
assert_type(normalize.using(partitions=8, max_workers=4).start("example.com").max_workers, int | None)
assert_type(normalize.using(limit=100, dry_run=True, after=5).start(domain="example.com").was_joined, bool)
assert_type(normalize.using(session=scoped_session(sessionmaker())).start(domain="x").is_dry_run, bool)


@batched(span(0, 1000), delivery="at-most-once")
def count(chunk: Chunk[int]) -> None:
    """Count."""
    assert_type(sum(chunk), int)


assert_type(count.start(), Run)
any_job: Job[[], int] = count
plain: Callable[[Chunk[int]], object] = count.function


class Letters:
    """A source of one's own needs read() and no more."""

    def read(self, after: str | None, limit: int, session: Session) -> list[tuple[str, str]]:
        """Read."""
        return [("a", "a")]


@batched(Letters())
def spell(chunk: Chunk[str]) -> None:
    """Spell."""
    assert_type(chunk[0], str)


run = kit.run("01")
assert_type(run.delivery, Delivery)
assert_type(run.progress.in_doubt, int)
assert_type(run.retry_failures(in_doubt=True), Run)
assert_type(run.progress, Progress)
assert_type(run.progress.percent, "float | None")
assert_type(run.state, RunState)
assert_type(run.wait(timeout=5).pause().resume().cancel().rerun(), Run)
assert_type(kit.runs(job="x", state="failed", limit=5), list[Run])
assert_type(kit.runs(state=[RunState.QUEUED, "running"]), list[Run])


@batched.each(users, max_failures=0.01, describe_item=lambda user: user.id)
def greet(user: User, domain: str, limit: int = 10) -> None:
    """Greet a user."""
    assert_type(user, User)
    assert_type(current_session(), Session)


assert_type(greet.start("example.com", limit=3), Run)
assert_type(greet.start("example.com").failures(), Sequence[Failure])
greet.function(User(), "example.com")


@batched.each(span(3))
def count_up(number: int) -> None:
    """Take no params."""


count_up.start()


@batched(
    users,
    chunk_size=Adaptive(target=timedelta(seconds=2), maximum=500),
    retry=Retrying(stop=stop_after_attempt(3)),
    max_failures=10,
)
def charge(chunk: Chunk[User], domain: str, limit: int = 10) -> None:
    """Charge users."""
    for key, user in chunk.keyed():
        assert_type(key, str)
        assert_type(chunk.key(user), str)
        with chunk.protected():
            chunk.fail(user, "no card")
    chunk.after_commit(lambda: None)


def night_only(connection: Connection) -> float | None:
    """Hold off by day."""
    return 60.0 if connection.closed else None


def is_busy() -> HoldOff | None:
    """Hold off while somebody says so."""
    return HoldOff(timedelta(minutes=1), "the shop is busy")


kind = Throttle(rate=100, hold=[replica_lag(10), long_transactions(), dead_tuples(User), night_only, is_busy], every=5)


@batched(users, throttle=kind)
def slowly(chunk: Chunk[User], domain: str, limit: int = 10) -> None:
    """Work slowly."""


@batched.each(span(3), throttle=Throttle(hold=is_busy))
def each_slowly(number: int) -> None:
    """Work slowly."""


class Pager(RunHook):
    """Pages somebody."""

    def failed(self, event: RunEvent) -> None:
        """Page."""
        assert_type(event.params, dict[str, object])
        assert_type(event.after, RunState)
        assert_type(event.progress, Progress)


BatchKit(hooks=[Pager()])
assert_type(charge.start("example.com").retry_failures(), Run)


@resumable
def crawl(steps: Steps[str], account: str, limit: int = 10) -> Generator[str, None, None]:
    """Crawl."""
    assert_type(steps.cursor, "str | None")
    assert_type(steps.session, Session)
    assert_type(steps.connection, Connection)
    assert_type(steps.carry, dict[str, object])
    assert_type(steps.should_stop, bool)
    assert_type((steps.number, steps.attempt), tuple[int, int])
    steps.count(limit)
    steps.after_commit(lambda: None)
    with steps.protected():
        yield account


assert_type(crawl.start("shop", limit=5), Run)
assert_type(crawl(account="shop"), Run)
assert_type(crawl.using(after="page-7", dry_run=True).start("shop"), Run)
generator: Callable[[Steps[str], str], Iterator[str]] = crawl.function


@resumable(name="phases", lease=timedelta(minutes=5), slice_time=30, queue="bulk", unique=True, version=2)
def phases(steps: Steps[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Walk in phases."""
    assert_type(steps.cursor, "tuple[str, int] | None")
    yield ("accounts", 1)


assert_type(phases.delay(), Run)
phases_job: ResumableJob[[], tuple[str, int]] = phases


@resumable(retry=Retrying(stop=stop_after_attempt(3)), finish=report)
def crawl_users(steps: Steps[int], domain: str, limit: int = 10) -> Iterator[int]:
    """Crawl."""
    yield limit


assert_type(crawl_users.start("example.com", limit=3), Run)


def publish_export(finish: Finish, domain: str, limit: int = 10) -> int:
    """Put a file together."""
    return publish(finish, Path("users.jsonl"))


@batched(users, finish=publish_export)
def export(chunk: Chunk[User], domain: str, limit: int = 10) -> None:
    """Export users."""
    with (
        json_lines_file(chunk, "users.jsonl", default=str) as lines,
        csv_file(chunk, "u.csv", columns=["id"]) as records,
    ):
        for user in chunk:
            lines.write({"id": user.id})
            records.write({"id": user.id})
            records.write([user.id])


assert_type(run_inline(export, "example.com", limit=3), Run)
assert_type(go_on(interrupt_after(2, export, "example.com"), chunks=1), Run)
assert_type(restart_after_every_chunk(spell), Run)
assert_type(crash_test(export, setup=lambda engine: None, params={"domain": "example.com"}), CrashTest)
