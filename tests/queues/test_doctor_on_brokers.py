"""The doctor on real brokers, and on the apps that the workers of these tests run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis
from rq.serializers import JSONSerializer

from batchkit.doctor import Finding, Level
from batchkit.doctor.broker import check_broker
from batchkit.doctor.redis import check_redis
from batchkit.doctor.rq import check_rq
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer


def checks(findings: list[Finding]) -> list[tuple[str, Level]]:
    return [(finding.check, finding.level) for finding in findings]


@pytest.fixture
def redis(redis_url: str):
    with Redis.from_url(redis_url) as connection:
        yield connection
        connection.config_set("maxmemory", 0)
        connection.config_set("maxmemory-policy", "noeviction")
        connection.config_set("save", "")


def test_a_redis_that_keeps_its_messages_is_well(redis: Redis):
    redis.config_set("save", "3600 1")

    assert [] == list(check_redis(redis, subject="redis"))


def test_a_redis_that_loses_messages_is_found(redis: Redis):
    redis.config_set("maxmemory", 2**30)
    redis.config_set("maxmemory-policy", "allkeys-lru")

    found = checks(list(check_redis(redis, subject="redis")))

    assert [("redis-eviction", Level.FAIL), ("redis-persistence", Level.INFO)] == found


def test_celerys_redis_is_checked_too(redis: Redis, redis_url: str):
    redis.config_set("maxmemory", 2**30)
    redis.config_set("maxmemory-policy", "allkeys-lfu")
    with Celery(broker=redis_url, set_as_current=False) as app:
        found = checks(list(check_broker(app, [])))

    assert [("redis-eviction", Level.FAIL), ("redis-persistence", Level.INFO)] == found


@pytest.mark.xdist_group("rabbitmq")
def test_a_rabbitmq_that_answers_leaves_only_what_cannot_be_seen(rabbit_server: RabbitServer):
    with Celery(broker=rabbit_server.url, set_as_current=False) as app:
        assert [("rabbitmq-consumer-timeout", Level.INFO)] == checks(list(check_broker(app, [])))


def test_a_redis_that_is_away_is_a_finding():
    with Redis(host="127.0.0.1", port=1) as connection:
        found = checks(list(check_rq(connection, JSONSerializer, [], {})))

    assert [("redis-unreachable", Level.FAIL)] == found


def doctor(app: str, database: str, broker: str, **env: str) -> tuple[int, dict[str, Any]]:
    """Call the command on *app*; give its code and its findings by check."""
    env = {"TEST_DATABASE": database, "TEST_BROKER": broker, "TEST_QUEUE": "doctor", **env}
    called = [sys.executable, "-m", "batchkit", "-A", f"{app}:kit"]
    subprocess.run([*called, "db", "upgrade"], env={**os.environ, **env}, check=True, capture_output=True)
    done = subprocess.run(
        [*called, "doctor", "--json"], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert "" == done.stderr
    return done.returncode, {finding["check"]: finding for finding in json.loads(done.stdout)}


def test_the_celery_app_of_these_tests(postgres_url: str, redis_server: RedisServer, redis_url: str):
    code, found = doctor("tests.queues.celery_app", postgres_url, redis_url)

    assert 0 == code
    expected = {"grace-unknown", "celery-autoretry", "celery-reject-on-worker-lost", "celery-no-results"}
    assert {*expected, "redis-persistence"} == set(found)
    assert "task sleeps" == found["celery-reject-on-worker-lost"]["subject"]
    assert "task decorated" == found["celery-no-results"]["subject"]


def test_a_celery_app_with_what_is_wrong(sqlite_url: str):
    code, found = doctor(
        "tests.queues.celery_app",
        sqlite_url,
        "redis://127.0.0.1:1/0",
        CONF_TASK_ACKS_LATE="1",
        CONF_TASK_TIME_LIMIT="10",
        CONF_WORKER_SOFT_SHUTDOWN_TIMEOUT="60",
        BATCHKIT_GRACE_SECONDS="heroku",
        REMAP_SIGTERM="SIGQUIT",
    )

    assert 1 == code
    # The tasks that the queue has made itself acknowledge early, whatever the app's other tasks do.
    assert "task decorated" == found["celery-late-acknowledgement"]["subject"]
    fails = {check for check, finding in found.items() if finding["level"] == "fail"}
    assert {
        "celery-late-acknowledgement",
        "celery-time-limit",
        "celery-soft-shutdown",
        "celery-broker-unreachable",
    } == fails
    assert "warn" == found["sqlite-across-machines"]["level"]


def test_the_rq_app_of_these_tests(postgres_url: str, redis_url: str):
    code, found = doctor("tests.queues.rq_app", postgres_url, redis_url, BATCHKIT_GRACE_SECONDS="30")

    assert (0, {"rq-pickle", "redis-persistence"}) == (code, set(found))


def test_an_rq_app_that_speaks_json(postgres_url: str, redis_url: str, tmp_path: Path):
    code, found = doctor(
        "tests.queues.rq_app",
        postgres_url,
        redis_url,
        BATCHKIT_GRACE_SECONDS="30",
        TEST_SERIALIZER="rq.serializers.JSONSerializer",
    )

    assert (0, {"redis-persistence"}) == (code, set(found))
