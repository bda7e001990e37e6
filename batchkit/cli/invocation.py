"""What all commands share: which app they are for, and where they may print."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

import typer

import batchkit
from batchkit.cli.ending import UsageProblem
from batchkit.cli.logs import log_to_stderr

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]


@dataclass
class Invocation:
    """One call of the command line."""

    spec: str | None
    verbose: int
    shows_traceback: bool
    out: TextIO

    def kit(
        self, context: typer.Context, *, as_json: bool = False, needs_jobs: bool = False, is_service: bool = False
    ) -> batchkit.BatchKit:
        """
        Find the kit that the command is for: that of -A, else the embedded default.

        With *as_json*, what anybody else prints, such as the user's job, goes to stderr from here on.

        Raises:
            UsageProblem: there is no kit there, or none was named though the command *needs_jobs*.
        """
        from batchkit.cli.finding import find_kit  # noqa: PLC0415  it brings SQLAlchemy

        if as_json:
            context.with_resource(contextlib.redirect_stdout(sys.stderr))
        if self.spec is None:
            if needs_jobs:
                raise UsageProblem(
                    f"`{context.info_name}` needs your jobs: say where they are with -A module:kit, or set BATCHKIT_APP"
                )
            kit = batchkit.BatchKit()
        else:
            kit, self.spec = find_kit(self.spec)
        log_to_stderr(verbose=self.verbose, is_service=is_service, with_tracebacks=is_service or self.shows_traceback)
        context.call_on_close(kit.close)
        return kit

    def print_json(self, facts: object) -> None:
        """Print facts for programs."""
        self.out.write(json.dumps(facts, indent=2, allow_nan=False) + "\n")
        self.out.flush()

    def command(self, *words: str) -> str:
        """Give a command line for this same app, word for word as it can be typed here."""
        app = [] if self.spec is None else ["-A", self.spec]
        return shlex.join([*_this_program(), *app, *words])

    def module_command(self, *words: str) -> list[str]:
        """Give the same as a list that starts this Python with this batchkit, wherever it was called from."""
        app = [] if self.spec is None else ["-A", self.spec]
        return [sys.executable, "-m", "batchkit", *app, *["-v"] * self.verbose, *words]


def invocation(context: typer.Context) -> Invocation:
    """Give what the main command made."""
    found = context.find_object(Invocation)
    if found is None:
        message = "commands are run through batchkit.cli.app"
        raise RuntimeError(message)
    return found


def _this_program() -> list[str]:
    called = Path(sys.argv[0])
    if called.name != "__main__.py":
        return [_shortest(str(called))] if called.name == "batchkit" else ["batchkit"]
    return [_shortest(sys.executable), "-m", "batchkit"]


def _shortest(program: str) -> str:
    """Give the bare name where a shell would find the same file by it."""
    name = os.path.basename(program)  # noqa: PTH119  a pure change of text
    found = shutil.which(name)
    # Not resolved: a venv's python is a link to one that does not have the venv's packages.
    return name if found is not None and os.path.abspath(found) == os.path.abspath(program) else program  # noqa: PTH100
