"""`isthmus lineage`: the models that a model was merged from, and what those were merged from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("lineage", short_help="Print the tree of merges behind a model.")(lineage)


def lineage(
    model: Annotated[Path, typer.Argument(metavar="PATH", help="A merged model.")],
    parents: Annotated[
        Path | None,
        typer.Option(help="Folder in which parents are looked for; beside the model where not given."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the tree of merges behind a model, as far back as the models found here tell."""
    from isthmus.recipe.inspection.ancestry import draw, trace_back

    found = trace_back(model, parents)
    typer.echo(json.dumps(found.as_dict(), indent=1, ensure_ascii=False) if as_json else draw(found))
