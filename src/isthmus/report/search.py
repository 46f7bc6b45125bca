"""The page of a search: what was found, every step, and a heat map where two things were varied."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.report import text
from isthmus.report.page import page_template
from isthmus.report.plots import Spec, figures_json, plain, plotly_js
from isthmus.report.theme import THEMES, Theme, template
from isthmus.report.write import write_text

if TYPE_CHECKING:  # the rest of this room imports no torch
    from isthmus.report.results import Panel
    from isthmus.search import Searched, Step

#: More steps than this have no room for their names on the axis.
_NAMED = 16
#: Nor have names longer than this, in characters.
_LONG = 14


def render_search(
    found: Searched,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    axes: Sequence[str] = (),
    measured: Mapping[str, float] | None = None,
    measure: str = "",
    command: str = "",
    panels: Sequence[Panel] = (),
) -> Path:
    """Write a search as one self-contained HTML page, whole or not at all.

    Args:
        found: the search.
        path: of the page.
        title: of the page; by default what the search was.
        axes: two names of what was varied, across and upward: drawn as a heat map.
        measured: name -> a number that was measured afterwards, on data that nothing was chosen on.
        measure: what that number is ("test accuracy, fraction").
        command: the command line, for the record.
        panels: first-layer units of the models and of what was found, as pictures (`isthmus.report.pictures`).

    Raises:
        MissingExtraError: plotly or jinja2 is not installed (the extra `report`).
        InputError: the file cannot be written.
    """
    scored = [step for step in found.steps if step.score is not None]
    figures = {"steps": figures_json([_steps(found.steps, theme) for theme in THEMES])} if scored else {}
    if len(axes) == 2:
        figures["grid"] = figures_json([_heat_map(found.steps, axes, theme) for theme in THEMES])
    page = page_template("search.html.j2").render(
        title=title or f"{found.kind} of {len(found.members)} models",
        found=found,
        chosen=[(key, text.value(_shown(value))) for key, value in found.chosen.items()],
        score=text.number(found.score),
        rows=_rows(found.steps),
        measured=[(name, text.number(value)) for name, value in (measured or {}).items()],
        measure=measure,
        settings=[(key, text.name(text.value(_shown(v)))) for key, v in found.settings.items()],
        command=command,
        figures=figures,
        panels=list(panels),
        axes=list(axes),
        plotly=plotly_js() if figures else "",
    )
    return write_text(path, page)


def _steps(steps: Sequence[Step], theme: Theme) -> Spec:
    """Each candidate's score, and what had been accepted by then."""
    kept = [step.accepted for step in steps]
    numbers = list(range(1, len(steps) + 1))
    labels = [text.short(step.label, 30) for step in steps]
    few = len(steps) <= _NAMED and max(map(len, labels), default=0) <= _LONG
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines",
                "name": "accepted so far",
                "x": numbers,
                "y": [_drawn(step.best) for step in steps],
                "line": {"color": theme.accent, "width": 2.2, "shape": "hv"},
                "hoverinfo": "skip",
            },
            {
                "type": "scatter",
                "mode": "markers",
                "name": "candidate",
                "x": numbers,
                "y": [_drawn(step.score) for step in steps],
                "marker": {
                    "size": 9,
                    "symbol": ["circle" if k else "x-thin-open" for k in kept],
                    "color": [theme.accent if k else theme.muted for k in kept],
                },
                "text": [plain(label) for label in labels],
                "hovertemplate": "%{text}: %{y:.6g}<extra></extra>",
            },
        ],
        "layout": {
            "template": template(theme),
            "hovermode": "closest",
            "margin": {"l": 62, "r": 12, "t": 12, "b": 96 if few else 46},
            "xaxis": {
                "title": {"text": "" if few else "candidate, in the order tried"},
                **(
                    {"tickvals": numbers, "ticktext": [plain(la) for la in labels], "tickangle": -40}
                    if few
                    else {}
                ),
            },
            "yaxis": {"title": {"text": "score (higher is better)"}, "nticks": 7},
        },
    }


def _heat_map(steps: Sequence[Step], axes: Sequence[str], theme: Theme) -> Spec:
    """Scores over two varied things; a place with several candidates shows the best of them."""
    across, upward = (_values(steps, axis) for axis in axes)
    best: dict[tuple[str, str], float] = {}
    for step in steps:
        place = (_label(step, axes[0]), _label(step, axes[1]))
        if step.score is not None:
            best[place] = max(step.score, best.get(place, -math.inf))
    grid = [[_drawn(best.get((x, y))) for x in across] for y in upward]
    return {
        "data": [
            {
                "type": "heatmap",
                "x": [plain(x) for x in across],
                "y": [plain(y) for y in upward],
                "z": grid,
                "text": [[text.number(value, 4) for value in row] for row in grid],
                "texttemplate": "%{text}",
                "hovertemplate": "%{x}, %{y}: %{z:.6g}<extra></extra>",
                "colorscale": [[0, theme.raised], [1, theme.accent]],
                "colorbar": {"thickness": 12, "outlinewidth": 0, "tickfont": {"color": theme.muted}},
                "xgap": 2,
                "ygap": 2,
            }
        ],
        "layout": {
            "template": template(theme),
            "hovermode": "closest",
            "margin": {"l": 110, "r": 12, "t": 12, "b": 56},
            "xaxis": {"title": {"text": plain(axes[0])}, "type": "category"},
            "yaxis": {"title": {"text": plain(axes[1])}, "type": "category"},
        },
    }


def _rows(steps: Sequence[Step]) -> list[dict[str, object]]:
    scores = text.together([step.score for step in steps], 5)
    return [
        {
            "number": number,
            "label": text.name(step.label),
            "of": ", ".join(f"{text.name(k)} {text.value(_shown(v))}" for k, v in step.candidate.items()),
            "score": shown,
            "accepted": "yes" if step.accepted else "",
            "note": "; ".join(([text.name(step.note)] if step.note else []) + ["known"] * step.cached),
        }
        for number, (step, shown) in enumerate(zip(steps, scores, strict=True), start=1)
    ]


def _values(steps: Sequence[Step], axis: str) -> list[str]:
    return list(dict.fromkeys(_label(step, axis) for step in steps))


def _label(step: Step, axis: str) -> str:
    value = step.candidate.get(axis)
    return text.name(text.value(_shown(value))) if axis in step.candidate else "default"


def _shown(value: object) -> object:
    """Numbers to four digits, also in lists."""
    if isinstance(value, (list, tuple)):
        return [_shown(item) for item in value]
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {text.value(_shown(item))}" for key, item in value.items())
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _drawn(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
