"""The command that checks settings: doctor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from batchkit.cli.ending import DONE, FAILED
from batchkit.cli.invocation import AsJson, invocation

if TYPE_CHECKING:
    from batchkit.doctor import Finding


def add_to(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command()(doctor)


def doctor(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Name unsafe settings of the queue, the database and the jobs, each with its danger and its mend."""
    from batchkit.doctor import Level, examine  # noqa: PLC0415  it brings SQLAlchemy

    call = invocation(context)
    kit = call.kit(context, as_json=as_json)
    found = examine(kit)
    if as_json:
        call.print_json([{**asdict(each), "level": each.level.value} for each in found])
    else:
        _tell(found)
    raise typer.Exit(FAILED if any(each.level is Level.FAIL for each in found) else DONE)


def _tell(found: Sequence[Finding]) -> None:
    for each in found:
        typer.echo(
            f"{each.level.value.upper()} {each.subject}: {each.problem} {each.danger} {each.mend} [{each.check}]\n"
        )
    counts = Counter(each.level.value for each in found)
    typer.echo(", ".join(f"{number} {level}" for level, number in counts.items()) or "nothing found")
