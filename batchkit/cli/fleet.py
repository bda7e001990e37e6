"""Commands about workers: who is busy, draining an instance, and waiting until it is idle."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from batchkit.cli.ending import INTERRUPTED, UsageProblem
from batchkit.cli.invocation import AsJson, invocation

InstanceOption = Annotated[
    str | None,
    typer.Option("--instance", metavar="NAME", help="Another dyno, pod or machine, by the name that `busy` shows."),
]

_POLL_SECONDS = 0.3
_DRAIN_SECONDS = 900.0


def add_to(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command()(busy)
    app.command()(drain)
    app.command("wait-idle")(wait_idle)


def busy(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Tell who is busy with what, what waits, and who may safely be stopped."""
    from batchkit.busy import busy_facts  # noqa: PLC0415  beside the others
    from batchkit.cli.showing_busy import show_busy  # noqa: PLC0415  it brings rich

    call = invocation(context)
    found = call.kit(context, as_json=as_json).busy()
    if as_json:
        call.print_json(busy_facts(found))
    else:
        show_busy(found)


def drain(
    context: typer.Context,
    *,
    instance: InstanceOption = None,
    seconds: Annotated[
        float, typer.Option("--for", metavar="SECONDS", min=1, help="It ends by itself after so long.")
    ] = _DRAIN_SECONDS,
    off: Annotated[bool, typer.Option("--off", help="Let the workers here work again.")] = False,
) -> None:
    """Have the workers of this machine, pod or dyno stop at their next checkpoint, and take nothing more."""
    from batchkit.draining import DrainNotice  # noqa: PLC0415  beside the others
    from batchkit.instance import instance_name  # noqa: PLC0415  beside the others

    if instance is not None and instance != instance_name():
        if off:
            raise UsageProblem(f"--off is for the instance that it is run on; run it on {instance}")
        kit = invocation(context).kit(context)
        seen = kit.drain(instance)
        if not seen:
            raise UsageProblem(
                f"no worker of an instance {instance!r} has said lately that it is there; `batchkit busy` shows those "
                f"that have, and stock `rq worker`s say nothing: run `batchkit drain` on the instance itself"
            )
        typer.echo(f"{instance}: {seen} workers are asked to stop at their next checkpoint", err=True)
        return
    notice = DrainNotice()
    if off:
        _call_off_in_store(context, instance_name())
        notice.take_down()
        typer.echo(f"{instance_name()}: workers take work again", err=True)
        return
    # It needs neither the app nor the database: both may be what is wrong with the worker that is stopped.
    notice.put_up(seconds=seconds)
    typer.echo(
        f"{instance_name()}: workers stop at their next checkpoint, and take nothing for {seconds:g} s", err=True
    )


def _call_off_in_store(context: typer.Context, name: str) -> None:
    """Take back a drain that was asked for from afar, where the app is known; else the notice is put up again."""
    from batchkit.app import DATABASE_VARIABLE  # noqa: PLC0415  it brings SQLAlchemy
    from batchkit.errors import DatabaseUnavailable  # noqa: PLC0415  beside the others

    call = invocation(context)
    if call.spec is None and not os.environ.get(DATABASE_VARIABLE):
        return
    try:
        call.kit(context).undrain(name)
    except DatabaseUnavailable as error:
        typer.echo(f"batchkit: a drain that was asked for from afar goes on, if there is one: {error}", err=True)


def wait_idle(
    context: typer.Context,
    *,
    timeout: Annotated[float, typer.Option("--timeout", min=0, help="Give up after so many seconds, with 75.")],
    instance: InstanceOption = None,
) -> None:
    """Wait until no worker of this machine, pod or dyno is busy: after `drain`, in a platform's preStop."""
    from batchkit.app import DATABASE_VARIABLE  # noqa: PLC0415  it brings SQLAlchemy
    from batchkit.errors import DatabaseUnavailable  # noqa: PLC0415  beside the others
    from batchkit.instance import instance_name  # noqa: PLC0415  beside the others

    name = instance or instance_name()
    call = invocation(context)
    if call.spec is None and not os.environ.get(DATABASE_VARIABLE):
        # The embedded default is a file that may be made by this very look: nobody would ever be busy in it.
        raise UsageProblem(
            f"`wait-idle` looks into the database of your workers: give their kit with -A module:kit, or set "
            f"BATCHKIT_APP or {DATABASE_VARIABLE}"
        )
    kit = call.kit(context)
    until = time.monotonic() + timeout
    left: int | None = None
    while True:
        try:
            left = kit.busy_on(name)
        except DatabaseUnavailable as error:
            typer.echo(f"batchkit: {error}", err=True)
        if left == 0:
            typer.echo(f"{name} is idle", err=True)
            return
        if time.monotonic() >= until:
            break
        time.sleep(min(_POLL_SECONDS, max(0.0, until - time.monotonic())))
    typer.echo(f"{name} still works {'an unknown number of' if left is None else left} slices", err=True)
    raise typer.Exit(INTERRUPTED)
