"""The command of the built-in queue's workers."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from batchkit.cli.ending import INTERRUPTED, UsageProblem
from batchkit.cli.invocation import invocation
from batchkit.cli.parent import PARENT_VARIABLE, end_with_parent


def add_to(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command()(work)


def work(
    context: typer.Context,
    *,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes", min=1, help="How many worker processes; by default what the kit's LocalQueue says."
        ),
    ] = None,
    queue: Annotated[
        list[str] | None, typer.Option("--queue", metavar="NAME", help="Only this queue; may be given again.")
    ] = None,
) -> None:
    """Work whatever is due, until SIGTERM or Ctrl-C. A second signal rolls the chunks in flight back."""
    # First of all: while the app is imported the parent may die.
    is_child = PARENT_VARIABLE in os.environ
    end_with_parent(os.environ)
    from batchkit.queues.local import LocalQueue  # noqa: PLC0415  it brings SQLAlchemy

    call = invocation(context)
    kit = call.kit(context, needs_jobs=True, is_service=True)
    if not isinstance(kit.queue, LocalQueue):
        raise UsageProblem(
            f"the workers of this kit are those of {type(kit.queue).__name__}; `work` is for the built-in LocalQueue"
        )
    wanted = processes or kit.queue.processes
    # Tables that are not there, or a database that cannot be reached, are told here and now, not by each child.
    kit.runs(limit=1)
    if wanted > 1:
        from batchkit.cli.deaths import Deaths  # noqa: PLC0415  only here
        from batchkit.cli.pool import work_in_children  # noqa: PLC0415  only here
        from batchkit.stopping import Stop  # noqa: PLC0415  only here
        from batchkit.tracking import WorkerKind  # noqa: PLC0415  it brings SQLAlchemy

        kit.close()
        options = [part for name in queue or [] for part in ("--queue", name)]
        command = call.module_command("work", "--processes", "1", *options)
        tracker = kit.tracker()
        with Stop() as stop:
            kind = WorkerKind("local", tuple(sorted(queue)) if queue else None, wanted)
            tracker.start(kind, is_stopping=lambda: stop.requested)
            try:
                code = work_in_children(command, wanted, deaths=Deaths(kit), stop=stop)
            finally:
                tracker.stop()
        raise typer.Exit(code)
    try:
        kit.work(queues=queue or None, is_main=not is_child)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
