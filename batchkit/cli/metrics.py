"""The command that serves metrics to Prometheus."""

from __future__ import annotations

from typing import Annotated

import typer

from batchkit.cli.ending import UsageProblem
from batchkit.cli.invocation import invocation

_PORT = 9464


def add_to(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command()(metrics)


def metrics(
    context: typer.Context,
    *,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes one that is free.")] = _PORT,
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "0.0.0.0",  # noqa: S104  as exporters do: who reads it is outside of the container
) -> None:
    """Serve what Prometheus reads, for the whole fleet, until SIGTERM or Ctrl-C. One of them is enough."""
    from batchkit.contrib.prometheus import serving  # noqa: PLC0415  it brings SQLAlchemy
    from batchkit.stopping import Stop, stopped_by_signals  # noqa: PLC0415  beside the others

    kit = invocation(context).kit(context, is_service=True)
    # Tables that are not there, or a database that cannot be reached, are told here and now.
    kit.check_tables()
    with Stop() as stop, stopped_by_signals(stop):
        try:
            with serving(kit, port=port, host=host) as address:
                typer.echo(f"serving metrics at {address}", err=True)
                while not stop.wait(3600.0):
                    continue
        except OSError as error:
            raise UsageProblem(f"nothing can listen at {host}, port {port}: {error}") from None
