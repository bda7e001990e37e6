"""Who is measured, how each is started, and what each calls durable."""

from __future__ import annotations

from dataclasses import dataclass

_HERE = "benchmarks.peers.apps"
_BATCHKIT = f"{_HERE}.batchkit_app"
_LOCAL, _ON_CELERY, _ON_RQ = ((("BENCH_QUEUE", name),) for name in ("local", "celery", "rq"))


@dataclass(frozen=True)
class Peer:
    """
    A system, used in one of its ways.

    Args:
        app: the module that the starter imports.
        start: its function that starts the work.
        worker: what follows `python -m` to start a worker; without it the starter's process does the work.
        beside: the same for what runs beside the workers and is not killed with them.
        packages: whose versions make the figure; the first is the system.
        holds: when a chunk is durable, for people.
        is_durable: whether a chunk whose worker was killed is done later, by what the system itself stores.
        is_ours: batchkit's.
        in_place: whether the call that starts the work does it, and returns after that.
        has_callback: whether something is done after the last chunk, which the time includes.
        workers: how many chunks may be worked at the same time.
        env: what the environment says besides.
        share: of the chunks of others, for one that takes long.
    """

    label: str
    app: str
    start: str
    packages: tuple[str, ...]
    holds: str
    worker: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    is_durable: bool = False
    is_ours: bool = False
    has_callback: bool = False
    in_place: bool = False
    workers: int = 1
    share: float = 1.0
    env: tuple[tuple[str, str], ...] = ()


def _celery(app: str) -> tuple[str, ...]:
    return ("celery", "-A", app, "worker", "--concurrency", "1")


def _local(*, processes: int = 1) -> tuple[str, ...]:
    return ("batchkit", "-A", f"{_BATCHKIT}:kit", "work", "--processes", str(processes))


#: Followed by the address of the broker, which RQ takes from nowhere else.
_RQ = ("rq.cli", "worker", "--url", "{redis}")
_RQ_SIMPLE = (*_RQ, "--worker-class", "rq.SimpleWorker")
_SUPERVISE = ("batchkit", "-A", f"{_BATCHKIT}:kit", "supervise")
_OURS = "rows, cursor and counters in one commit"
_EARLY = "the message, until a worker takes it; then nothing"

LIMIT = Peer("hand-written loop", f"{_HERE}.loop", "start", ("sqlalchemy", "psycopg"), "rows; not how far it got")

PEERS = (
    Peer(
        "batchkit, called in place",
        _BATCHKIT,
        "call",
        ("batchkit-jobs",),
        _OURS,
        is_ours=True,
        env=_LOCAL,
        in_place=True,
    ),
    Peer(
        "batchkit, built-in queue",
        _BATCHKIT,
        "start",
        ("batchkit-jobs",),
        _OURS,
        worker=_local(),
        is_ours=True,
        env=_LOCAL,
    ),
    Peer(
        "batchkit on Celery",
        _BATCHKIT,
        "start",
        ("batchkit-jobs", "celery"),
        _OURS,
        worker=_celery(f"{_BATCHKIT}:celery"),
        is_ours=True,
        env=_ON_CELERY,
    ),
    Peer(
        "batchkit on RQ",
        _BATCHKIT,
        "start",
        ("batchkit-jobs", "rq"),
        _OURS,
        worker=_RQ,
        beside=_SUPERVISE,
        is_ours=True,
        env=_ON_RQ,
    ),
    Peer(
        "batchkit, 2 partitions on 2 workers",
        _BATCHKIT,
        "start_in_two",
        ("batchkit-jobs",),
        _OURS,
        worker=_local(processes=2),
        is_ours=True,
        env=_LOCAL,
        workers=2,
    ),
    Peer(
        "Celery group",
        f"{_HERE}.celery_app",
        "start_group",
        ("celery", "kombu", "redis"),
        _EARLY,
        worker=_celery(f"{_HERE}.celery_app:app"),
    ),
    Peer(
        "Celery group, acks_late",
        f"{_HERE}.celery_app",
        "start_late",
        ("celery", "kombu", "redis"),
        "the message, until after the rows' commit; sent again after visibility_timeout (1 h)",
        worker=_celery(f"{_HERE}.celery_app:app"),
        is_durable=True,
    ),
    Peer(
        "Celery chord",
        f"{_HERE}.celery_app",
        "start_chord",
        ("celery", "kombu", "redis"),
        _EARLY,
        worker=_celery(f"{_HERE}.celery_app:app"),
        has_callback=True,
    ),
    Peer(
        "Celery chunks, 10 to a task",
        f"{_HERE}.celery_app",
        "start_chunks",
        ("celery", "kombu", "redis"),
        _EARLY,
        worker=_celery(f"{_HERE}.celery_app:app"),
    ),
    Peer(
        "RQ Worker (forks)",
        f"{_HERE}.rq_app",
        "start",
        ("rq", "redis"),
        "the job; after a kill it is put among the failed",
        worker=_RQ,
        share=0.2,
    ),
    Peer(
        "RQ SimpleWorker",
        f"{_HERE}.rq_app",
        "start",
        ("rq", "redis"),
        "the job; after a kill it is put among the failed",
        worker=_RQ_SIMPLE,
    ),
    Peer(
        "huey",
        f"{_HERE}.huey_app",
        "start",
        ("huey", "redis"),
        _EARLY,
        worker=("huey.bin.huey_consumer", f"{_HERE}.huey_app.huey", "--workers", "1", "--worker-type", "process"),
    ),
    Peer(
        "dramatiq",
        f"{_HERE}.dramatiq_app",
        "start",
        ("dramatiq", "redis"),
        "the message, until after the rows' commit; put back a minute after its worker fell silent",
        worker=("dramatiq", f"{_HERE}.dramatiq_app", "--processes", "1", "--threads", "1"),
        is_durable=True,
    ),
    Peer(
        "procrastinate",
        f"{_HERE}.procrastinate_app",
        "start",
        ("procrastinate", "psycopg"),
        "the job, until after the rows' commit; put back by a periodic task that one writes",
        worker=("procrastinate", "--app", f"{_HERE}.procrastinate_app.app", "worker"),
        is_durable=True,
    ),
    Peer(
        "absurd, a step per chunk",
        f"{_HERE}.absurd_app",
        "start",
        ("absurd-sdk", "psycopg"),
        "the step's result, in a commit after the rows'",
        worker=(f"{_HERE}.absurd_app",),
        is_durable=True,
    ),
    Peer(
        "DBOS, a step per chunk",
        f"{_HERE}.dbos_app",
        "start_steps",
        ("dbos", "sqlalchemy", "psycopg"),
        "the step's result, in a commit after the rows'",
        is_durable=True,
    ),
    Peer(
        "DBOS, a transaction per chunk",
        f"{_HERE}.dbos_app",
        "start_transactions",
        ("dbos", "sqlalchemy", "psycopg"),
        "rows and the step's result in one commit",
        is_durable=True,
    ),
)


def chosen(words: str | None) -> tuple[Peer, ...]:
    """Give those whose label has one of some comma-separated words in it; all without words."""
    if not words:
        return PEERS
    parts = [each.strip().lower() for each in words.split(",")]
    return tuple(each for each in PEERS if any(part in each.label.lower() for part in parts))
