"""The command that serves who is busy over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from batchkit.cli.ending import UsageProblem
from batchkit.cli.invocation import invocation

_PORT = 8080


def add_to(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("serve-busy")(serve_busy)


def serve_busy(
    context: typer.Context,
    *,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Where it listens; 0 for any.")] = _PORT,
    host: Annotated[str, typer.Option("--host", help="The address that it listens on; by default all.")] = "",
    queue: Annotated[
        list[str] | None,
        typer.Option("--queue", metavar="NAME", help="A queue that is known though it be empty; may be given again."),
    ] = None,
) -> None:
    """Serve over HTTP what `busy --json` prints, for KEDA's metrics-api, until SIGTERM or Ctrl-C."""
    from batchkit.contrib.http import BusyServer, busy_app  # noqa: PLC0415  it brings SQLAlchemy
    from batchkit.stopping import Stop, stopped_by_signals  # noqa: PLC0415  beside the others

    kit = invocation(context).kit(context, is_service=True)
    try:
        server = BusyServer(busy_app(kit, queues=queue or ()), port=port, host=host)
    except OSError as error:
        raise UsageProblem(f"port {port} cannot be had ({error.strerror}); give another with --port") from error
    typer.echo(f"batchkit: serving on port {server.port}: /v1/busy, /v1/queues/NAME, /healthz, /readyz", err=True)
    with Stop() as stop, stopped_by_signals(stop):
        while not stop.wait(3600.0):
            pass
    server.close()
