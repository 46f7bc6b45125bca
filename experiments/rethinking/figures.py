"""Two figures as SVG: the gap between ensemble and soup over the number of models, and batches of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

#: Colours that are told apart in both modes and with colour-blind eyes (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("none", "6 4")
WIDTH, HEIGHT, EDGE = 420, 300, 46


class Plot:
    """One plot: points in data coordinates, drawn as they come.

    Args:
        title: above it.
        axes: what is across and upward.
        across, upward: least and largest value shown.
    """

    def __init__(
        self, title: str, axes: tuple[str, str], across: tuple[float, float], upward: tuple[float, float]
    ):
        self._across, self._upward = across, upward
        low, right = HEIGHT - EDGE, WIDTH - 12
        turned = f"translate(12 {(30 + low) / 2}) rotate(-90)"
        self.parts = [
            f'<text x="{EDGE}" y="18" font-weight="600">{escape(title)}</text>',
            f'<text x="{(EDGE + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(axes[0])}</text>',
            f'<text transform="{turned}" text-anchor="middle">{escape(axes[1])}</text>',
            f'<path d="M{EDGE} 30V{low}H{right}" fill="none" stroke="#888"/>',
        ]

    def place(self, x: float, y: float) -> tuple[float, float]:
        (a, b), (c, d) = self._across, self._upward
        return (
            EDGE + (x - a) / ((b - a) or 1) * (WIDTH - 12 - EDGE),
            HEIGHT - EDGE - (y - c) / ((d - c) or 1) * (HEIGHT - EDGE - 30),
        )

    def ticks(self, across: Sequence[float], upward: Sequence[float]) -> None:
        for value in across:
            x, y = self.place(value, self._upward[0])
            self.parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{value:g}</text>')
        for value in upward:
            x, y = self.place(self._across[0], value)
            self.parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')

    def line(
        self, points: Sequence[tuple[float, float]], colour: str, dash: str = "none", width: float = 2
    ) -> None:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (self.place(*p) for p in points))
        self.parts.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash}"/>'
        )

    def dots(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        for x, y in (self.place(*p) for p in points):
            self.parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}" fill-opacity=".6"/>'
            )


def sheet(plots: Sequence[Plot], keys: Sequence[tuple[str, str, str]], path: Path) -> None:
    """Plots side by side with one key (name, colour, dash) below, as a file."""
    rows = -(-len(keys) // 4)
    width, height = WIDTH * len(plots), HEIGHT + 20 * rows + 8
    body = [f'<g transform="translate({WIDTH * i} 0)">{"".join(p.parts)}</g>' for i, p in enumerate(plots)]
    for i, (name, colour, dash) in enumerate(keys):
        x, y = EDGE + (i % 4) * (width - EDGE) / 4, HEIGHT + 14 + 20 * (i // 4)
        body.append(
            f'<path d="M{x} {y - 4}h24" stroke="{colour}" stroke-width="3" stroke-dasharray="{dash}"/>'
        )
        body.append(f'<text x="{x + 30}" y="{y}">{escape(name)}</text>')
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#444"><rect width="100%" height="100%" fill="#fff"/>'
        + "".join(body)
        + "</svg>\n"
    )


def gaps(found: Mapping[str, Any], path: Path) -> None:
    """Ens Lgt less Uni Soups over the number of models, a line for each network, under both protocols."""
    nets = {
        n.split("-")[1]: one
        for n, one in found.items()
        if n.startswith("average-") and n.endswith("-cifar10")
    }
    if not nets:
        return
    styles: dict[str, tuple[str, str]] = {}
    for index, name in enumerate(sorted({n.removesuffix("_bn") for n in nets})):
        for net in (name, f"{name}_bn"):
            styles[net] = COLOURS[index % len(COLOURS)], DASHES[net.endswith("_bn")]
    plots: list[Plot] = []
    for protocol in ("correct", "rethink"):
        lines = {
            name: [(float(n), s["logits"] - s["uniform"]) for n, s in one[protocol].items()]
            for name, one in nets.items()
        }
        values = [y for points in lines.values() for _, y in points]
        low, high = min(0.0, *values), max(values)
        plot = Plot(protocol, ("models", "Ens Lgt less Uni Soups, points"), (2, 10), (low, high))
        step = next(s for s in (0.5, 1, 2, 5, 10, 20) if (high - low) / s <= 6)
        plot.ticks((2, 3, 5, 7, 10), [step * k for k in range(int(low // step) + 1, int(high // step) + 1)])
        for name, points in lines.items():
            plot.line(points, *styles[name])
        plots.append(plot)
    sheet(plots, [(name, *styles[name]) for name in sorted(nets)], path)


def batches(found: Mapping[str, Any], name: str, path: Path) -> None:
    """The paper's scatter: accuracy of the soup and of the ensemble on the same batches, at three places."""
    if f"magnitude-{name}" not in found:
        return
    own = found[f"magnitude-{name}"]["everything"]
    plots: list[Plot] = []
    for precision, factor in (("float32", "1"), ("float32", "100"), ("float64", "100")):
        pairs = [(x, y) for x, y in own[precision][factor]["scatter"]["pairs"]]
        low, high = min(min(p) for p in pairs), max(max(p) for p in pairs)
        low, high = 10 * (low // 10), 10 * (high // 10 + 1)
        plot = Plot(
            f"x{factor}, {precision}", ("uniform soup, %", "ensemble of logits, %"), (low, high), (low, high)
        )
        plot.ticks((low, high), (low, high))
        plot.line([(low, low), (high, high)], "#BBB", width=1)
        plot.dots(pairs, COLOURS[0])
        plots.append(plot)
    sheet(plots, [], path)
