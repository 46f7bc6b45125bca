"""The page of a diagnosis: what was found and what to do, the layers, and every recipe that was tried."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.report import text
from isthmus.report.page import page_template
from isthmus.report.plots import Spec, figures_json, plain, plotly_js
from isthmus.report.theme import THEMES, Theme, template
from isthmus.report.write import write_text

if TYPE_CHECKING:  # the rest of this room imports no torch
    from isthmus.diagnose import Attempt, Diagnosis
    from isthmus.measure import Finding

_BETTER = {"higher": "higher is better", "lower": "lower is better", None: "neither way is better by itself"}


def render_diagnosis(
    found: Diagnosis, path: str | os.PathLike[str], *, title: str = "", command: str = ""
) -> Path:
    """Write a diagnosis as one self-contained HTML page, whole or not at all.

    Args:
        found: the diagnosis.
        path: of the page.
        title: of the page; by default what was diagnosed.
        command: the command line, for the record.

    Raises:
        MissingExtraError: plotly or jinja2 is not installed (the extra `report`).
        InputError: the file cannot be written.
    """
    # What was measured of each model stands in the table alone.
    layered = [f for f in found.findings.values() if len(f.layers) > 1 and not {*f.layers} & {*found.names}]
    tried = [a for a in found.attempts if a.accuracy is not None]
    figures = {f"layers-{i}": figures_json([_profile(f, t) for t in THEMES]) for i, f in enumerate(layered)}
    if tried:
        figures["grid"] = figures_json([_grid(tried, theme) for theme in THEMES])
    page = page_template("diagnosis.html.j2").render(
        title=title or f"Diagnosis of {' and '.join(found.names)}",
        found=found,
        parents=list(zip(found.names, map(text.percent, found.parents), strict=True)),
        ensemble=text.percent(found.ensemble),
        chance=text.percent(found.chance),
        best=[_best(budget, attempt) for budget, attempt in found.best.items()],
        commands=found.commands,
        layered=[_table(f) for f in layered],
        reading=[_reading(f) for f in layered],
        findings=[_row(f) for f in found.findings.values()],
        attempts=[_attempt(a) for a in found.attempts],
        settings=[(key, text.name(text.value(value))) for key, value in found.settings.items()],
        command=command,
        figures=figures,
        plotly=plotly_js() if figures else "",
    )
    return write_text(path, page)


def _best(budget: float, attempt: Attempt) -> dict[str, str]:
    return {
        "budget": f"{budget:g}×",
        "recipe": str(attempt.recipe),
        "parameters": text.times(attempt.parameters),
        "accuracy": text.percent(attempt.score),
    }


def _row(finding: Finding) -> dict[str, str]:
    unit = "" if finding.unit == "1" else f" {finding.unit}"
    return {
        "name": finding.name,
        "value": text.number(finding.value) + unit,
        "better": _BETTER[finding.better],
        "note": finding.note,
    }


def _attempt(attempt: Attempt) -> dict[str, str]:
    return {
        "recipe": str(attempt.recipe),
        "parameters": text.times(attempt.parameters),
        "accuracy": text.percent(attempt.accuracy),
        "whole": text.percent(attempt.whole),
        "note": attempt.refused,
    }


def _table(finding: Finding) -> dict[str, object]:
    values = text.together(list(finding.layers.values()))
    return {"name": finding.name, "rows": list(zip(finding.layers, values, strict=True))}


def _reading(finding: Finding) -> str:
    note = finding.note.rstrip(".")
    return f"{_BETTER[finding.better]}{'; ' + note if note else ''}. Layers stand in order of execution."


def _profile(finding: Finding, theme: Theme) -> Spec:
    """One value per layer; layers are numbered, since their names have no room, and named by hovering."""
    names, values = list(finding.layers), list(finding.layers.values())
    numbers = list(range(1, len(names) + 1))
    unit = "" if finding.unit == "1" else f" ({finding.unit})"
    every = numbers[:: math.ceil(len(numbers) / 10)]
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": numbers,
                "y": [v if math.isfinite(v) else None for v in values],
                "line": {"color": theme.accent, "width": 2},
                "marker": {"color": theme.accent, "size": 6},
                "text": [plain(n) for n in names],
                "hovertemplate": "%{text}: %{y:.4g}<extra></extra>",
            }
        ],
        "layout": {
            "template": template(theme),
            "hovermode": "closest",
            "margin": {"l": 62, "r": 12, "t": 12, "b": 46},
            "xaxis": {"title": {"text": "layer"}, "tickvals": every},
            "yaxis": {
                "title": {"text": plain(finding.name + unit)},
                "nticks": 7,
                "rangemode": "tozero" if finding.bounds[0] == 0 else "normal",
            },
        },
    }


def _grid(tried: Sequence[Attempt], theme: Theme) -> Spec:
    """Accuracy of every alignment and repair, over how many layers are kept apart."""
    across = sorted({a.recipe.preserve_first for a in tried})
    upward = list(dict.fromkeys(_way(a) for a in tried))[::-1]
    known = {(a.recipe.preserve_first, _way(a)): a.accuracy for a in tried}
    values = [[known.get((x, y)) for x in across] for y in upward]
    return {
        "data": [
            {
                "type": "heatmap",
                "x": [str(x) for x in across],
                "y": [plain(text.short(y, 34)) for y in upward],
                "z": [[None if v is None else 100 * v for v in row] for row in values],
                "text": [["" if v is None else f"{100 * v:.1f}" for v in row] for row in values],
                "texttemplate": "%{text}",
                "hovertemplate": "%{y}, first %{x} layers apart: %{z:.2f} %<extra></extra>",
                "colorscale": [[0, theme.raised], [1, theme.accent]],
                "showscale": False,
                "xgap": 2,
                "ygap": 2,
            }
        ],
        "layout": {
            "template": template(theme),
            "hovermode": "closest",
            "margin": {"l": 12, "r": 12, "t": 12, "b": 46},
            "xaxis": {"title": {"text": "first layers kept apart"}, "type": "category"},
            "yaxis": {"type": "category", "automargin": True},
        },
    }


def _way(attempt: Attempt) -> str:
    recipe = attempt.recipe
    return " + ".join(filter(None, (recipe.align or "as they are", recipe.repair)))
