"""`isthmus diff`: how far two models of one architecture are from each other, block by block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("diff", short_help="Compare two checkpoints: structure, distance, signs.")(diff)


def diff(
    a: Annotated[Path, typer.Argument(help="A model.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    base: Annotated[
        Path | None, typer.Option(help="What both were trained from: then their task vectors are compared.")
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="One line per tensor, not per block.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, every tensor.")] = False,
) -> None:
    """Compare structure, distance, direction and signs of two models."""
    from isthmus import progress
    from isthmus.recipe.inspection.difference import difference

    progress.enable()
    found = difference(a, b, base=base)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1, ensure_ascii=False))
    else:
        typer.echo(found.table(tensors=tensors))
