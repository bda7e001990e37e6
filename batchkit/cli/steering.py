"""Commands that steer runs: pause, cancel, recover, supervise."""

from __future__ import annotations

from typing import Annotated

import typer

from batchkit.cli.ending import INTERRUPTED
from batchkit.cli.invocation import AsJson, Invocation, invocation
from batchkit.cli.reading import RunIdPart
from batchkit.run import Run


def add_to(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command()(pause)
    app.command()(cancel)
    app.command()(recover)
    app.command()(supervise)


def pause(context: typer.Context, id_: RunIdPart, *, as_json: AsJson = False) -> None:
    """Stop a run at its next chunk boundary, until `resume`."""
    from batchkit.cli.finding import find_run  # noqa: PLC0415  it brings SQLAlchemy

    call = invocation(context)
    _tell(call, find_run(call.kit(context, as_json=as_json), id_).pause(), as_json=as_json)


def cancel(context: typer.Context, id_: RunIdPart, *, as_json: AsJson = False) -> None:
    """End a run for good at its next chunk boundary. What was committed stays."""
    from batchkit.cli.finding import find_run  # noqa: PLC0415  it brings SQLAlchemy

    call = invocation(context)
    _tell(call, find_run(call.kit(context, as_json=as_json), id_).cancel(), as_json=as_json)


def recover(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Sweep once, as from cron. It queues the runs whose workers died, and wakes workers up."""
    call = invocation(context)
    swept = call.kit(context, as_json=as_json).recover()
    if as_json:
        call.print_json({"settled": list(swept.settled), "woken": list(swept.woken)})
    else:
        typer.echo(f"{len(swept.settled)} runs had no live worker, {len(swept.woken)} wait for one")


def supervise(
    context: typer.Context,
    *,
    every: Annotated[float, typer.Option("--every", min=0.1, metavar="SECONDS", help="How often to sweep.")] = 5.0,
) -> None:
    """Sweep for ever, until SIGTERM or Ctrl-C. Any number of supervisors at once is safe."""
    kit = invocation(context).kit(context, is_service=True)
    try:
        kit.supervise(every=every)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _tell(call: Invocation, run: Run, *, as_json: bool) -> None:
    from batchkit.cli.showing import run_facts, state_text  # noqa: PLC0415  it brings rich

    if as_json:
        call.print_json(run_facts(run))
    else:
        typer.echo(f"run {run.id} is {state_text(run)}")
