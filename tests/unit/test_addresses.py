"""Addresses of databases are shown without their secrets, wherever those are."""

from __future__ import annotations

import pytest
from sqlalchemy import make_url

from batchkit.errors import InvalidDatabase
from batchkit.store import Database
from batchkit.store.addresses import shown


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("sqlite:///here.db", "sqlite:///here.db"),
        ("postgresql+psycopg://app:hunter2@db/prod", "postgresql+psycopg://app:***@db/prod"),
        ("postgresql+psycopg://app@db/prod?password=hunter2", "postgresql+psycopg://app@db/prod?password=***"),
        (
            "postgresql+psycopg://db/prod?sslmode=require&sslPassword=hunter2&user=app",
            "postgresql+psycopg://db/prod?sslPassword=***&sslmode=require&user=app",
        ),
        ("mysql+pymysql://db/prod?passwd=hunter2&passwd=hunter2", "mysql+pymysql://db/prod?passwd=***"),
    ],
)
def test_secrets_are_masked_and_nothing_else(address: str, expected: str):
    url = make_url(address)
    assert expected == shown(url)
    assert make_url(address) == url


def test_a_database_shows_itself_so():
    database = Database("postgresql+psycopg://app:hunter2@db/prod?password=hunter2")
    assert "hunter2" not in database.url
    assert "app" in database.url


@pytest.mark.parametrize(
    "text",
    [
        "postgresql:/app:hunter2@db/prod",
        "app:hunter2@db",
        "postgresql:/app:hunter2/x@y@db",
        "host=db password=hunter2",
        "db?sslpassword=hunter2",
    ],
)
def test_what_is_no_address_is_shown_without_secrets_too(text: str):
    with pytest.raises(InvalidDatabase, match=r"\*\*\*.* is not a database URL") as refused:
        Database(text)
    assert "hunter2" not in str(refused.value)
    assert "db" in str(refused.value)
