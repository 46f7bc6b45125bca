"""Direct labels: where on a line its name may stand without covering anything.

Worked out for the narrowest screen we draw for: a label that fits there fits anywhere, because it
is tied to a point of its line and only the room around it grows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 300.0, 230.0  # pixels of the plotting area on a phone of 390
CHARACTER, LINE = 6.7, 17.0  # pixels of a character and of a line, at the labels' 12 px
GAP = 6.0  # between a line and its label: half a marker and some air

Point = tuple[float, float]
Box = tuple[float, float, float, float]
Segments = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """Where a label stands.

    Attributes:
        point: index of the line's point that it is tied to.
        above: above that point, or below.
        anchor: which part of the label is at the point ("left" starts there).
    """

    point: int
    above: bool
    anchor: str


def place(lines: Sequence[Sequence[Point | None]], texts: Sequence[str]) -> list[Place | None]:
    """Choose a place for the label of each line.

    Args:
        lines: the points of each line, as fractions of the plotting area from its lower left corner;
            None where a point is missing.
        texts: the label of each line.

    Returns:
        A place for each line, or None for one without a point. Each avoids all lines and the labels
        already placed, as far as can be, and prefers the middle of the plot.
    """
    pixels = [[None if p is None else (p[0] * WIDTH, p[1] * HEIGHT) for p in line] for line in lines]
    segments = [_segments(line) for line in pixels]
    taken: list[Box] = []
    chosen: list[Place | None] = []
    for index, (line, label) in enumerate(zip(pixels, texts, strict=True)):
        best: tuple[float, Place, Box] | None = None
        for candidate, box in _candidates(line, CHARACTER * len(label)):
            cost = _cost(box, index, segments, taken)
            if best is None or cost < best[0]:
                best = (cost, candidate, box)
        if best is None:
            chosen.append(None)
        else:
            chosen.append(best[1])
            taken.append(best[2])
    return chosen


def _segments(line: Sequence[Point | None]) -> Segments:
    """The drawn pieces of a line as rows (x0, y0, x1, y1); a lone point is a piece without length."""
    pieces = [(*a, *b) for a, b in itertools.pairwise(line) if a is not None and b is not None]
    pieces += [(*p, *p) for p in line if p is not None]
    return np.array(pieces, dtype=np.float64).reshape(-1, 4)


def _candidates(line: Sequence[Point | None], width: float) -> Iterator[tuple[Place, Box]]:
    points = [(index, point) for index, point in enumerate(line) if point is not None]
    for index, (x, y) in points[:: math.ceil(len(points) / 60) or 1]:
        for above, (anchor, left) in itertools.product(
            (True, False), (("center", x - width / 2), ("left", x), ("right", x - width))
        ):
            low = y + GAP if above else y - GAP - LINE
            yield Place(index, above, anchor), (left, low, left + width, low + LINE)


def _cost(box: Box, own: int, segments: Sequence[Segments], taken: Sequence[Box]) -> float:
    left, low, right, high = box
    outside = max(0.0, -left) + max(0.0, right - WIDTH) + max(0.0, -low) + max(0.0, high - HEIGHT)
    cost = 10 * outside + abs((left + right) / 2 - WIDTH / 2) / WIDTH
    cost += 60 * sum(_overlap(box, other) for other in taken)
    clear = (left - 1, low - GAP / 2, right + 1, high + GAP / 2)  # markers are wider than their line
    near = (left - 2, low - GAP, right + 2, high + GAP)  # a name next to two lines might be either's
    for index, line in enumerate(segments):
        cost += 15 * _crosses(clear, line)
        if index != own:
            cost += 4 * _crosses(near, line)
    return cost


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _crosses(box: Box, line: Segments) -> bool:
    """Whether any segment enters a box (Liang-Barsky clipping)."""
    start, step = line[:, :2], line[:, 2:] - line[:, :2]
    least, most = np.array(box[:2]), np.array(box[2:])
    within = (least <= start) & (start <= most)
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (least - start) / step, (most - start) / step
    still = step == 0  # parallel to the axis: inside for its whole length, or never
    enter = np.where(still, np.where(within, 0.0, np.inf), np.minimum(first, second)).max(axis=1, initial=0.0)
    leave = np.where(still, np.inf, np.maximum(first, second)).min(axis=1, initial=1.0)
    return bool((enter <= leave).any())
