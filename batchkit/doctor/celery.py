"""Celery: what its settings do to slices, and what deploys do to other people's tasks."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from batchkit.doctor.findings import Finding, Level, listed
from batchkit.job import Definition
from batchkit.queues.celery.message import is_task_of

if TYPE_CHECKING:
    from celery import Celery, Task

#: Both of its names in Celery's settings
_PICKLE = frozenset({"pickle", "application/x-python-serialize"})
#: Pools in which one process works several tasks at once.
_POOLS_OF_ONE_PROCESS = frozenset({"threads", "gevent", "eventlet"})
_REMAPPED = "SIGQUIT"


def import_tasks(app: Celery) -> None:
    """Import the modules with the user's tasks, and with more jobs, as a worker does."""
    app.loader.import_default_modules()


def check_celery(
    app: Celery, jobs: Collection[Definition], chunk_seconds: Mapping[str, float], *, grace: float | None
) -> Iterator[Finding]:
    """Check a Celery app and its tasks, those over *jobs* and the others."""
    tasks = {job.name: tasks_of(app, job) for job in jobs}
    for job in jobs:
        yield from limit_findings(app, job, tasks[job.name], chunk_seconds.get(job.name, 0.0))
        yield from task_findings(app, job, tasks[job.name])
    yield from late_ack_findings(app, except_for={task.name for each in tasks.values() for task in each})
    yield from prefetch_findings(app)
    yield from shutdown_findings(app, os.environ.get("REMAP_SIGTERM"), grace=grace)
    yield from content_findings(app)
    yield from eager_findings(app)


def slices_at_once(app: Celery) -> int:
    """Tell how many slices one process of the app's workers may work at the same time."""
    if app.conf.worker_pool not in _POOLS_OF_ONE_PROCESS:
        return 1
    return int(app.conf.worker_concurrency or os.cpu_count() or 1)


def tasks_of(app: Celery, job: Definition) -> list[Task]:
    """Give the tasks that are the job itself, ours first."""
    found = [task for task in app.tasks.values() if is_task_of(task, job)]
    return sorted(found, key=lambda task: (task.name != job.name, task.name))


# The tasks


def task_findings(app: Celery, job: Definition, tasks: Iterable[Task]) -> Iterator[Finding]:
    """Look at the options of the tasks over a job that must not be those of other tasks."""
    for task in tasks:
        subject = f"task {task.name}"
        if task.acks_late:
            yield Finding(
                check="celery-late-acknowledgement",
                level=Level.FAIL,
                subject=subject,
                problem=f"It works job {job.name} and acknowledges late.",
                danger=(
                    "The broker delivers slices again that are still being worked, RabbitMQ ends the whole worker when "
                    "one takes too long, and what was lost is found by the lease anyway."
                ),
                mend="Give the task acks_late=False; leave task_acks_late as it is for the others.",
            )
        if getattr(task, "autoretry_for", ()):
            yield Finding(
                check="celery-autoretry",
                level=Level.INFO,
                subject=subject,
                problem=f"It works job {job.name} and has autoretry_for, which batchkit takes back.",
                danger="Nobody retries what is meant to be retried: a failed run waits for a person.",
                mend="Leave autoretry_for out; `batchkit resume ID` lets a failed run go on behind its last chunk.",
            )
        if not app.conf.result_backend and task.name != job.name and not task.ignore_result:
            yield Finding(
                check="celery-no-results",
                level=Level.INFO,
                subject=subject,
                problem=f"It works job {job.name} and keeps its result, but the app has no result_backend.",
                danger="Chords over it never end, and its result and progress cannot be asked for.",
                mend="Set result_backend, or give the task ignore_result=True if nobody asks.",
            )


def limit_findings(app: Celery, job: Definition, tasks: Iterable[Task], chunk_seconds: float) -> Iterator[Finding]:
    """Look whether a slice, with the chunk that it ends with, fits into the time limits of its tasks."""
    lasts = job.options.slice_time + chunk_seconds
    for task in tasks:
        limits = {
            "soft_time_limit": (task.soft_time_limit, app.conf.task_soft_time_limit),
            "time_limit": (task.time_limit, app.conf.task_time_limit),
        }
        for name, (own, of_all) in limits.items():
            limit = own or of_all
            if not limit or limit > lasts:
                continue
            setting = f"task_{name}" if limit == of_all else name
            yield Finding(
                check="celery-time-limit",
                level=Level.FAIL,
                subject=f"task {task.name}",
                problem=(
                    f"{setting} is {limit:g} s, but a slice of job {job.name} lasts {lasts:g} s: its slice_time of "
                    f"{job.options.slice_time:g} s and the chunk that it ends with."
                ),
                danger="Slices are cut or killed in the middle of a chunk, which is then done again.",
                mend=f"Raise {setting} well above {lasts:g} s, or give the job a shorter slice_time.",
            )


def late_ack_findings(app: Celery, *, except_for: Collection[str]) -> Iterator[Finding]:
    """Look for other tasks that are acknowledged although their worker was lost."""
    lost = sorted(
        task.name
        for task in app.tasks.values()
        if task.acks_late
        and not task.reject_on_worker_lost
        and task.name not in except_for
        and not task.name.startswith("celery.")
    )
    if lost:
        yield Finding(
            check="celery-reject-on-worker-lost",
            level=Level.WARN,
            subject=f"tasks {listed(lost)}" if len(lost) > 1 else f"task {lost[0]}",
            problem="They acknowledge late, but without reject_on_worker_lost."
            if len(lost) > 1
            else "It acknowledges late, but without reject_on_worker_lost.",
            danger="A SIGTERM to all processes, as Heroku and systemd send it, or a kill by the OOM killer loses them.",
            mend="Set task_reject_on_worker_lost=True, if they may be done twice.",
        )


# The worker


def prefetch_findings(app: Celery) -> Iterator[Finding]:
    """Look whether messages wait behind a slice in a worker while others are idle."""
    multiplier = app.conf.worker_prefetch_multiplier
    if multiplier == 1 or app.conf.get("worker_disable_prefetch"):
        return
    yield Finding(
        check="celery-prefetch",
        level=Level.WARN,
        subject="worker_prefetch_multiplier",
        problem=f"It is {multiplier}, so {multiplier or 'all'} messages are taken for each process of a worker.",
        danger="They wait behind a slice while other workers are idle, and are stuck for a while if it is killed.",
        mend="Set worker_prefetch_multiplier = 1.",
    )


def shutdown_findings(app: Celery, remap: str | None, *, grace: float | None) -> Iterator[Finding]:
    """Look what SIGTERM does; *remap* is REMAP_SIGTERM, and may be another one on the workers."""
    pool = app.conf.worker_pool
    soft = float(app.conf.get("worker_soft_shutdown_timeout") or 0.0)
    is_cold = remap == _REMAPPED
    if pool in {"gevent", "eventlet", "solo"} and is_cold:
        yield Finding(
            check="celery-cold-shutdown",
            level=Level.FAIL,
            subject=f"pool {pool}",
            problem="REMAP_SIGTERM=SIGQUIT makes each SIGTERM a cold shutdown, which this pool cannot do in order.",
            danger="What is running is lost with its message at each deploy. Slices go on when a sweep finds them.",
            mend="Unset REMAP_SIGTERM on the workers, or use the prefork pool.",
        )
    elif pool == "threads" and is_cold:
        yield Finding(
            check="celery-cold-shutdown",
            level=Level.WARN,
            subject=f"pool {pool}",
            problem="REMAP_SIGTERM=SIGQUIT makes each SIGTERM a cold shutdown, but this pool cannot end its tasks.",
            danger="They run on until the platform kills the worker.",
            mend="Unset REMAP_SIGTERM on the workers, or use the prefork pool.",
        )
    elif is_cold and not soft:
        yield Finding(
            check="celery-cold-shutdown",
            level=Level.WARN,
            subject="REMAP_SIGTERM",
            problem="REMAP_SIGTERM=SIGQUIT is set without worker_soft_shutdown_timeout.",
            danger="Tasks other than slices are ended in the middle at each deploy.",
            mend="Set worker_soft_shutdown_timeout to the seconds that tasks may finish in, well below the grace.",
        )
    if soft and grace is not None and soft >= grace:
        yield Finding(
            check="celery-soft-shutdown",
            level=Level.FAIL if is_cold else Level.WARN,
            subject="worker_soft_shutdown_timeout",
            problem=f"It is {soft:g} s, and the grace is {grace:g} s.",
            danger="Where REMAP_SIGTERM is SIGQUIT a worker waits so long whenever a task runs, and is killed waiting.",
            mend=f"Set it well below {grace:g} s: what is left is for giving messages back.",
        )
    elif soft and not is_cold:
        yield Finding(
            check="celery-soft-shutdown",
            level=Level.INFO,
            subject="worker_soft_shutdown_timeout",
            problem="It is set, but REMAP_SIGTERM is not SIGQUIT here.",
            danger="On SIGTERM it has no effect: the worker waits for its tasks without an end.",
            mend="Set REMAP_SIGTERM=SIGQUIT on the workers if that is what it is meant for.",
        )
    limits = [name for name in ("task_time_limit", "task_soft_time_limit") if app.conf.get(name)]
    if limits and pool in {"threads", "solo"}:
        yield Finding(
            check="celery-limits-not-enforced",
            level=Level.WARN,
            subject=f"pool {pool}",
            problem=f"It does not enforce {' and '.join(limits)}, which {'is' if len(limits) == 1 else 'are'} set.",
            danger="A task that hangs hangs for ever.",
            mend="Use the prefork pool where time limits matter.",
        )


def content_findings(app: Celery) -> Iterator[Finding]:
    """Look whether workers unpickle what they are sent."""
    names = ("accept_content", "result_accept_content", "task_serializer", "result_serializer")
    values = {name: app.conf.get(name) or () for name in names}
    unsafe = [name for name, value in values.items() if _PICKLE & ({value} if isinstance(value, str) else set(value))]
    if unsafe:
        yield Finding(
            check="celery-pickle",
            level=Level.WARN,
            subject=" and ".join(unsafe),
            problem="Pickle is used or accepted.",
            danger="Whoever can write to the broker or the result backend can run any code in the workers.",
            mend="Use json: messages of batchkit are nothing else.",
        )


def eager_findings(app: Celery) -> Iterator[Finding]:
    """Look whether tasks are worked where they are sent."""
    if app.conf.task_always_eager:
        yield Finding(
            check="celery-eager",
            level=Level.WARN,
            subject="task_always_eager",
            problem="It is set, so whoever starts a run works it to its end, there and then.",
            danger="There are no slices and no workers: a web request or a deploy script takes as long as the run.",
            mend="Set it in tests only.",
        )
