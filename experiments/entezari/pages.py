"""The README of this experiment, from what stands in `results/`."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import theorem
from common import page
from common.bench import Bench
from common.page import spread

SETS = ("strangers", "copies")
WAYS = ("none", "annealing, as published", "annealing, scaled", "weight matching")

HEAD = """# The role of permutations: width, depth, strangers and copies, and a theorem's rate

Made by `python experiments/entezari/run.py --fashion npz:FILE --models FOLDER`. *Strangers* are
networks of other seeds, every two a pair (the paper's set S); *copies* are a network and itself with its units in a
random order (its S'). ± is the standard deviation over pairs, of which strangers share networks. The barrier is how
far the worst of 11 points on the line falls behind its ends, interpolated, in points of accuracy on 2000 training
images, as published; test beside it. Nothing is chosen. Published: Entezari et al. 2022 (arXiv:2110.06296), who
anneal five networks at once for 50000 steps, on MNIST, SVHN and CIFAR; their finding is given in words, since the
figures print no numbers.
"""


def write(bench: Bench) -> None:
    """Tables of what has been measured, and charts beside the results."""
    known = page.read(bench.folder)
    sections: list[list[str]] = []
    if "width" in known:
        sections.append(
            [
                "## Width, one hidden layer",
                "",
                *page.prose(
                    "Published: the barrier goes to zero with width on MNIST, later on SVHN, not on CIFAR; "
                    "annealing lowers it on the easy data and hardly on CIFAR; copies behave like strangers."
                ),
                "",
                *_table(bench.folder, "width", "units", known["width"], log_x=True),
            ]
        )
    if "depth" in known:
        width = known["depth"]["settings"]["width"]
        sections.append(
            [
                f"## Depth, {width} units a layer",
                "",
                "Published: barriers rise steeply with depth (1024 units a layer), for copies as for strangers.",
                "",
                *_table(bench.folder, "depth", "hidden layers", known["depth"]),
            ]
        )
    if "theorem" in known:
        sections.append(_rates(bench.folder, known["theorem"]))
    home = Path(__file__).parent
    page.write(home if bench.folder == home / "results" else bench.folder, HEAD, sections, known)


def _table(folder: Path, name: str, axis: str, known: dict[str, Any], log_x: bool = False) -> list[str]:
    cells = {tuple(key.split("/")): value for key, value in known["found"].items()}
    sizes = sorted({int(size) for size, _, _ in cells})

    def values(size: int, kind: str, way: str, split: str) -> list[float]:
        chosen = [
            v for (s, pair, w), v in cells.items() if int(s) == size and pair.startswith(kind) and w == way
        ]
        return [v[split]["barrier"]["accuracy"] for v in chosen]

    rows: list[list[str]] = []
    for size in sizes:
        ends = [
            e
            for (s, pair, w), v in cells.items()
            if int(s) == size and pair.startswith("strangers") and w == "none"
            for e in (v["test"]["accuracy"][0], v["test"]["accuracy"][-1])
        ]
        for way in WAYS:
            if not values(size, "strangers", way, "train"):
                continue
            first = way == WAYS[0]
            row = [str(size) if first else "", f"{100 * mean(ends):.2f}" if first else "", way]
            row += [spread(values(size, kind, way, split)) for kind in SETS for split in ("train", "test")]
            rows.append(row)
    lines = {
        f"{kind}, {way}": [page.point(s, values(s, kind, way, "train"), 100) for s in sizes]
        for kind in SETS
        for way in ("none", "annealing, as published", "weight matching")
        if all(values(s, kind, way, "train") for s in sizes)
    }
    picture = page.chart(
        folder / f"{name}.svg", f"Barrier over {name}", axis, "training barrier, points", lines, log_x=log_x
    )
    columns = [axis, "parents %", "permutation found by", "strangers, train", "strangers, test"]
    columns += ["copies, train", "copies, test"]
    steps = known["settings"]["steps"]
    return [
        *page.table(columns, rows),
        "",
        f"Annealing as published: {steps} steps on 250 images. Chance 10 %.",
        "",
        picture,
    ]


def _rates(folder: Path, known: dict[str, Any]) -> list[str]:
    found: dict[int, dict[int, list[Any]]] = {}
    for key, value in known["found"].items():
        d, h, _ = map(int, key.split("/"))
        found.setdefault(d, {}).setdefault(h, []).append(value)
    rows: list[list[str]] = []
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for d, by_width in found.items():
        widest = max(by_width)
        narrow = min(by_width)
        for way in next(iter(by_width.values()))[0]:
            for measure in ("root mean square", "largest"):
                # In units of the outputs, whose size does not change with the width.
                values = {
                    h: [v[way][measure] / v[way]["outputs"] for v in draws] for h, draws in by_width.items()
                }
                fit = theorem.rate(values)
                rows.append(
                    [
                        str(d),
                        way,
                        measure,
                        spread(values[narrow], 1, 3),
                        spread(values[widest], 1, 3),
                        f"{fit['exponent']:.3f}",
                        f"{fit['r2']:.3f}",
                        f"{theorem.published(d):.3f}" if way != "direct" else "",
                    ]
                )
            if way != "weight matching":
                lines[f"d = {d}, {way.split(',')[0]}"] = [
                    page.point(h, [v[way]["root mean square"] / v[way]["outputs"] for v in draws])
                    for h, draws in by_width.items()
                ]
    tenth = theorem.published(10, 2048)
    picture = page.chart(
        folder / "theorem.svg",
        "Random networks of one hidden layer",
        "units",
        "deviation / output",
        lines,
        log_x=True,
        log_y=True,
    )
    columns = ["d", "order", "deviation", f"h = {narrow}", f"h = {widest}", "exponent", "r2", "theorem"]
    return [
        "## The theorem's rate",
        "",
        *page.prose(
            "Two random networks of one hidden layer; how far the interpolated network is from the "
            "interpolated outputs, in units of the outputs' root mean square, on 2048 points of the unit "
            "sphere: the root mean square at the midpoint, and the largest at a quarter, half and three "
            "quarters. Mean ± deviation of 5 draws; the exponent is that of h, fitted to means over all "
            "widths. The theorem's is -1/(2d + 4), up to logarithms; the survey's figure 7 draws that power, "
            f"{tenth:.4f} at d = 10, h = 2048."
        ),
        "",
        *page.table(columns, rows),
        "",
        picture,
    ]
