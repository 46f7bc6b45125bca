"""`isthmus plan`: what a recipe will do, and everything that is wrong with it, before a tensor is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("plan", short_help="Check a recipe against the headers of its models.")(plan)


def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yml", help="A recipe in mergekit's words.")],
    table: Annotated[
        bool, typer.Option("--table", help="Print the weight and parameters of every output tensor.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON.")] = False,
) -> None:
    """Check a recipe against the headers of its models; nothing is read or written beyond them."""
    from isthmus import plan as plan_recipe
    from isthmus.recipe.planning.show import dump

    found = plan_recipe(recipe)
    if as_json:
        typer.echo(dump(found))
    elif table:
        typer.echo(found.table())
    else:
        typer.echo(str(found))
