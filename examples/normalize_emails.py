"""
Lower-case the e-mail addresses of 200,000 users: `python -m examples.normalize_emails`.

Kill it at any moment, with Ctrl-C or with `kill -9`, and call it again: it goes on behind the last committed chunk.
The users are in an SQLite file, or in the database that BATCHKIT_DATABASE_URL names.
"""

from __future__ import annotations

import os
import sys

from sqlalchemy import create_engine, func, insert, inspect, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from batchkit import BatchKit, Chunk, Run, Source, batched, rows
from batchkit.cli.working import run_with_bar

DATABASE_URL = os.environ.get("BATCHKIT_DATABASE_URL", "sqlite:///batchkit-example.db")
DOMAIN = "example.com"
USERS = 200_000

engine = create_engine(DATABASE_URL)
kit = BatchKit(DATABASE_URL)


class Base(DeclarativeBase):
    """The tables of this example."""


class User(Base):
    """Somebody with an e-mail address."""

    __tablename__ = "example_user"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    domain: Mapped[str]


def shouting_users(domain: str) -> Source[User]:
    """Say where the items come from: all users of a domain, walked by their primary key."""
    return rows(select(User).where(User.domain == domain), key=User.id)


# A killed worker's run is taken over when its lease has run out: after 5 seconds here, after 60 by default.
@batched(shouting_users, chunk_size=500, lease=5)
def normalize_emails(chunk: Chunk[User], domain: str) -> None:  # noqa: ARG001  the source needs it
    """Lower-case the addresses of a chunk of users."""
    # Everything in here and the checkpoint commit together, or not at all.
    for user in chunk:
        user.email = user.email.lower()


def prepare() -> None:
    """Make the tables and the users where they are not there yet."""
    kit.migrate()
    if not inspect(engine).has_table(User.__tablename__):
        print(f"making {USERS:,} users in {kit.database_url} ...")
        Base.metadata.create_all(engine)
        users = [{"email": f"User.{n}@{DOMAIN}".upper(), "domain": DOMAIN} for n in range(1, USERS + 1)]
        with engine.begin() as connection:
            connection.execute(insert(User), users)


def count_users() -> tuple[int, int]:
    """Count the users whose address is normalised, and the others."""
    is_normalised = User.email == func.lower(User.email)
    with Session(engine) as session:
        total = session.scalar(select(func.count()).select_from(User)) or 0
        normalised = session.scalar(select(func.count()).select_from(User).where(is_normalised)) or 0
    return normalised, total - normalised


def unfinished_or_new_run() -> Run:
    """Give the run that was not finished last time, else a new one."""
    unfinished = kit.runs(job=normalize_emails.name, state=["queued", "running", "paused", "failed"], limit=1)
    if unfinished:
        run = unfinished[0]
        print(f"going on with run {run.id}, of which {run.progress.done:,} items are done")
        return run.resume() if run.state in {"paused", "failed"} else run
    if count_users()[1] == 0:
        print("nobody shouts any more: making all addresses upper-case again")
        with engine.begin() as connection:
            connection.execute(update(User).values(email=func.upper(User.email)))
    return normalize_emails.start(domain=DOMAIN)


def main() -> int:
    """Work one run to its end, then look at what came of it."""
    prepare()
    code = run_with_bar(kit, unfinished_or_new_run(), again="python -m examples.normalize_emails")
    normalised, shouting = count_users()
    print(f"the database says: {normalised:,} users are normalised, {shouting:,} are not")
    return code


if __name__ == "__main__":
    sys.exit(main())
