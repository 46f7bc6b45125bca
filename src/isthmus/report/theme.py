"""The house's look: one set of colours for light and one for dark, for the page and for the plots.

Series colours keep 4.5:1 contrast on their background (labels are text in the same colour) and any two
stay apart under the colour blindnesses (found by search, held by a test); dash and marker repeat what
the colour says.
"""

from __future__ import annotations

from dataclasses import dataclass

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross")


@dataclass(frozen=True)
class Theme:
    """Colours of one mode, as CSS hex.

    Attributes:
        name: "light" or "dark".
        paper: background of page and plots.
        raised: background of hover boxes and of what is set apart.
        ink: text.
        muted: secondary text, axis labels.
        rule: borders, grid lines.
        accent: links and bars.
        good: something that holds.
        bad: something that does not.
        series: lines, in order.
    """

    name: str
    paper: str
    raised: str
    ink: str
    muted: str
    rule: str
    accent: str
    good: str
    bad: str
    series: tuple[str, ...]

    def css(self) -> str:
        """The colours as CSS custom properties."""
        named = ("paper", "raised", "ink", "muted", "rule", "accent", "good", "bad")
        pairs = [(key, getattr(self, key)) for key in named]
        pairs += [(f"series-{index}", colour) for index, colour in enumerate(self.series)]
        return " ".join(f"--{key}: {colour};" for key, colour in pairs)


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    raised="#f5f6f8",
    ink="#16191d",
    muted="#59616b",
    rule="#dfe3e8",
    accent="#0b62a8",
    good="#0a6b4c",
    bad="#b3341f",
    series=("#bd5512", "#36468d", "#008289", "#9a43c3", "#7c4303", "#4f5560"),
)

DARK = Theme(
    name="dark",
    paper="#14171b",
    raised="#1d2127",
    ink="#e8eaed",
    muted="#9aa3ad",
    rule="#30363d",
    accent="#6cb4f5",
    good="#56cfa4",
    bad="#ff8f78",
    series=("#e98a55", "#6bb1fb", "#86efaf", "#c785b6", "#e8c04d", "#b5bec8"),
)

THEMES = (LIGHT, DARK)


def template(theme: Theme) -> dict[str, object]:
    """The house template of plotly, for one mode."""
    axis: dict[str, object] = {
        "showline": True,
        "linecolor": theme.muted,
        "linewidth": 1,
        "gridcolor": theme.rule,
        "gridwidth": 1,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": theme.muted,
        "tickfont": {"size": 12, "color": theme.muted},
        "title": {"font": {"size": 12.5, "color": theme.muted}, "standoff": 8},
        "fixedrange": True,
        "automargin": False,
    }
    return {
        "layout": {
            "font": {"family": FONT, "size": 13, "color": theme.ink},
            "paper_bgcolor": theme.paper,
            "plot_bgcolor": theme.paper,
            "colorway": list(theme.series),
            "xaxis": {
                **axis,
                "showgrid": False,
                "spikecolor": theme.muted,
                "spikethickness": 1,
                "spikedash": "solid",
            },
            "yaxis": {**axis, "showline": False, "ticks": ""},
            "hovermode": "x unified",
            "hoverlabel": {
                "bgcolor": theme.raised,
                "bordercolor": theme.rule,
                "font": {"family": FONT, "size": 12.5, "color": theme.ink},
            },
            "dragmode": False,
            "showlegend": False,
            "margin": {"l": 52, "r": 12, "t": 12, "b": 46},
        }
    }
