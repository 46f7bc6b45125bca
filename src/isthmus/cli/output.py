"""What the verbs show and write: a table on stdout, a page and JSON in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from isthmus.comparing import Comparison
    from isthmus.report.results import Results


def say(text: str) -> None:
    """A line for the person, not for the pipe."""
    typer.echo(text, err=True)


def show(results: Results, as_json: bool) -> None:
    """Print the table of a comparison, or its JSON."""
    if as_json:
        typer.echo(results.model_dump_json(indent=1))
        return
    from rich.console import Console

    from isthmus.report.terminal import table

    console = Console()
    console.print(table(results))
    console.print(results.verdict, highlight=False)


def write(comparison: Comparison, folder: Path) -> None:
    """Write results.json, report.html and the best weights into a folder."""
    from isthmus.report import render

    folder.mkdir(parents=True, exist_ok=True)
    written = [comparison.results.to_json(folder / "results.json")]
    written.append(render(comparison.results, folder / "report.html"))
    written.append(comparison.best.save(folder / "merged.safetensors"))
    if comparison.bridge is not None:
        written.append(comparison.bridge.save(folder / "kept-apart.safetensors"))
    say("wrote " + ", ".join(str(path) for path in written))
