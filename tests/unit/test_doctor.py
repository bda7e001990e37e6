"""The doctor's checks, each on real settings; what needs a server is in tests/store and tests/queues."""

from __future__ import annotations

import dataclasses
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from celery import Celery
from celery.app.task import Task
from rq.serializers import DefaultSerializer, JSONSerializer
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool, StaticPool

from batchkit import BatchKit, Chunk, batched, span
from batchkit.doctor import Finding, Level, broker, celery, database, examine, jobs, platform, redis, rq, runs
from batchkit.errors import DatabaseUnavailable
from batchkit.job import JOBS, Definition
from batchkit.platforms import PLATFORMS
from batchkit.queues import CeleryQueue, InlineQueue
from batchkit.store import Backlog, ClockOffset, Server, Store

SLICE_SECONDS = 60.0


@batched(lambda: span(0, 10), name="doctor.nightly", slice_time=SLICE_SECONDS, chunk_timeout=100.0)
def nightly(chunk: Chunk[int]) -> None:
    pass


@batched(lambda timeout, meta, days: span(0, 10), name="doctor.eaten", slice_time=200.0)
def eaten(chunk: Chunk[int], timeout: int, meta: int, days: int) -> None:
    pass


NIGHTLY = JOBS["doctor.nightly"]
EATEN = JOBS["doctor.eaten"]


UNSAFE_MYSQL = Server(
    "MySQL",
    (8, 0),
    (8, 0),
    without_transactions=("batchkit_run", "logs"),
    logs_statements=True,
    cuts_texts=True,
    narrow_charset="utf8mb3",
)


def nothing() -> None:
    pass


def levels(findings: Iterable[Finding]) -> list[tuple[str, Level]]:
    return [(finding.check, finding.level) for finding in findings]


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


# What is told


def test_every_text_is_a_sentence():
    findings = [
        *database.server_findings(Server("PostgreSQL", (11, 4), (12,), refuses_writes="it is a standby"), subject="db"),
        *database.server_findings(Server("SQLite", (3, 40, 0), (3, 35, 0), journal="delete"), subject="db"),
        *database.mysql_findings(UNSAFE_MYSQL, subject="db"),
        database.unusable(DatabaseUnavailable("sqlite:///a.db", "disk I/O error; see."), subject="db"),
        *database.clock_findings(ClockOffset(-3.0, 0.1), subject="db"),
        *database.pool_findings(1, slices_at_once=1, subject="db"),
        *jobs.grace_findings([NIGHTLY], {"doctor.nightly": 60.0}, grace=30.0),
        *platform.platform_findings(None, grace=None),
        *platform.platform_findings(PLATFORMS["railway"], grace=None),
        *platform.platform_findings(PLATFORMS["fly"], grace=None),
        *platform.platform_findings(PLATFORMS["heroku"], grace=60.0),
        *runs.backlog_findings(Backlog(1, 90.0, 1), queue="RQQueue", keeps_messages=True),
        *rq.eaten_findings([EATEN]),
        *rq.version_findings("4.0"),
    ]

    assert 19 == len(findings)
    for finding in findings:
        for text in (finding.problem, finding.danger, finding.mend):
            assert text[0].isupper() or text[0].isdigit() or text.startswith("batchkit"), text
            assert text.endswith("."), text
            assert not text.endswith(".."), text


# The database


@pytest.mark.parametrize(
    ("server", "found"),
    [
        (Server("PostgreSQL", (16, 2), (12,)), []),
        (Server("PostgreSQL", (12, 0), (12,)), []),
        (Server("PostgreSQL", (11, 22), (12,)), [("database-version", Level.FAIL)]),
        (
            Server("PostgreSQL", (16, 2), (12,), refuses_writes="it is a standby"),
            [("database-read-only", Level.FAIL)],
        ),
        (Server("SQLite", (3, 40, 0), (3, 35, 0), journal="wal"), []),
        (Server("SQLite", (3, 40, 0), (3, 35, 0), journal="delete"), [("sqlite-journal", Level.WARN)]),
    ],
)
def test_a_server_that_cannot_keep_the_promises_is_found(server: Server, found: list[tuple[str, Level]]):
    assert found == levels(database.server_findings(server, subject="db"))


@pytest.mark.parametrize(
    ("journal", "queue", "is_found"),
    [
        ("wal", "CeleryQueue", True),
        ("wal", "RQQueue", True),
        ("wal", "LocalQueue", False),
        (None, "CeleryQueue", False),
    ],
)
def test_sqlite_under_a_queue_of_several_machines_is_found(journal: str | None, queue: str, is_found: bool):
    server = Server("any", (99,), (1,), journal=journal)

    assert is_found == bool(list(database.across_machines(server, queue=queue, subject="db")))


@pytest.mark.parametrize(
    ("seconds", "uncertainty", "is_found"),
    [(0.5, 0.0, False), (-1.5, 0.1, True), (90.0, 0.1, True), (1.5, 0.6, False), (-30.0, 40.0, False)],
)
def test_clocks_that_differ_more_than_the_asking_took_are_found(seconds: float, uncertainty: float, is_found: bool):
    assert is_found == bool(list(database.clock_findings(ClockOffset(seconds, uncertainty), subject="db")))


def test_which_clock_is_ahead_is_told():
    ahead = only(database.clock_findings(ClockOffset(2.0, 0.0), subject="db"))
    behind = only(database.clock_findings(ClockOffset(-2.0, 0.0), subject="db"))

    assert "2.0 s ahead of this machine's" in ahead.problem
    assert "2.0 s behind this machine's" in behind.problem


@pytest.mark.parametrize(
    ("options", "slices", "is_found"),
    [
        ({}, 1, False),
        ({"pool_size": 1, "max_overflow": 0}, 1, True),
        ({"pool_size": 1, "max_overflow": 1}, 1, False),
        ({"pool_size": 2, "max_overflow": 0}, 1, False),
        ({"pool_size": 1, "max_overflow": -1}, 50, False),
        ({"pool_size": 5, "max_overflow": 3}, 8, True),
        ({"pool_size": 5, "max_overflow": 4}, 8, False),
        ({"poolclass": NullPool}, 50, False),
        ({"poolclass": StaticPool}, 1, True),
    ],
)
def test_a_pool_that_is_too_small_for_the_slices_is_found(
    sqlite_url: str, options: dict[str, object], slices: int, is_found: bool
):
    with closing(Store(create_engine(sqlite_url, **options))) as store:
        capacity = store.health.pool_capacity()

    assert is_found == bool(list(database.pool_findings(capacity, slices_at_once=slices, subject="db")))


# The jobs


@pytest.mark.parametrize(
    ("seconds", "grace", "found"),
    [
        (23.9, 30.0, []),
        (24.0, 30.0, [("chunk-longer-than-grace", Level.FAIL)]),
        (0.1, 2.0, [("chunk-longer-than-grace", Level.FAIL)]),
        (500.0, None, []),
    ],
)
def test_a_chunk_that_does_not_fit_the_grace_is_found(
    seconds: float, grace: float | None, found: list[tuple[str, Level]]
):
    assert found == levels(jobs.grace_findings([NIGHTLY], {"doctor.nightly": seconds}, grace=grace))


def test_a_job_that_has_not_run_is_not_judged_by_its_chunks():
    assert [] == list(jobs.grace_findings([NIGHTLY], {"another": 99.0}, grace=30.0))
    assert [] == list(jobs.stuck_findings([NIGHTLY], {}))


def test_a_chunk_that_is_near_to_its_timeout_is_found():
    assert [] == list(jobs.stuck_findings([NIGHTLY], {"doctor.nightly": 49.0}))
    assert "100 s" in only(jobs.stuck_findings([NIGHTLY], {"doctor.nightly": 50.0})).problem


def test_a_job_of_the_main_script_is_found_where_workers_are_other_processes():
    function = types.FunctionType(nothing.__code__, {"__name__": "__main__"})
    job = dataclasses.replace(NIGHTLY, function=function)

    assert "job-in-main" == only(jobs.place_findings([NIGHTLY, job], crosses_processes=True)).check
    assert [] == list(jobs.place_findings([NIGHTLY, job], crosses_processes=False))


# The platform


def test_a_grace_that_nobody_has_said_is_found_with_what_this_platform_gives():
    assert [("grace-unknown", Level.INFO)] == levels(platform.platform_findings(None, grace=None))
    assert 'grace="render"' in only(platform.platform_findings(PLATFORMS["render"], grace=None)).mend
    mend = only(platform.platform_findings(PLATFORMS["railway"], grace=None)).mend
    assert "RAILWAY_DEPLOYMENT_DRAINING_SECONDS" in mend


def test_a_grace_that_the_platform_cannot_give_is_found():
    assert [] == list(platform.platform_findings(PLATFORMS["heroku"], grace=30.0))
    assert "30 s at most" in only(platform.platform_findings(PLATFORMS["heroku"], grace=31.0)).problem
    assert [] == list(platform.platform_findings(PLATFORMS["kubernetes"], grace=3600.0))
    assert [] == list(platform.platform_findings(None, grace=3600.0))


# The runs


@pytest.mark.parametrize(
    ("backlog", "keeps_messages", "found"),
    [
        (Backlog(waiting=0, longest_seconds=0, unswept=0), True, []),
        (Backlog(waiting=3, longest_seconds=90, unswept=0), True, []),
        (Backlog(waiting=3, longest_seconds=900, unswept=0), True, ["runs-wait"]),
        (Backlog(waiting=3, longest_seconds=90, unswept=1), True, ["runs-overdue"]),
        (Backlog(waiting=3, longest_seconds=90, unswept=3), False, ["runs-wait"]),
    ],
)
def test_runs_that_wait_for_too_long_are_found(backlog: Backlog, keeps_messages: bool, found: list[str]):
    findings = list(runs.backlog_findings(backlog, queue="RQQueue", keeps_messages=keeps_messages))

    assert found == [finding.check for finding in findings]


def test_who_should_sweep_is_told():
    backlog = Backlog(waiting=1, longest_seconds=90, unswept=1)

    rq_says = only(runs.backlog_findings(backlog, queue="RQQueue", keeps_messages=True))
    celery_says = only(runs.backlog_findings(backlog, queue="CeleryQueue", keeps_messages=True))

    assert "1 run waits" in rq_says.problem
    assert "`batchkit supervise`" in rq_says.mend
    assert "Celery worker" in celery_says.mend


# Celery


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery("doctor", broker="memory://", set_as_current=False) as made:
        yield made


def over(app: Celery, **options: object) -> Task:
    """Make a task over the job, as a user does."""
    return app.task(lazy=False, shared=False, name="mine", **options)(nightly)


def test_the_tasks_over_a_job_are_known_however_they_are_made(app: Celery):
    task = over(app, autoretry_for=(ValueError,))
    app.task(lazy=False, shared=False, name="other")(nothing)

    assert [task] == celery.tasks_of(app, NIGHTLY)
    assert [] == celery.tasks_of(app, EATEN)


@pytest.mark.parametrize(
    ("settings", "options", "is_found"),
    [
        ({}, {}, False),
        ({}, {"acks_late": True}, True),
        ({"task_acks_late": True}, {}, True),
        ({"task_acks_late": True}, {"acks_late": False}, False),
        ({"task_annotations": {"mine": {"acks_late": True}}}, {}, True),
    ],
)
def test_a_late_acknowledgement_of_slices_is_found(
    app: Celery, settings: dict[str, object], options: dict[str, object], is_found: bool
):
    app.conf.update(settings, result_backend="cache+memory://")
    findings = list(celery.task_findings(app, NIGHTLY, [over(app, **options)]))

    assert ([("celery-late-acknowledgement", Level.FAIL)] if is_found else []) == levels(findings)


@pytest.mark.parametrize(
    ("errors", "is_found"),
    [((), False), ((ConnectionError,), True), ([ValueError, Exception], True)],
)
def test_a_retry_of_failed_runs_is_found(app: Celery, errors: object, is_found: bool):
    app.conf.result_backend = "cache+memory://"
    findings = list(celery.task_findings(app, NIGHTLY, [over(app, autoretry_for=errors)]))

    assert ([("celery-autoretry", Level.INFO)] if is_found else []) == levels(findings)


def test_results_that_nobody_keeps_are_found(app: Celery):
    assert ["celery-no-results"] == [each.check for each in celery.task_findings(app, NIGHTLY, [over(app)])]


def test_a_task_without_results_needs_no_backend(app: Celery):
    assert [] == list(celery.task_findings(app, NIGHTLY, [over(app, ignore_result=True)]))


@pytest.mark.parametrize(
    ("settings", "options", "chunk_seconds", "named"),
    [
        ({}, {}, 10.0, []),
        ({"task_time_limit": 60}, {}, 0.0, ["task_time_limit"]),
        ({"task_time_limit": 70}, {}, 0.0, []),
        ({"task_time_limit": 70}, {}, 10.0, ["task_time_limit"]),
        ({"task_time_limit": 70}, {}, 9.0, []),
        ({"task_time_limit": 30, "task_soft_time_limit": 20}, {}, 0.0, ["task_soft_time_limit", "task_time_limit"]),
        ({"task_time_limit": 30}, {"time_limit": 300}, 0.0, []),
        ({"task_time_limit": 300}, {"soft_time_limit": 30}, 0.0, ["soft_time_limit"]),
    ],
)
def test_time_limits_that_cut_slices_are_found(
    app: Celery, settings: dict[str, object], options: dict[str, object], chunk_seconds: float, named: list[str]
):
    app.conf.update(settings)
    findings = celery.limit_findings(app, NIGHTLY, [over(app, **options)], chunk_seconds)

    assert named == [finding.problem.split()[0] for finding in findings]


def test_other_tasks_that_are_lost_with_their_worker_are_found(app: Celery):
    app.task(lazy=False, shared=False, name="safe", acks_late=True, reject_on_worker_lost=True)(nothing)
    app.task(lazy=False, shared=False, name="early")(nothing)
    assert [] == list(celery.late_ack_findings(app, except_for=()))

    app.task(lazy=False, shared=False, name="lost", acks_late=True)(nothing)
    over(app, acks_late=True)

    assert "task lost" == only(celery.late_ack_findings(app, except_for={"mine"})).subject
    assert "tasks lost, mine" == only(celery.late_ack_findings(app, except_for=())).subject


def test_celerys_own_tasks_are_not_the_users(app: Celery):
    app.conf.task_acks_late = True

    assert [] == list(celery.late_ack_findings(app, except_for=()))


@pytest.mark.parametrize(
    ("settings", "is_found"),
    [
        ({}, True),
        ({"worker_prefetch_multiplier": 1}, False),
        ({"worker_prefetch_multiplier": 0}, True),
        ({"worker_disable_prefetch": True}, False),
    ],
)
def test_prefetching_is_found(app: Celery, settings: dict[str, object], is_found: bool):
    app.conf.update(settings)

    assert is_found == bool(list(celery.prefetch_findings(app)))


@pytest.mark.parametrize(
    ("settings", "kind", "is_found"),
    [
        ({}, "redis", False),
        ({"broker_transport_options": {"visibility_timeout": 240}}, "redis", True),
        ({"broker_transport_options": {"visibility_timeout": 241}}, "redis", False),
        ({"broker_transport_options": {"visibility_timeout": 240}}, "amqp", False),
        ({"broker_transport_options": {"visibility_timeout": 100}, "worker_prefetch_multiplier": 1}, "redis", False),
        ({"broker_transport_options": {"visibility_timeout": 60}, "worker_prefetch_multiplier": 1}, "redis", True),
        ({"worker_prefetch_multiplier": 0}, "redis", True),
    ],
)
def test_a_visibility_timeout_that_slices_outlast_is_found(
    app: Celery, settings: dict[str, object], kind: str, is_found: bool
):
    app.conf.update(settings)

    assert is_found == bool(list(broker.visibility_findings(app, [NIGHTLY], kind)))


@pytest.mark.parametrize(
    ("settings", "remap", "grace", "found"),
    [
        ({}, None, 30.0, []),
        ({}, "SIGQUIT", 30.0, [("celery-cold-shutdown", Level.WARN)]),
        ({"worker_pool": "gevent"}, None, 30.0, []),
        ({"worker_pool": "gevent"}, "SIGQUIT", None, [("celery-cold-shutdown", Level.FAIL)]),
        ({"worker_pool": "solo"}, "SIGQUIT", None, [("celery-cold-shutdown", Level.FAIL)]),
        ({"worker_pool": "threads"}, "SIGQUIT", None, [("celery-cold-shutdown", Level.WARN)]),
        ({"worker_soft_shutdown_timeout": 20}, "SIGQUIT", 30.0, []),
        ({"worker_soft_shutdown_timeout": 20}, None, 30.0, [("celery-soft-shutdown", Level.INFO)]),
        ({"worker_soft_shutdown_timeout": 30}, "SIGQUIT", 30.0, [("celery-soft-shutdown", Level.FAIL)]),
        ({"worker_soft_shutdown_timeout": 30}, None, 30.0, [("celery-soft-shutdown", Level.WARN)]),
        ({"worker_soft_shutdown_timeout": 30}, "SIGQUIT", None, []),
        ({"worker_pool": "threads", "task_time_limit": 300}, None, 30.0, [("celery-limits-not-enforced", Level.WARN)]),
    ],
)
def test_a_shutdown_that_loses_work_is_found(
    app: Celery,
    settings: dict[str, object],
    remap: str | None,
    grace: float | None,
    found: list[tuple[str, Level]],
):
    app.conf.update(settings)

    assert found == levels(celery.shutdown_findings(app, remap, grace=grace))


@pytest.mark.parametrize(
    ("settings", "subject"),
    [
        ({}, None),
        ({"accept_content": ["json", "pickle"]}, "accept_content"),
        ({"accept_content": ["application/x-python-serialize"]}, "accept_content"),
        ({"task_serializer": "pickle", "result_serializer": "pickle"}, "task_serializer and result_serializer"),
    ],
)
def test_pickle_in_messages_is_found(app: Celery, settings: dict[str, object], subject: str | None):
    app.conf.update(settings)

    assert ([] if subject is None else [subject]) == [each.subject for each in celery.content_findings(app)]


def test_eager_tasks_are_found(app: Celery):
    assert [] == list(celery.eager_findings(app))
    app.conf.task_always_eager = True

    assert Level.WARN is only(celery.eager_findings(app)).level


@pytest.mark.parametrize(
    ("settings", "slices"),
    [
        ({}, 1),
        ({"worker_concurrency": 8}, 1),
        ({"worker_concurrency": 8, "worker_pool": "threads"}, 8),
        ({"worker_concurrency": 100, "worker_pool": "gevent"}, 100),
        ({"worker_concurrency": 8, "worker_pool": "solo"}, 1),
    ],
)
def test_the_slices_of_a_process_are_counted_by_the_pool(app: Celery, settings: dict[str, object], slices: int):
    app.conf.update(settings)

    assert slices == celery.slices_at_once(app)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "amqp://127.0.0.1:1//", "nonsense://"])
def test_a_broker_that_cannot_be_reached_is_a_finding(url: str):
    with Celery("away", broker=url, set_as_current=False) as app:
        findings = list(broker.check_broker(app, [NIGHTLY]))

    assert ("celery-broker-unreachable", Level.FAIL) == levels(findings)[-1]


def test_rabbitmqs_consumer_timeout_is_told_once():
    with Celery("away", broker="amqp://127.0.0.1:1//", set_as_current=False) as app:
        findings = list(broker.check_broker(app, [NIGHTLY, EATEN]))

    assert 1 == levels(findings).count(("rabbitmq-consumer-timeout", Level.INFO))


# RQ and Redis


@pytest.mark.parametrize(("version", "is_found"), [("2.0.0", False), ("3.1", False), ("1.16.2", True), ("4.0", True)])
def test_another_rq_than_ours_is_found(version: str, is_found: bool):
    assert is_found == bool(list(rq.version_findings(version)))


@pytest.mark.parametrize(
    ("serializer", "is_found"),
    [(DefaultSerializer, True), (pickle, True), (JSONSerializer, False)],
)
def test_pickled_rq_jobs_are_found(serializer: object, is_found: bool):
    assert is_found == bool(list(rq.serializer_findings(serializer)))


def test_params_that_enqueue_takes_are_found():
    finding = only(rq.eaten_findings([NIGHTLY, EATEN]))

    assert "job doctor.eaten" == finding.subject
    assert "meta, timeout" in finding.problem


@pytest.mark.parametrize(
    ("job", "chunk_seconds", "is_found"), [(NIGHTLY, 0, False), (NIGHTLY, 120, True), (EATEN, 0, True)]
)
def test_slices_that_outlast_rqs_timeout_are_found(job: Definition, chunk_seconds: float, is_found: bool):
    assert is_found == bool(list(rq.timeout_findings([job], {job.name: chunk_seconds})))


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        ({"maxmemory_policy": "noeviction", "maxmemory": 1}, None),
        ({"maxmemory_policy": "volatile-lru", "maxmemory": 1}, None),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 2**28}, Level.FAIL),
        ({"maxmemory_policy": "allkeys-random", "maxmemory": 0}, Level.WARN),
        ({}, None),
    ],
)
def test_a_redis_that_throws_messages_away_is_found(facts: dict[str, object], level: Level | None):
    assert ([] if level is None else [level]) == [each.level for each in redis.eviction_findings(facts, subject="r")]


@pytest.mark.parametrize(
    ("aof", "save", "is_found"), [(0, "", True), (1, "", False), (0, "3600 1", False), (0, None, False)]
)
def test_a_redis_that_keeps_nothing_is_found(aof: int, save: str | None, is_found: bool):
    assert is_found == bool(list(redis.persistence_findings({"aof_enabled": aof}, save, subject="r")))


# A whole kit


@pytest.fixture
def make_kit(sqlite_url: str) -> Iterator[Callable[..., BatchKit]]:
    made: list[BatchKit] = []

    def make(url: object = sqlite_url, **options: object) -> BatchKit:
        made.append(BatchKit(url, **{"queue": InlineQueue(), "grace": 30, **options}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for kit in made:
        kit.close()


def test_nothing_is_found_where_all_is_well(make_kit: Callable[..., BatchKit]):
    kit = make_kit()
    kit.migrate()

    assert [] == examine(kit)


def test_the_worst_comes_first(make_kit: Callable[..., BatchKit]):
    kit = make_kit(grace=None)

    assert [("database-tables", Level.FAIL), ("grace-unknown", Level.INFO)] == levels(examine(kit))


def test_a_database_that_cannot_be_reached_is_a_finding_and_the_rest_is_checked(make_kit: Callable[..., BatchKit]):
    kit = make_kit("postgresql+psycopg://nobody:secret@127.0.0.1:1/nowhere", grace=None)

    findings = examine(kit)

    assert [("database-unreachable", Level.FAIL), ("grace-unknown", Level.INFO)] == levels(findings)
    assert "secret" not in str(findings)


def test_a_chunk_of_a_run_of_today_is_held_against_the_grace(make_kit: Callable[..., BatchKit]):
    kit = make_kit(grace=0.001)
    kit.migrate()
    nightly.start()

    assert ["job doctor.nightly"] == [each.subject for each in examine(kit) if each.check == "chunk-longer-than-grace"]


def test_a_check_that_breaks_is_a_finding(make_kit: Callable[..., BatchKit], tmp_path: Path):
    kit = make_kit()
    kit.migrate()
    kit.close()
    (tmp_path / "batchkit.db").write_bytes(b"this is no database" * 100)

    findings = examine(kit)

    assert Level.FAIL is findings[0].level or "not-checked" == findings[0].check


def test_tasks_that_cannot_be_imported_are_a_finding_and_the_rest_is_checked(
    make_kit: Callable[..., BatchKit], app: Celery
):
    app.conf.include = ["not_there_at_all"]
    kit = make_kit(queue=CeleryQueue(app))
    kit.migrate()

    findings = examine(kit)

    assert "tasks of the Celery app" == next(each.subject for each in findings if each.check == "not-checked")
    assert ("celery-prefetch", Level.WARN) in levels(findings)


def test_jobs_in_modules_that_only_workers_import_are_checked(
    make_kit: Callable[..., BatchKit], app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "doctor_tasks.py").write_text(
        "from batchkit import batched, span\n"
        "@batched(lambda: span(0, 1), name='doctor.late', slice_time=9000)\n"
        "def late(chunk): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    app.conf.update(include=["doctor_tasks"], task_time_limit=8000)
    kit = make_kit(queue=CeleryQueue(app))
    kit.migrate()

    limits = [finding.subject for finding in examine(kit) if finding.check == "celery-time-limit"]

    sys.modules.pop("doctor_tasks")
    assert ["task doctor.late"] == limits
