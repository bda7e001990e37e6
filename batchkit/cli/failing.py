"""Commands about items that failed: failures, retry-failures."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from batchkit.cli.invocation import AsJson, invocation
from batchkit.cli.reading import RunIdPart
from batchkit.run import Run

if TYPE_CHECKING:
    from batchkit.model import Failure

_PAGE = 1000
_COLUMNS = (
    "id",
    "item",
    "error_type",
    "message",
    "cursor",
    "partition",
    "attempts",
    "failed_at",
    "resolved_at",
    "in_doubt",
)
_SHOWN = 60


def add_to(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command()(failures)
    app.command(name="retry-failures")(retry_failures)


def failures(
    context: typer.Context,
    id_: RunIdPart,
    *,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all of them as CSV, tracebacks included.")] = False,
    shows_all: Annotated[bool, typer.Option("--all", help="Also those that were done since.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="So many at most, where people read them.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the items of a run that failed, each with its error."""
    from batchkit.cli.finding import find_run  # noqa: PLC0415  it brings SQLAlchemy

    call = invocation(context)
    run = find_run(call.kit(context, as_json=as_json), id_)
    found = (each for each in _all(run) if shows_all or each.resolved_at is None)
    if as_csv:
        _write_csv(found)
    elif as_json:
        call.print_json([_facts(each) for each in found])
    else:
        _show(run, found, limit=limit)


def retry_failures(
    context: typer.Context,
    id_: RunIdPart,
    *,
    in_doubt: Annotated[
        bool, typer.Option("--in-doubt", help="Also items that may have happened: these may happen twice.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start a run of the items of another that failed, once what made them fail is mended."""
    from batchkit.cli.finding import find_run  # noqa: PLC0415  it brings SQLAlchemy
    from batchkit.cli.showing import run_facts  # noqa: PLC0415  it brings rich

    call = invocation(context)
    run = find_run(call.kit(context, as_json=as_json), id_).retry_failures(in_doubt=in_doubt)
    if as_json:
        call.print_json(run_facts(run))
    else:
        typer.echo(run.id)


def _all(run: Run) -> Iterator[Failure]:
    after = 0
    while page := run.failures(after=after, limit=_PAGE):
        yield from page
        after = page[-1].id


def _facts(failure: Failure) -> dict[str, object]:
    from batchkit.cli.showing import plain  # noqa: PLC0415  it brings rich

    return {**{name: plain(getattr(failure, name)) for name in _COLUMNS}, "traceback": failure.traceback}


def _write_csv(found: Iterator[Failure]) -> None:
    out = csv.writer(sys.stdout)
    out.writerow([*_COLUMNS, "traceback"])
    out.writerows(_facts(each).values() for each in found)


def _show(run: Run, found: Iterator[Failure], *, limit: int) -> None:
    from batchkit.cli.showing import local, show_table  # noqa: PLC0415  it brings rich

    rows = [
        [
            str(each.id),
            _short(each.item),
            _short(f"{each.error_type}: {each.message}"),
            "yes" if each.in_doubt else "",
            local(each.failed_at),
        ]
        for each in islice(found, limit)
    ]
    if not rows:
        typer.echo(f"run {run.id} has no failures that are open", err=True)
        return
    show_table(["id", "item", "error", "in doubt", "when"], rows)
    if next(found, None) is not None:
        typer.echo(f"and more: --limit N, --csv or --json shows them (these are the first {limit})", err=True)


def _short(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."
