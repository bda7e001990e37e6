"""
A Flask app with SQLAlchemy and RQ whose long job survives deploys; README.md beside it has the commands.

The web process starts a run and shows how far it is. Stock RQ workers work it, and `batchkit supervise` looks after
runs whose workers died.
"""

from __future__ import annotations

import os
import time

from flask import Flask
from flask.typing import ResponseReturnValue
from redis import Redis
from sqlalchemy import create_engine, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from batchkit import BatchKit, Chunk, Source, batched, rows
from batchkit.queues import RQQueue

engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///shop.db"))
app = Flask(__name__)
redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
kit = BatchKit(engine, queue=RQQueue(redis))


class Base(DeclarativeBase):
    """Base of the app's tables."""


class User(Base):
    """Somebody with an e-mail address."""

    __tablename__ = "shop_user"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


def users() -> Source[User]:
    """Give every user, by key."""
    return rows(select(User), key=User.id)


@batched(users, chunk_size=500, lease=10)
def normalize_emails(chunk: Chunk[User]) -> None:
    """Lower-case the addresses of a chunk of users."""
    for user in chunk:
        user.email = user.email.lower()
    time.sleep(0.05)  # so that there is time to deploy


@app.cli.command("prepare")
def prepare() -> None:
    """Make the tables, and 100,000 users."""
    kit.migrate()
    Base.metadata.create_all(engine)
    with engine.begin() as tx:
        if not tx.execute(select(func.count()).select_from(User)).scalar_one():
            tx.execute(insert(User), [{"email": f"User{number}@Example.COM"} for number in range(100_000)])


@app.post("/normalize")
def start() -> ResponseReturnValue:
    """Start a run, and give its id."""
    return {"run": normalize_emails.start().id}, 202


@app.get("/runs/<run_id>")
def show(run_id: str) -> ResponseReturnValue:
    """Show how far a run is."""
    run = kit.run(run_id)
    progress = run.progress
    return {
        "state": run.state,
        "done": progress.done,
        "total": progress.total,
        "interruptions": progress.interruptions,
    }
