"""Commands for batchkit's tables: db upgrade, db current, db sql, db view."""

from __future__ import annotations

from typing import Annotated

import typer

from batchkit.cli.invocation import AsJson, invocation

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make and migrate batchkit's tables.")


@app.command()
def upgrade(context: typer.Context) -> None:
    """Bring the tables to this version. To do it twice, or from several processes at once, is harmless."""
    kit = invocation(context).kit(context)
    before, _ = kit.schema_version()
    kit.migrate()
    after, _ = kit.schema_version()
    change = f"is at version {after}" if before == after else f"went from version {before or 'none'} to {after}"
    typer.echo(f"{kit.database_url} {change}")


@app.command()
def current(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Show the version of the tables, and the one that this batchkit works with."""
    call = invocation(context)
    kit = call.kit(context, as_json=as_json)
    found, wanted = kit.schema_version()
    if as_json:
        call.print_json({"database": kit.database_url, "current": found, "wanted": wanted})
        return
    mend = "" if found == wanted else "; run `batchkit db upgrade`"
    typer.echo(f"{kit.database_url} is at version {found or 'none'}, this batchkit works with {wanted}{mend}")


@app.command()
def sql(context: typer.Context) -> None:
    """Print the statements that make the tables, for those who run migrations by hand."""
    typer.echo(invocation(context).kit(context).schema_sql())


@app.command()
def view(
    context: typer.Context,
    *,
    as_sql: Annotated[bool, typer.Option("--sql", help="Print the statement instead of running it.")] = False,
) -> None:
    """Make the view batchkit_busy, which tells by queue what waits and what is worked: for KEDA's postgresql scaler."""
    kit = invocation(context).kit(context)
    if as_sql:
        typer.echo(kit.busy_view_sql())
        return
    kit.make_busy_view()
    typer.echo(f"{kit.database_url} has the view batchkit_busy; `batchkit db upgrade` keeps it")
