"""`isthmus inspect`: what a model is and what it came from, from headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("inspect", short_help="Say what a model is: tensors, layers, configuration.")(inspect)


def inspect(
    model: Annotated[Path, typer.Argument(metavar="PATH", help="A folder, a file of weights or an index.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, tensors included.")] = False,
) -> None:
    """Say what a model is: its tensors, layers, configuration, and how it was merged if it was."""
    from isthmus.recipe.inspection.inspecting import inspect as look

    found = look(model)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1, ensure_ascii=False))
        return
    typer.echo(str(found))
    if tensors:
        typer.echo(found.table())
