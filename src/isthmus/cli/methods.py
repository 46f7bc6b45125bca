"""`isthmus methods`: what there is to choose from, and one of them whole."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from isthmus.cli import output


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("methods", short_help="List the methods there are, or show one whole.")(methods)


def methods(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND | NAME]",
            help="alignment, combination, repair, pruner or search: those; a method's name: all about it.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(help="The method, where its name is a kind as well: methods repair repair."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all about each as JSON.")] = False,
) -> None:
    """List the methods with what each needs, or show one whole: what it needs, claims and costs, options, examples."""
    from isthmus.describing import described
    from isthmus.listing import KINDS, method
    from isthmus.listing import methods as listed

    if name is not None or (kind is not None and kind not in KINDS):
        found = method(str(kind)) if name is None else method(name, kind)
        typer.echo(json.dumps(found.as_dict(), indent=1) if as_json else str(found))
        return
    rows = listed(kind)
    if as_json:
        typer.echo(json.dumps([described(row).as_dict() for row in rows], indent=1))
        return
    typer.echo(str(rows))
    output.say(f"\nAll about one: isthmus methods {f'{kind} ' if kind == 'repair' else ''}{rows[-1].name}")
