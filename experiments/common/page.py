"""README tables and line charts out of measured numbers."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from isthmus.report.theme import THEMES

mpl.use("Agg")

#: One line: (x, mean, deviation) at each place.
Line = Sequence[tuple[float, float, float]]

STYLES = ("-", "--", ":", "-.")


def read(folder: Path) -> dict[str, Any]:
    """What has been measured, by the names of the files."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def write(folder: Path, head: str, sections: Sequence[Sequence[str]], known: Mapping[str, Any]) -> None:
    """Put a head and sections into a folder's README, above what is written there by hand."""
    page = folder / "README.md"
    notes = page.read_text().split("<!-- notes -->")[-1] if page.exists() else "\n"
    told = [
        f"`{name}` --scale {k['settings']['scale']:g} --seeds {len(k['settings']['seeds'])}, "
        f"{k['seconds'] / 60:.1f} min"
        for name, k in known.items()
    ]
    size = prose(f"Results here, with minutes of one processor core, training apart: {'; '.join(told)}.")
    lines = [head.strip(), "", *size, "", *(line for section in sections for line in (*section, ""))]
    page.write_text("\n".join(lines) + "\n<!-- notes -->" + notes)


def prose(text: str) -> list[str]:
    """Lines of a paragraph."""
    return textwrap.wrap(text, 116, break_long_words=False, break_on_hyphens=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def spread(values: Sequence[float], scale: float = 100.0, digits: int = 2) -> str:
    """Mean ± standard deviation, or the one value there is."""
    if not values:
        return ""
    told = f"{scale * mean(values):.{digits}f}"
    return told + (f" ± {scale * stdev(values):.{digits}f}" if len(values) > 1 else "")


def point(x: float, values: Sequence[float], scale: float = 1.0) -> tuple[float, float, float]:
    """One place of a line."""
    return x, scale * mean(values), scale * stdev(values) if len(values) > 1 else 0.0


def chart(
    path: Path,
    title: str,
    x_title: str,
    y_title: str,
    lines: Mapping[str, Line],
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Draw lines with bands of one standard deviation as an SVG file.

    Args:
        path: of the file.
        title: what is drawn.
        x_title: of the axis.
        y_title: of the axis, with its unit.
        lines: by name.
        log_x: a logarithmic axis.
        log_y: likewise; bands are left out then.

    Returns:
        The line of a page that shows it.
    """
    theme = THEMES[0]
    # The same numbers give the same bytes.
    with plt.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
        for number, (name, line) in enumerate(lines.items()):
            colour, style = theme.series[number % len(theme.series)], STYLES[number % len(STYLES)]
            xs, means, deviations = (np.array(values) for values in zip(*line, strict=True))
            axes.plot(xs, means, style, color=colour, label=name)
            if not log_y:
                axes.fill_between(
                    xs, means - deviations, means + deviations, color=colour, alpha=0.15, linewidth=0
                )
        if log_x:
            axes.set_xscale("log", base=2)
            ticks = sorted({x for line in lines.values() for x, _, _ in line})
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        if log_y:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set(title=title, xlabel=x_title, ylabel=y_title)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)
    return f"![{title}](results/{path.name})"
