"""
The command line.

Modules that need the database, and so SQLAlchemy, are imported when a command runs: `--help` does not wait for them.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from typing import Annotated

import typer

from batchkit.cli import checking, failing, fleet, purging, reading, schema, starting, steering, workers
from batchkit.cli.ending import USAGE, UsageProblem, one_line
from batchkit.cli.invocation import Invocation
from batchkit.errors import BatchkitError

APP_VARIABLE = "BATCHKIT_APP"
TRACEBACK_VARIABLE = "BATCHKIT_TRACEBACK"

app = typer.Typer(
    name="batchkit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def batchkit(
    context: typer.Context,
    *,
    spec: Annotated[
        str | None,
        typer.Option("--app", "-A", metavar="MODULE:KIT", envvar=APP_VARIABLE, help="Where your BatchKit is."),
    ] = None,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Log more.")] = 0,
    shows_traceback: Annotated[
        bool, typer.Option("--traceback", envvar=TRACEBACK_VARIABLE, help="Show the whole traceback of an error.")
    ] = False,
) -> None:
    """
    Start, watch, steer and work runs of batch jobs.

    Exit codes: 0 done, 1 failed or cancelled, 2 wrong usage, 75 interrupted or paused, so that `resume` goes on.
    """
    context.obj = Invocation(spec=spec or None, verbose=verbose, shows_traceback=shows_traceback, out=sys.stdout)


starting.add_to(app)
reading.add_to(app)
steering.add_to(app)
failing.add_to(app)
workers.add_to(app)
fleet.add_to(app)
checking.add_to(app)
purging.add_to(app)
app.add_typer(schema.app, name="db")


def main() -> None:
    """Do what the command line says, and exit with its code."""
    arguments = _global_options_first(sys.argv[1:])
    try:
        app(args=arguments, prog_name="batchkit")
    except (BatchkitError, UsageProblem) as error:
        if "--traceback" in arguments or os.environ.get(TRACEBACK_VARIABLE, "") not in {"", "0"}:
            traceback.print_exc()
        else:
            print(f"batchkit: {one_line(error)}", file=sys.stderr)  # noqa: T201  it talks to a person
        sys.exit(USAGE)


def _global_options_first(arguments: list[str]) -> list[str]:
    """Let options of all commands stand behind the command too: `batchkit runs -A module:kit`."""
    first: list[str] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--":
            rest += [argument, *waiting]
        elif argument in {"-A", "--app"}:
            first += [argument, *([value] if (value := next(waiting, None)) is not None else [])]
        elif re.fullmatch(r"-A.+|--app=.*|-v+|--verbose|--traceback", argument, re.DOTALL):
            first.append(argument)
        else:
            rest.append(argument)
    return first + rest
