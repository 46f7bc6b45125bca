"""What is plotted: the results as charts, free of any plotting library and of any colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from isthmus.report import text
from isthmus.report.profiles import Profile
from isthmus.report.results import Results


@dataclass(frozen=True)
class Line:
    """One line: a name, its points, its place in the page's order of colours, and a fact about it."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    style: int
    fact: str = ""


@dataclass(frozen=True)
class Mark:
    """A horizontal reference line."""

    name: str
    y: float


@dataclass(frozen=True)
class Chart:
    """One plot, and the same as a table.

    Attributes:
        key: of the page's element, unique.
        title: what is plotted.
        read: one line: how to read it.
        note: how it was measured, and what is not shown.
        x_title: of the axis.
        y_title: of the axis, with the unit.
        lines: what is drawn.
        marks: reference lines.
        bounds: of the vertical axis, in its unit.
        log: a logarithmic vertical axis.
        ticks: the names of x = 0, 1, ... where x counts layers; empty where x is a number.
        shown: a value as hover and table show it.
    """

    key: str
    title: str
    read: str
    note: str
    x_title: str
    y_title: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    bounds: tuple[float, float]
    log: bool = False
    ticks: tuple[str, ...] = ()
    shown: Callable[[float | None], str] = text.number

    def header(self) -> list[str]:
        """The heading of the table."""
        return [*(["#", "layer"] if self.ticks else ["t"]), *(line.name for line in self.lines)]

    def table(self) -> list[list[str]]:
        """The data, a row for each x."""
        xs = sorted({x for line in self.lines for x in line.x})
        heads = [[f"{int(x) + 1}", self.ticks[int(x)]] if self.ticks else [f"{x:.4g}"] for x in xs]
        columns = [self._column(line, xs) for line in self.lines]
        return [[*head, *row] for head, row in zip(heads, zip(*columns, strict=True), strict=True)]

    def _column(self, line: Line, xs: Sequence[float]) -> list[str]:
        values = dict(zip(line.x, line.y, strict=True))
        found = [values.get(x) for x in xs]
        return text.together(found) if self.shown is text.number else [self.shown(v) for v in found]


def charts(results: Results) -> list[Chart]:
    """All charts of a page, curves first."""
    order = [text.name(curve.name) for curve in results.curves]
    order += [text.name(series.name) for profile in results.profiles for series in profile.series]
    styles = {name: index for index, name in enumerate(dict.fromkeys(order))}
    made = [_accuracy(results, styles), _loss(results, styles)]
    made += [_profile(profile, index, styles) for index, profile in enumerate(results.profiles)]
    return [chart for chart in made if chart is not None]


def _path(results: Results) -> str:
    ends = [text.short(row.name, 24) for row in results.rows if row.kind == "edge"]
    return (
        f"t, from {ends[0]} (0) to {ends[1]} (1)"
        if len(ends) == 2
        else "t, from the first parent (0) to the second (1)"
    )


def _accuracy(results: Results, styles: dict[str, int]) -> Chart | None:
    lines = tuple(
        Line(
            name := text.name(curve.name),
            tuple(curve.t),
            tuple(None if a is None else 100 * a for a in curve.accuracy),
            styles[name],
            ""
            if curve.accuracy_barrier is None
            else f"barrier {text.fixed(100 * curve.accuracy_barrier, 1)} points",
        )
        for curve in results.curves
        if curve.accuracy
    )
    if not lines:
        return None
    values = _drawn(lines)
    marks: list[Mark] = []
    parents, chance = results.parents("accuracy"), results.provenance.chance
    if parents is not None:
        marks.append(Mark("parents’ mean", 100 * parents))
    note = ""
    if chance is not None and math.isfinite(chance):
        # Curves that never come down would be squashed by a line far below them.
        if values and min(values) < 50 * (1 + chance):
            marks.append(Mark("chance", 100 * chance))
        else:
            note = f"Chance, {text.percent(chance)} %, lies below the plot."
    low, high = _bounds([*values, *(mark.y for mark in marks)])
    low = 0.0 if low < 20 else low
    return Chart(
        key="curve-accuracy",
        title="Accuracy along the path",
        read="left and right are the parents, the middle is their average; the deeper the valley, "
        "the higher the barrier.",
        note=note,
        x_title=_path(results),
        y_title="accuracy (%)",
        lines=lines,
        marks=tuple(marks),
        bounds=(max(low, 0.0), min(high, 112.0)),
        shown=text.fixed,
    )


def _loss(results: Results, styles: dict[str, int]) -> Chart | None:
    lines = tuple(
        Line(
            name := text.name(curve.name),
            tuple(curve.t),
            tuple(curve.loss),
            styles[name],
            "" if curve.loss_barrier is None else f"barrier {text.number(curve.loss_barrier, 3)} nats",
        )
        for curve in results.curves
        if curve.loss
    )
    if not lines:
        return None
    parents = results.parents("loss")
    marks = (Mark("parents’ mean", parents),) if drawable(parents) else ()
    values = [*_drawn(lines), *(mark.y for mark in marks)]
    log = drawable(min(values, default=None), log=True) and max(values) > 30 * min(values)
    low, high = _bounds(values, log=log)
    return Chart(
        key="curve-loss",
        title="Loss along the path",
        read="the same points: a hump between the parents is the loss barrier, "
        "a flat line is linear connectivity.",
        note="",
        x_title=_path(results),
        y_title="loss (nats, logarithmic)" if log else "loss (nats)",
        lines=lines,
        marks=marks,
        bounds=(low if log or min(values, default=0.0) < 0 else 0.0, high),
        log=log,
        shown=text.loss,
    )


def _profile(profile: Profile, index: int, styles: dict[str, int]) -> Chart | None:
    if not profile.layers or not profile.series:
        return None
    log = profile.scale == "log"
    lines = tuple(
        Line(
            name := text.name(series.name),
            tuple(float(x) for x in range(len(profile.layers))),
            tuple(series.values),
            styles[name],
            f"last layer {text.number(series.values[-1], 3)}",
        )
        for series in profile.series
    )
    reference = profile.reference
    marks: tuple[Mark, ...] = ()
    if drawable(reference, log=log):
        marks = (Mark(text.name(profile.reference_name or "reference"), reference),)
    values = [*_drawn(lines), *(mark.y for mark in marks)]
    hidden = sum(1 for v in values if not drawable(v, log=log))
    values = [v for v in values if drawable(v, log=log)]
    low, high = _bounds(values, log=log)
    notes = [text.name(profile.note)] if profile.note else []
    if hidden:
        notes.append(
            f"{hidden} values that are not positive have no place on a logarithmic axis; the table has them."
        )
    read = (
        profile.read
        or "left to right is the order of execution" + "; the thin line is the reference" * bool(marks)
    )
    return Chart(
        key=f"profile-{index}",
        title=text.name(profile.name),
        read=text.name(read),
        note=" ".join(notes),
        x_title="layer, in order of execution",
        y_title=text.name(profile.quantity),
        lines=lines,
        marks=marks,
        bounds=(low if log or min(values, default=0.0) < 0 else 0.0, high),
        log=log,
        ticks=tuple(text.name(layer) for layer in profile.layers),
    )


def drawable(value: float | None, *, log: bool = False) -> TypeGuard[float]:
    """Whether a value has a place on an axis; beyond a googol either way, axes themselves overflow."""
    return value is not None and abs(value) <= 1e100 and (not log or value >= 1e-100)


def _drawn(lines: Iterable[Line]) -> list[float]:
    return [y for line in lines for y in line.y if drawable(y)]


def _bounds(values: Sequence[float], *, log: bool = False) -> tuple[float, float]:
    """Limits of an axis with some air at both ends; never empty."""
    if not values:
        return (0.1, 10.0) if log else (0.0, 1.0)
    least, most = min(values), max(values)
    if log:
        air = max((most / least) ** 0.15, 1.15)
        return least / air, most * air
    air = 0.15 * (most - least) or 0.1 * abs(most) or 1.0
    return least - air, most + air
