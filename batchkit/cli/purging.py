"""The command that removes runs which ended long ago."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer

from batchkit.cli.ending import UsageProblem
from batchkit.cli.invocation import AsJson, invocation
from batchkit.states import RunState

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def add_to(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command()(purge)


def purge(
    context: typer.Context,
    *,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Such as 30d, 12h, 90m: a number and s, m, h, d or w.")
    ],
    state: Annotated[
        list[RunState] | None, typer.Option("--state", help="Only those in this state; may be given again.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="So many runs at most.")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove runs that ended long ago, with their failures and histories. Keys stay good."""
    age = _age(older_than)
    call = invocation(context)
    purged = call.kit(context, as_json=as_json).purge(age, state=state or None, limit=limit)
    if as_json:
        call.print_json(asdict(purged))
        return
    kept = f"; of {purged.kept} more, what their keys are for was kept" if purged.kept else ""
    typer.echo(f"{purged.runs} runs, {purged.failures} failures and {purged.transitions} changes were removed{kept}")


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip().lower())
    if found is None:
        raise UsageProblem(f"--older-than {text}: write a number and its unit, such as 30d, 12h or 90m")
    try:
        return timedelta(**{_UNITS[found[2]]: float(found[1])})
    except OverflowError:
        raise UsageProblem(f"--older-than {text}: no run is so old") from None
