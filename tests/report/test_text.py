"""Numbers and names as people read them; where labels go; colours that can be told apart."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from isthmus.report import text
from isthmus.report.labels import place
from isthmus.report.theme import DASHES, SYMBOLS, THEMES, Theme

Color = NDArray[np.float64]


def test_fixed_and_percent() -> None:
    assert text.fixed(-3.14159) == "−3.14"
    assert text.fixed(-0.001) == "0.00"
    assert text.fixed(1.2, sign=True) == "+1.20"
    assert text.percent(0.8468, 0.0085) == "84.68 ± 0.85"
    assert text.percent(None, 0.1) == "–"
    assert text.percent(math.nan) == "n/a"
    assert text.times(1.0077) == "1.01×"
    assert text.times(math.inf) == "n/a"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.43125, "0.4313"),
        (3.14e-13, "3.14e-13"),
        (1e-9, "1e-9"),
        (-2.5e-7, "−2.5e-7"),
        (12345.6, "12,346"),
        (1.5e9, "1.5e9"),
        (math.nan, "n/a"),
        (None, "–"),
    ],
)
def test_number(value: float | None, shown: str) -> None:
    assert text.number(value) == shown


def test_numbers_of_a_column_can_be_compared() -> None:
    assert text.together([119.04, 5.6, None]) == ["119.0", "5.6", "–"]
    assert text.together([0.71, 0.0031]) == ["0.7100", "0.0031"]
    assert text.together([1.0, 2.56e-5]) == ["1", "2.56e-5"]
    assert text.together([math.nan]) == ["n/a"]


def test_values_of_settings() -> None:
    assert [text.value(v) for v in (True, None, 0.5, [3, 8], "")] == ["yes", "none", "0.5", "3, 8", '""']


def test_a_name_cannot_act_on_a_terminal() -> None:
    assert text.name("a\x1b[31m\n\u202eb") == "a�[31m �b"
    assert text.short("a-very-long-checkpoint-name", 11) == "a-ver…-name"


@given(st.floats(allow_nan=True, allow_infinity=True) | st.none())
def test_any_number_has_a_text(value: float | None) -> None:
    shown = (text.fixed(value), text.percent(value), text.number(value), text.times(value), text.loss(value))
    assert all(shown)
    if value is not None and math.isfinite(value):
        assert all("n/a" not in s or abs(value) > 1e300 for s in shown)


@given(st.lists(st.floats(allow_nan=True) | st.none(), max_size=8))
def test_any_column_has_a_text(values: list[float | None]) -> None:
    assert len(text.together(values)) == len(values)


def test_labels_keep_off_lines_and_each_other() -> None:
    ts = [i / 24 for i in range(25)]
    lines = [[(t, 0.9 - depth * (1 - (2 * t - 1) ** 4)) for t in ts] for depth in (0.1, 0.5, 0.8)]
    places = place(lines, ["aligned + repair", "aligned", "direct"])
    assert all(p is not None and 0.2 < ts[p.point] < 0.8 for p in places)


def test_a_line_without_points_has_no_label() -> None:
    assert place([[None, None], [(0.5, 0.5), None]], ["a", "b"])[0] is None
    assert place([], []) == []


def _linear(colour: str) -> Color:
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def _contrast(a: str, b: str) -> float:
    """WCAG 2.2 contrast ratio."""
    low, high = sorted(float(_linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def _oklab(rgb: Color) -> Color:
    """Björn Ottosson's OKLab, from linear sRGB."""
    lms = np.cbrt(
        np.clip(
            np.array(
                [
                    [0.4122214708, 0.5363325363, 0.0514459929],
                    [0.2119034982, 0.6806995451, 0.1073969566],
                    [0.0883024619, 0.2817188376, 0.6299787005],
                ]
            )
            @ np.clip(rgb, 0, 1),
            0,
            None,
        )
    )
    return (
        np.array(
            [
                [0.2104542553, 0.7936177850, -0.0040720468],
                [1.9779984951, -2.4285922050, 0.4505937099],
                [0.0259040371, 0.7827717662, -0.8086757660],
            ]
        )
        @ lms
    )


# Machado, Oliveira and Fernandes 2009, severity 1.
SIGHT = {
    "full": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_text_can_be_read(theme: Theme) -> None:
    for ink in (theme.ink, theme.muted, theme.accent, theme.good, theme.bad, *theme.series):
        assert _contrast(ink, theme.paper) >= 4.5, ink
    for ink in (theme.ink, theme.muted):
        assert _contrast(ink, theme.raised) >= 4.5, ink


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_series_can_be_told_apart(theme: Theme, sight: str) -> None:
    seen = [_oklab(SIGHT[sight] @ _linear(colour)) for colour in theme.series]
    least = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))
    assert least > (0.06 if sight == "tritanopia" else 0.09)  # 0.02 is just noticeable


def test_without_colour_dash_and_marker_tell_lines_apart() -> None:
    styles = [(DASHES[i % len(DASHES)], SYMBOLS[i % len(SYMBOLS)]) for i in range(30)]
    assert len(set(styles)) == 30
