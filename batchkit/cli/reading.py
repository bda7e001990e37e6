"""Commands that tell how things stand: runs, show, watch, jobs."""

from __future__ import annotations

import inspect
import time
from typing import Annotated

import typer

from batchkit.cli.ending import INTERRUPTED, exit_code
from batchkit.cli.invocation import AsJson, invocation
from batchkit.run import Run
from batchkit.states import RunState

RunIdPart = Annotated[str, typer.Argument(metavar="ID", help="The run's id, or a part of it.")]

_POLL_SECONDS = 0.5


def add_to(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command()(runs)
    app.command()(show)
    app.command()(watch)
    app.command()(jobs)


def runs(
    context: typer.Context,
    *,
    job: Annotated[str | None, typer.Option("--job", metavar="JOB", help="Only those of this job.")] = None,
    state: Annotated[
        list[RunState] | None, typer.Option("--state", help="Only those in this state; may be given again.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="So many at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the newest runs."""
    from batchkit.cli.finding import find_job  # noqa: PLC0415  it brings SQLAlchemy
    from batchkit.cli.showing import run_facts, show_runs  # noqa: PLC0415  it brings rich
    from batchkit.errors import JobNotFound  # noqa: PLC0415  beside the others

    call = invocation(context)
    kit = call.kit(context, as_json=as_json)
    try:
        name = None if job is None else find_job(kit, job).name
    except JobNotFound:
        # The database may hold runs of jobs that this process does not know.
        name = job
    found = kit.runs(job=name, state=state or None, limit=limit)
    if as_json:
        call.print_json([run_facts(each) for each in found])
    elif found:
        show_runs(found)
    else:
        typer.echo(f"no such runs in {kit.database_url}", err=True)


def show(context: typer.Context, id_: RunIdPart, *, as_json: AsJson = False) -> None:
    """Show all about one run. That is its progress, partitions, changes of state, and the error's traceback."""
    from batchkit.cli.finding import find_run  # noqa: PLC0415  it brings SQLAlchemy
    from batchkit.cli.showing import full_facts, show_run  # noqa: PLC0415  it brings rich

    call = invocation(context)
    run = find_run(call.kit(context, as_json=as_json), id_)
    partitions, history = run.partitions(), run.history()
    if as_json:
        call.print_json(full_facts(run, partitions, history))
    else:
        show_run(run, partitions, history)


def watch(
    context: typer.Context,
    id_: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The run's id, or a part of it; else the newest.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Follow a run that others work, until it ends. Ctrl-C stops the watching, not the run."""
    from batchkit.cli.finding import find_newest, find_run  # noqa: PLC0415  it brings SQLAlchemy
    from batchkit.cli.showing import run_facts  # noqa: PLC0415  it brings rich

    call = invocation(context)
    kit = call.kit(context, as_json=as_json)
    run = find_newest(kit) if id_ is None else find_run(kit, id_)
    try:
        _follow(run)
    except KeyboardInterrupt:
        typer.echo(f"run {run.id} goes on without being watched", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        call.print_json(run_facts(run))
    else:
        typer.echo(f"run {run.id} of {run.job} {run.state}: {run.progress.done:,} items done")
        if run.error is not None:
            typer.echo(f"{run.error}", err=True)
    raise typer.Exit(exit_code(run))


def jobs(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the jobs of the app with their params."""
    from batchkit.cli.arguments import param_types, shown_params, shown_type  # noqa: PLC0415  it brings SQLAlchemy
    from batchkit.cli.showing import plain, show_table  # noqa: PLC0415  it brings rich

    call = invocation(context)
    known = [job for _, job in sorted(call.kit(context, as_json=as_json, needs_jobs=True).jobs.items())]
    if not as_json:
        rows = [[job.name, shown_params(job), job.options.queue, str(job.options.chunk_size)] for job in known]
        show_table(["job", "params", "queue", "chunk size"], rows)
        return
    call.print_json(
        [
            {
                "name": job.name,
                "params": [
                    {
                        "name": name,
                        "type": shown_type(param_types(job)[name]),
                        "required": parameter.default is inspect.Parameter.empty,
                        "default": None if parameter.default is inspect.Parameter.empty else plain(parameter.default),
                    }
                    for name, parameter in job.signature.parameters.items()
                ],
                "queue": job.options.queue,
                "chunk_size": job.options.chunk_size if isinstance(job.options.chunk_size, int) else "adaptive",
                "lease_seconds": job.options.lease,
                "slice_seconds": job.options.slice_time,
            }
            for job in known
        ]
    )


def _follow(run: Run) -> None:
    from batchkit.cli.bar import Bar, Pace, Sight  # noqa: PLC0415  it brings rich

    pace = Pace()
    with Bar(run.job) as bar:
        while True:
            progress = run.progress
            pace.add(progress.passed)
            note = run.state.value if run.waiting_reason is None else f"{run.state}: {run.waiting_reason}"
            bar.show(
                Sight(
                    done=progress.done,
                    failed=progress.failed,
                    total=progress.total,
                    total_is_estimate=progress.total_is_estimate,
                    rate=pace.rate if run.state is RunState.RUNNING else None,
                    chunk_size=progress.chunk_size,
                    note=note,
                    in_doubt=progress.in_doubt,
                )
            )
            if run.has_ended:
                return
            time.sleep(_POLL_SECONDS)
            run.refresh()
