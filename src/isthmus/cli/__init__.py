"""The command line: one file per verb; each parses, calls one library function, and prints.

`isthmus --help` imports no torch: a verb imports what it needs when it runs.
"""

from __future__ import annotations

import logging
import sys

import typer

from isthmus.cli import (
    align,
    compare,
    demo,
    diagnose,
    diff,
    inspect,
    lineage,
    merge,
    methods,
    plan,
    prune,
    soup,
    statistics,
    sweep,
    symmetry,
)
from isthmus.errors import IsthmusError

#: What typer ends with where somebody has pressed Ctrl-C.
INTERRUPTED = 130

app = typer.Typer(
    name="isthmus",
    help="Merge neural networks, and say why a merge works or fails.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in (
    demo,
    symmetry,
    plan,
    statistics,
    align,
    merge,
    prune,
    soup,
    sweep,
    compare,
    diagnose,
    inspect,
    diff,
    lineage,
    methods,
):
    verb.register(app)


def main() -> None:
    """Run the command line. Errors that we raise on purpose end with exit code 2, without a traceback."""
    # Where a model does not fit its inputs our error says it in a line, and torch in thirty before.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    try:
        app()
    except IsthmusError as error:
        what, *rest = error.render().splitlines()
        typer.echo("\n".join([f"error: {what}", *rest]), err=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            typer.echo("interrupted", err=True)
        raise
