"""Charts -> plotly figures, one for each mode of the page."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.errors import MissingExtraError
from isthmus.report import text
from isthmus.report.charts import Chart, Line, drawable
from isthmus.report.labels import Place, place
from isthmus.report.theme import DASHES, SYMBOLS, THEMES, Theme, template

Spec = dict[str, object]
LABELS = 6  # more lines than this are told apart by hover and by the key below the plot
LABEL_LENGTH = 22
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def figure_json(chart: Chart) -> str:
    """A chart as `{"light": figure, "dark": figure}`, checked by plotly, safe inside a <script>.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    names = labels(chart)
    return figures_json([figure(chart, theme, names) for theme in THEMES])


def figures_json(specs: Sequence[Spec]) -> str:
    """A figure for each mode as `{"light": figure, "dark": figure}`, checked by plotly, safe inside a <script>.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise MissingExtraError(
            "the plots of a report need plotly", hint="pip install 'isthmus[report]'"
        ) from error
    made = {
        theme.name: json.loads(str(go.Figure(s).to_json())) for theme, s in zip(THEMES, specs, strict=True)
    }
    return script_safe(json.dumps(made, separators=(",", ":"), ensure_ascii=False, allow_nan=False))


def plotly_js() -> str:
    """The source of plotly.js, which the page carries.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError(
            "the plots of a report need plotly", hint="pip install 'isthmus[report]'"
        ) from error
    return str(get_plotlyjs()).replace("</script", "<\\/script").replace("<!--", "<\\!--")


@dataclass(frozen=True)
class Label:
    """The name of a line, or of a reference (`style` is None), at a point of the plot."""

    text: str
    x: float
    y: float
    at: Place
    style: int | None


def figure(chart: Chart, theme: Theme, names: Sequence[Label]) -> Spec:
    """A chart as a plotly figure, in plain dictionaries."""
    (left, right), (low, high) = _ranges(chart)
    x_axis: Spec = {"title": {"text": plain(chart.x_title)}, "range": [left, right]}
    if chart.ticks:
        # Categories, so that hovering names the layer; ticks are their numbers, since names do not fit.
        every = range(0, len(chart.ticks), math.ceil(len(chart.ticks) / 10))
        beside = 5e-4 * len(chart.ticks)  # a tick exactly on a layer would lend its text to the hover box
        x_axis |= {"type": "category", "tickvals": [i + beside for i in every]}
        x_axis["ticktext"] = [str(i + 1) for i in every]
    else:
        x_axis |= {"tickvals": [0, 0.25, 0.5, 0.75, 1], "hoverformat": ".4~g"}
    y_axis: Spec = {"title": {"text": plain(chart.y_title)}, "range": [low, high], "nticks": 7}
    if chart.log:
        y_axis["type"] = "log"
        if len(values := _log_ticks(*chart.bounds)) > 1:  # else plotly finds ticks within the decade
            y_axis |= {"tickvals": values, "ticktext": [_power(v) for v in values]}
    return {
        "data": [_trace(chart, line, theme) for line in chart.lines],
        "layout": {
            "template": template(theme),
            "xaxis": x_axis,
            "yaxis": y_axis,
            "shapes": [
                {
                    "type": "line",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": mark.y,
                    "y1": mark.y,
                    "layer": "below",
                    "line": {"color": theme.muted, "width": 1.2, "dash": "4px,3px"},
                }
                for mark in chart.marks
            ],
            "annotations": [_annotation(name, theme, log=chart.log) for name in names],
        },
    }


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, at most seven; with their 2 and 5 where there are fewer than two."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first >= 1:
        return [10.0**e for e in range(last, first - 1, -math.ceil((last - first + 1) / 7))][::-1]
    decades = range(first - 1, last + 2)
    return [v for v in (m * 10.0**e for e in decades for m in (1, 2, 5)) if low <= v <= high]


def _power(value: float) -> str:
    if 0.01 <= value <= 1000:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    power = "10" + str(int(exponent)).translate(SUPERSCRIPT)
    return power if mantissa == "1" else f"{mantissa}·{power}"


def labels(chart: Chart) -> list[Label]:
    """Where the name of each line and of each reference stands, the same in every mode."""
    across, upward = _ranges(chart)
    ends = tuple(across[0] + i / 12 * (across[1] - across[0]) for i in range(13))
    named: list[tuple[str, Sequence[float], Sequence[float | None], int | None]] = []
    if len(chart.lines) <= LABELS:
        named += [(text.short(line.name, LABEL_LENGTH), line.x, line.y, line.style) for line in chart.lines]
    named += [(_mark(chart, mark.name, mark.y), ends, [mark.y] * len(ends), None) for mark in chart.marks]

    def share(x: float, y: float | None) -> tuple[float, float] | None:
        if not drawable(y, log=chart.log):
            return None
        height = math.log10(y) if chart.log else y
        return (x - across[0]) / (across[1] - across[0]), (height - upward[0]) / (upward[1] - upward[0])

    lines = [[share(x, y) for x, y in zip(xs, ys, strict=True)] for _, xs, ys, _ in named]
    made: list[Label] = []
    for (label, xs, ys, style), at in zip(named, place(lines, [n[0] for n in named]), strict=True):
        y = None if at is None else ys[at.point]
        if at is not None and y is not None:
            made.append(Label(label, xs[at.point], y, at, style))
    return made


def _ranges(chart: Chart) -> tuple[tuple[float, float], tuple[float, float]]:
    """What the axes span: the lines' x with some air, the chart's bounds (logarithms on such an axis)."""
    low, high = (math.log10(b) for b in chart.bounds) if chart.log else chart.bounds
    xs = [x for line in chart.lines for x in line.x]
    left, right = (min(xs), max(xs)) if xs else (0.0, 1.0)
    air = 0.02 * (right - left) or 0.5
    return (left - air, right + air), (low, high)


def colour(style: int, theme: Theme) -> str:
    """The colour of the line that is so many-th on the page."""
    return theme.series[style % len(theme.series)]


def _trace(chart: Chart, line: Line, theme: Theme) -> Spec:
    ink = colour(line.style, theme)
    few = len(line.x) <= 40
    unit = {"accuracy (%)": " %", "loss (nats)": " nats", "loss (nats, logarithmic)": " nats"}.get(
        chart.y_title, ""
    )
    return {
        "type": "scatter",
        "mode": "lines+markers" if few else "lines",
        "name": plain(line.name),
        "x": [_category(chart, x) for x in line.x] if chart.ticks else list(line.x),
        "y": [y if drawable(y, log=chart.log) else None for y in line.y],
        "line": {"color": ink, "width": 2.2, "dash": DASHES[line.style % len(DASHES)]},
        "marker": {
            "symbol": SYMBOLS[line.style % len(SYMBOLS)],
            "size": 6 if len(line.x) <= 25 else 4,
            "color": ink,
        },
        "cliponaxis": False,
        "customdata": [[chart.shown(y)] for y in line.y],
        "hovertemplate": "%{customdata[0]}" + unit,
    }


def _category(chart: Chart, x: float) -> str:
    return plain(f"{int(x) + 1}  {chart.ticks[int(x)]}")  # the number keeps equal names apart


def _annotation(name: Label, theme: Theme, *, log: bool) -> Spec:
    return {
        "text": plain(name.text),
        "x": name.x,
        "y": math.log10(name.y) if log else name.y,
        "xanchor": name.at.anchor,
        "yanchor": "bottom" if name.at.above else "top",
        "yshift": 3 if name.at.above else -3,
        "showarrow": False,
        "borderpad": 0,
        "font": {"color": theme.muted, "size": 11}
        if name.style is None
        else {"color": colour(name.style, theme), "size": 12},
    }


def _mark(chart: Chart, name: str, y: float) -> str:
    value = text.fixed(y, 1) if chart.shown is text.fixed else text.number(y, 3)
    return f"{text.short(name, LABEL_LENGTH)} {value}"


def plain(words: str) -> str:
    """Text that plotly shows as it is: it reads a subset of HTML, links included."""
    return html.escape(words, quote=False)


def script_safe(source: str) -> str:
    """JSON that no HTML parser can mistake for the end of its element."""
    return source.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
