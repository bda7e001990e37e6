"""Commands that let runs begin or go on: run, start, resume."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

import batchkit
from batchkit.cli.ending import INTERRUPTED, exit_code
from batchkit.cli.invocation import AsJson, Invocation, invocation
from batchkit.errors import JobNotFound
from batchkit.run import Run
from batchkit.states import Request, RunState
from batchkit.using import Terms

JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job's name, or the last parts of it.")]
Params = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Its params; KEY:=JSON for what is no text.", show_default=False),
]

Partitions = Annotated[
    int | None,
    typer.Option(
        "--partitions", min=1, metavar="N", help="Cut the items into N ranges, not as the job says.", show_default=False
    ),
]
MaxWorkers = Annotated[
    int | None,
    typer.Option(
        "--max-workers", min=1, metavar="N", help="Have N workers at a time, not as the job says.", show_default=False
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, metavar="N", help="End after so many items, to try it out.", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Roll every chunk back, to try it out.")]
After = Annotated[
    str | None,
    typer.Option(
        "--after", metavar="CURSOR", help="Begin behind this cursor: JSON, or text that is none.", show_default=False
    ),
]
Key = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="Name the start: the same key gives the same run.", show_default=False),
]
Queue = Annotated[
    str | None,
    typer.Option("--queue", metavar="NAME", help="The queue of its wake-ups, not the job's.", show_default=False),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command()(run)
    app.command()(start)
    app.command()(resume)


def run(
    context: typer.Context,
    job: JobName,
    params: Params = None,
    *,
    partitions: Partitions = None,
    max_workers: MaxWorkers = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    after: After = None,
    key: Key = None,
    queue: Queue = None,
    as_json: AsJson = False,
) -> None:
    """Start a run and work it here. Ctrl-C stops it after the chunk in flight; `resume` goes on from there."""
    from batchkit.cli.arguments import read_cursor, read_params  # noqa: PLC0415  it brings SQLAlchemy
    from batchkit.cli.finding import find_job  # noqa: PLC0415  the same

    call = invocation(context)
    kit = call.kit(context, as_json=as_json, needs_jobs=True)
    definition = find_job(kit, job)
    terms = Terms(
        partitions=partitions,
        max_workers=max_workers,
        limit=limit,
        dry_run=dry_run,
        after=read_cursor(after),
        key=key,
        queue=queue,
    )
    started = kit.start_run_here(definition, read_params(definition, params or []), terms)
    _tell_joined(started)
    raise typer.Exit(_work_here(call, kit, started, as_json=as_json))


def start(
    context: typer.Context,
    job: JobName,
    params: Params = None,
    *,
    partitions: Partitions = None,
    max_workers: MaxWorkers = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    after: After = None,
    key: Key = None,
    queue: Queue = None,
    as_json: AsJson = False,
) -> None:
    """Start a run for the workers, and print its id."""
    from batchkit.cli.arguments import read_cursor, read_params  # noqa: PLC0415  it brings SQLAlchemy
    from batchkit.cli.finding import find_job  # noqa: PLC0415  the same
    from batchkit.cli.showing import run_facts  # noqa: PLC0415  it brings rich

    call = invocation(context)
    kit = call.kit(context, as_json=as_json, needs_jobs=True)
    definition = find_job(kit, job)
    terms = Terms(
        partitions=partitions,
        max_workers=max_workers,
        limit=limit,
        dry_run=dry_run,
        after=read_cursor(after),
        key=key,
        queue=queue,
    )
    started = kit.start_run(definition, read_params(definition, params or []), terms)
    _tell_joined(started)
    if as_json:
        call.print_json(run_facts(started))
    else:
        typer.echo(started.id)


def resume(
    context: typer.Context,
    id_: Annotated[str, typer.Argument(metavar="ID", help="The run's id, or a part of it.")],
    *,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it to the workers and return at once.")] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="Go on with the source that the job has now: the cursor means the same.")
    ] = False,
    skip: Annotated[
        bool, typer.Option("--skip", help="Record the item that kills its workers as a failure and go on behind it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let a paused, failed or interrupted run go on. With the built-in queue it is worked here, with a live bar."""
    from batchkit.cli.finding import find_run  # noqa: PLC0415  it brings SQLAlchemy
    from batchkit.cli.showing import run_facts, state_text  # noqa: PLC0415  it brings rich
    from batchkit.queues.local import LocalQueue  # noqa: PLC0415  it brings SQLAlchemy

    call = invocation(context)
    kit = call.kit(context, as_json=as_json)
    found = find_run(kit, id_)
    works_here = isinstance(kit.queue, LocalQueue) and not detach
    if works_here and found.job not in kit.jobs:
        raise JobNotFound(found.job, known=kit.jobs)
    # One that is queued, or whose worker may have died, needs a worker and nothing else.
    if accept or skip or found.state not in {RunState.QUEUED, RunState.RUNNING} or found.requested is Request.PAUSE:
        found.resume(accept=accept, skip=skip)
    if works_here:
        raise typer.Exit(_work_here(call, kit, found, as_json=as_json))
    if as_json:
        call.print_json(run_facts(found))
    else:
        typer.echo(f"run {found.id} is {state_text(found)}")
    # A queue that works it at once gives it back at its end.
    raise typer.Exit(exit_code(found) if found.has_ended else 0)


def _tell_joined(run: Run) -> None:
    if run.was_joined:
        typer.echo(f"run {run.id} has this key already; it is {run.state}, and none was started", err=True)


def _work_here(call: Invocation, kit: batchkit.BatchKit, run: Run, *, as_json: bool) -> int:
    from batchkit.cli.showing import run_facts  # noqa: PLC0415  it brings rich
    from batchkit.cli.working import run_with_bar  # noqa: PLC0415  it brings SQLAlchemy

    # Before and after the work too, a signal means 75 and no sudden death: the run is there, and says how to go on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = run_with_bar(kit, run, again=call.command("resume", run.id))
    if code == INTERRUPTED:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if as_json:
        call.print_json(run_facts(run))
    return code
