"""
Copy the accounts and charges of a payment provider into the database, page by page: `python -m examples.crawl`.

Kill it at any moment, with Ctrl-C or with `kill -9`, and call it again: it goes on at the page that was not committed.
The provider stands in this file, so that no network is needed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from batchkit import BatchKit, Steps, resumable
from batchkit.cli.working import run_with_bar

DATABASE_URL = os.environ.get("BATCHKIT_DATABASE_URL", "sqlite:///batchkit-example.db")
ACCOUNTS = 40
PAGES = 5
PER_PAGE = 20

engine = create_engine(DATABASE_URL)
kit = BatchKit(DATABASE_URL)


class Base(DeclarativeBase):
    """The tables of this example."""


class Account(Base):
    """A customer of the provider's."""

    __tablename__ = "example_account"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Charge(Base):
    """Something that an account has paid."""

    __tablename__ = "example_charge"

    id: Mapped[int] = mapped_column(primary_key=True)
    crawl: Mapped[int]
    account_id: Mapped[int]
    cents: Mapped[int]


def list_accounts(token: int | None) -> tuple[list[Account], int | None]:
    """Ask the provider for a page of accounts, and the token of the next page."""
    first = token or 1
    behind = min(first + PER_PAGE, ACCOUNTS + 1)
    page = [Account(id=number, name=f"Account {number}") for number in range(first, behind)]
    return page, behind if behind <= ACCOUNTS else None


def list_charges(account: int, token: int | None, *, crawl_number: int) -> tuple[list[Charge], int | None]:
    """Ask the provider for a page of an account's charges, and the token of the next page."""
    page = token or 1
    charges = [Charge(crawl=crawl_number, account_id=account, cents=100 * page + n) for n in range(PER_PAGE)]
    return charges, page + 1 if page < PAGES else None


# The cursor says the phase, and where in it: together all that the function needs to go on.
Place = tuple[str, int, int | None]


@resumable(lease=5)
def crawl(steps: Steps[Place], number: int) -> Iterator[Place]:
    """Copy all accounts, then the charges of each."""
    phase, account, token = steps.cursor or ("accounts", 0, None)
    while phase == "accounts":
        accounts, token = list_accounts(token)
        for each in accounts:
            steps.session.merge(each)
        phase = "accounts" if token else "charges"
        # What was written since the last yield commits with this.
        yield phase, 0, token
    while account := _account_at(steps, account, token):
        charges, token = list_charges(account, token, crawl_number=number)
        steps.session.add_all(charges)
        yield phase, account, token


def _account_at(steps: Steps[Place], account: int, token: int | None) -> int:
    """Give the account itself while it has pages left, else the next one; 0 behind the last."""
    if token is not None:
        return account
    return steps.session.scalar(select(func.min(Account.id)).where(Account.id > account)) or 0


def main() -> int:
    """Work one run to its end, then count what it copied."""
    kit.migrate()
    Base.metadata.create_all(engine)
    unfinished = kit.runs(job=crawl.name, state=["queued", "running", "failed"], limit=1)
    with Session(engine) as session:
        number = (session.scalar(select(func.max(Charge.crawl))) or 0) + 1
    run = unfinished[0] if unfinished else crawl.start(number)
    run = run.resume() if run.state == "failed" else run
    code = run_with_bar(kit, run, again="python -m examples.crawl")
    with Session(engine) as session:
        count = session.scalar(select(func.count()).select_from(Charge).where(Charge.crawl == run.params["number"]))
    print(f"the database says: {count:,} charges, of {ACCOUNTS * PAGES * PER_PAGE:,}")
    return code


if __name__ == "__main__":
    sys.exit(main())
