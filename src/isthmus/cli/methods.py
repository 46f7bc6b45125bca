"""`isthmus methods`: what there is to choose from."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("methods")(methods)


def methods(
    kind: Annotated[
        str | None,
        typer.Argument(help="alignment, combination, repair, pruner or search; all where not given."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List every method with what it needs and what it does."""
    from isthmus.listing import methods as listed

    rows = listed(kind)
    if as_json:
        fields = ("name", "kind", "summary", "needs", "claims", "source")
        typer.echo(json.dumps([{f: getattr(row, f) for f in fields} for row in rows], indent=1))
    else:
        typer.echo(str(rows))
