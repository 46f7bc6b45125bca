"""What the verbs show and write: a table on stdout, a page and JSON in a folder."""

from __future__ import annotations

import importlib.util
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


def ready(folder: Path, option: str = "--out") -> None:
    """Make sure, before any work, that results can be written and rendered.

    Raises:
        InputError: the folder cannot be made or written, or is named like a file.
        MissingExtraError: what renders the page is not installed.
    """
    import os

    from isthmus.errors import InputError, MissingExtraError

    for package in ("jinja2", "plotly"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"the report needs {package}", hint="pip install 'isthmus[report]'")
    if folder.suffix in (".html", ".json"):
        raise InputError(
            f"{option} {folder}: a folder is written, with report.html in it", hint=f"{option} {folder.stem}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option} {folder}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{option} {folder}: the folder cannot be written")


def write(comparison: Comparison, folder: Path) -> None:
    """Write the best weights, results.json and report.html into a folder."""
    from isthmus.report import render

    written = [comparison.best.save(folder / "merged.safetensors")]
    if comparison.bridge is not None:
        written.append(comparison.bridge.save(folder / "kept-apart.safetensors"))
    written.append(comparison.results.to_json(folder / "results.json"))
    written.append(render(comparison.results, folder / "report.html"))
    say("wrote " + ", ".join(str(path) for path in written))
