"""Results -> one HTML page that holds all it needs: no network, no second file."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.errors import MissingExtraError
from isthmus.report import text
from isthmus.report.charts import charts
from isthmus.report.plots import figure_json, plotly_js
from isthmus.report.results import Alignment, Provenance, Results, SpaceCost
from isthmus.report.theme import DARK, DASHES, FONT, LIGHT
from isthmus.report.ways import columns, groups, ways
from isthmus.report.write import write_text

if TYPE_CHECKING:
    import jinja2

TEMPLATE = Path(__file__).parent / "template"
STROKES = {
    "solid": "none",
    "dash": "7 4",
    "dot": "2 3",
    "dashdot": "7 3 2 3",
    "longdash": "11 4",
}  # as plotly draws


def render(results: Results, path: str | os.PathLike[str]) -> Path:
    """Write the results as one self-contained HTML page, whole or not at all.

    Plots, their library, styles and data are inside; a content security policy in the page keeps
    it from loading anything. It follows the reader's light or dark mode and fits a phone.

    Args:
        results: what the merge came to.
        path: of the page; an existing one is replaced.

    Returns:
        The path.

    Raises:
        MissingExtraError: plotly or jinja2 is not installed (the extra `report`).
        InputError: the file cannot be written.
    """
    return write_text(path, page(results))


def page_template(name: str) -> jinja2.Template:
    """A page's template with the house's look; what is left out is an error, and every value is escaped.

    Raises:
        MissingExtraError: jinja2 is not installed (the extra `report`).
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError(
            "the page of a report needs jinja2", hint="pip install 'isthmus[report]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["name"] = text.name
    house = {
        "themes": {"light": LIGHT, "dark": DARK},
        "font": FONT,
        "css": (TEMPLATE / "page.css").read_text(encoding="utf-8"),
        "script": (TEMPLATE / "page.js").read_text(encoding="utf-8"),
    }
    return environment.get_template(name, globals=house)


def page(results: Results) -> str:
    """The page as text; see `render`."""
    plots = charts(results)
    return page_template("page.html.j2").render(
        title=results.title,
        results=results,
        columns=columns(results),
        groups=groups(results),
        sources=list(dict.fromkeys(way.source for way in ways(results) if way.source)),
        spread=any(row.accuracy_spread is not None for row in results.rows),
        parents=results.parents("accuracy"),
        charts=plots,
        figures={chart.key: figure_json(chart) for chart in plots},
        plotly=plotly_js() if plots else "",
        verification=_verification(results),
        alignment=_alignment(results.alignment),
        provenance=_provenance(results.provenance),
        not_finite=[text.name(where) for where in results.not_finite()],
        settings=[(text.name(s.name), text.name(text.value(s.value)), s.default) for s in results.settings],
        strokes=[STROKES[dash] for dash in DASHES],
        short=text.short,
    )


def _verification(results: Results) -> str:
    """The outcome in a sentence."""
    found = results.verification
    if found is None:
        return "Not run: nothing here vouches that the moves left the functions alone."
    spaces = f"{found.spaces} space" + ("" if found.spaces == 1 else "s")
    moved = (
        ""
        if found.moved is None
        else f", which hold {text.percent(found.moved, digits=1)} % of the parameters,"
    )
    verdict = "within" if found.passed else "above"
    return (
        f"Moving the units of {spaces}{moved} changed the output by {text.number(found.error, 2)} "
        f"of its scale, {verdict} the bound of {text.number(found.bound, 2)}."
    )


def _alignment(alignment: Alignment | None) -> dict[str, object] | None:
    """The table of costs, with the length of each bar in percent of the greatest cost."""
    if alignment is None:
        return None
    pairs = [(s.before, s.after) for s in alignment.spaces if s.before is not None and s.after is not None]
    known = [pair for pair in pairs if all(map(math.isfinite, pair))]
    before, after = sum(b for b, _ in known), sum(a for _, a in known)
    change = text.fixed(_change(before, after), 1, sign=True)
    shown = text.together([before, after], 5)
    summary = f"In total {shown[0]} before, {shown[1]} after ({change} %)." if known and before else ""
    return {
        "method": text.name(alignment.method),
        "cost": text.name(alignment.cost),
        "better": alignment.better,
        "note": text.name(alignment.note),
        "summary": summary,
        "spaces": _spaces(alignment.spaces),
    }


def _spaces(spaces: list[SpaceCost]) -> list[dict[str, object]]:
    shown = text.together([v for space in spaces for v in (space.before, space.after)])
    made: list[dict[str, object]] = []
    for space, before, after in zip(spaces, shown[::2], shown[1::2], strict=True):
        known = [abs(v) for v in (space.before, space.after) if v is not None and math.isfinite(v)]
        most = max(known, default=0.0) or 1.0
        made.append(
            {
                "name": text.name(space.space),
                "size": space.size,
                "before": before,
                "after": after,
                "change": text.fixed(_change(space.before, space.after), 1, sign=True),
                "bars": [_percent_of(v, most) for v in (space.before, space.after)],
            }
        )
    return made


def _change(before: float | None, after: float | None) -> float | None:
    if before is None or after is None or before == 0:
        return None
    return 100 * (after - before) / abs(before)


def _percent_of(value: float | None, most: float) -> str:
    return f"{100 * abs(value) / most:.1f}" if value is not None and math.isfinite(value) else "0"


def _provenance(made: Provenance) -> list[tuple[str, str]]:
    """Everything that is known about where the numbers come from."""
    pairs = [
        ("isthmus", made.isthmus),
        ("torch", made.torch),
        ("python", made.python),
        ("device", made.device),
        ("seeds", ", ".join(f"{key} {seed}" for key, seed in made.seeds.items())),
        ("examples", ", ".join(f"{key} {count:,}" for key, count in made.splits.items())),
        ("evaluated on", made.evaluated),
        ("chance level", "" if made.chance is None else f"{text.percent(made.chance)} %"),
        *made.checkpoints.items(),
        ("made", made.created),
    ]
    return [(text.name(key), text.name(shown)) for key, shown in pairs if shown]
