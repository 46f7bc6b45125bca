"""The README of this experiment, from what stands in `results/`."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from common import page
from common.bench import Bench
from common.page import spread

HEAD = """# REPAIR: depth, width and unlike data

Made by `python experiments/repair/run.py --fashion npz:FILE --cifar npz:FILE --models FOLDER`. Networks of other
seeds, every two a pair; ± is the standard deviation over pairs, which share networks. *Matched*: by activations.
Matching and repairs see 1000 training images, without augmentation; 5000 test images are for the numbers; nothing is
chosen. Without a repair, batch norms have the average of both networks' statistics. The barrier is how far the worst
of five points (t = 0, 1/4, 1/2, 3/4, 1) falls behind the ends, interpolated. Chance 10 %. Published: Jordan et al.
2023 (arXiv:2211.08403).
"""


def write(bench: Bench) -> None:
    """Tables of what has been measured, and charts beside the results."""
    known = page.read(bench.folder)
    sections: list[list[str]] = []
    if "depth" in known:
        base = known["depth"]["settings"]["base"]
        sections.append(
            [
                "## Depth: VGG on Fashion-MNIST at 14 x 14",
                "",
                *page.prose(
                    f"Four stages, {base} first channels; layers are convolutions and the classifier. "
                    "Published (CIFAR-10, figure without numbers): without REPAIR the barrier grows with "
                    "depth, with it depth does not matter; VGG11 67.3 % -> 84.9 % where the networks have "
                    "89.6 (released notebook)."
                ),
                "",
                *_sizes(bench.folder, "depth", "layers", known["depth"]),
            ]
        )
    if "width" in known:
        depth = known["width"]["settings"]["depth"]
        sections.append(
            [
                f"## Width: ResNet{depth} with batch norms on CIFAR-10 at 16 x 16",
                "",
                *page.prose(
                    "REPAIR here is RESET and the outputs of residual blocks, by parameters of their own, as "
                    "published. Published: ResNet20 of four times the width (64 first channels) 11.7 % -> "
                    "90.3 % after RESET, networks 95.3 (released notebook); ResNet18 barrier 16 -> 1.5 "
                    "points."
                ),
                "",
                *_sizes(bench.folder, "width", "first channels", known["width"], log_x=True),
            ]
        )
    if "disjoint" in known:
        sections.append(_disjoint(bench.folder, known["disjoint"]))
    home = Path(__file__).parent
    page.write(home if bench.folder == home / "results" else bench.folder, HEAD, sections, known)


def _sizes(folder: Path, name: str, axis: str, known: dict[str, Any], log_x: bool = False) -> list[str]:
    cells = {tuple(key.split("/")): value for key, value in known["found"].items()}
    kinds = list(dict.fromkeys(kind for kind, *_ in cells))
    rows: list[list[str]] = []
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for kind in kinds:
        for size in sorted({int(s) for k, s, *_ in cells if k == kind}):
            own = {key: v for key, v in cells.items() if key[:2] == (kind, str(size))}
            for number, way in enumerate(dict.fromkeys(w for *_, w in own)):
                found = [v for (*_, w), v in own.items() if w == way]
                ends = [e for v in found for e in (v["accuracy"][0], v["accuracy"][-1])]
                barriers = [v["barrier"]["accuracy"] for v in found]
                rows.append(
                    [
                        f"{kind}, {size}" if not number else "",
                        f"{100 * mean(ends):.2f}" if not number else "",
                        way,
                        spread([v["accuracy"][len(v["accuracy"]) // 2] for v in found]),
                        spread(barriers),
                        spread([v["barrier"]["loss"] for v in found], 1, 3),
                    ]
                )
                if way.startswith("matched"):
                    label = f"{kind}, {way.removeprefix('matched').lstrip(', ') or 'no repair'}"
                    lines.setdefault(label, []).append(page.point(size, barriers, 100))
    picture = page.chart(
        folder / f"{name}.svg",
        f"Barrier over {name}, matched",
        axis,
        "accuracy barrier, points",
        lines,
        log_x=log_x,
    )
    columns = [f"network, {axis}", "networks %", "way", "midpoint %", "accuracy barrier", "loss barrier"]
    return [*page.table(columns, rows), "", picture]


def _disjoint(folder: Path, known: dict[str, Any]) -> list[str]:
    cells = {tuple(key.split("/")): value for key, value in known["found"].items()}
    settings = known["settings"]
    lines = [v for (*_, way), v in cells.items() if way == "lines"]
    rows = [
        [
            way,
            spread([v[way]["loss"] for v in lines], 1, 3),
            "",
            spread([v[way]["accuracy"] for v in lines]),
            "",
        ]
        for way in ("joint training", "ensemble")
    ]
    curves: dict[str, list[Any]] = {}
    for (*_, way), value in cells.items():
        if way != "lines":
            curves.setdefault(way, []).append(value)
    for label, place in (("first network", 0), ("second network", -1)):
        ends = curves["direct"]
        told = spread([v["loss"][place] for v in ends], 1, 3), spread([v["accuracy"][place] for v in ends])
        rows.append([label, told[0], "", told[1], ""])
    drawn: dict[str, list[tuple[float, float, float]]] = {}
    for way, values in curves.items():
        where = values[0]["t"]
        inside = range(1, len(where) - 1)  # the ends are the networks themselves
        row = [way]
        for key, sign, scale, digits in (("loss", 1, 1.0, 3), ("accuracy", -1, 100.0, 2)):
            means = [sign * mean(v[key][i] for v in values) for i in range(len(where))]
            at = min(inside, key=means.__getitem__)
            row += [spread([v[key][at] for v in values], scale, digits), f"{where[at]:.1f}"]
        rows.append(row)
        drawn[way] = [page.point(t, [v["accuracy"][i] for v in values], 100) for i, t in enumerate(where)]
    for way in ("ensemble", "joint training"):
        drawn[way] = [page.point(t, [v[way]["accuracy"] for v in lines], 100) for t in (0.0, 1.0)]
    title = f"Unlike data, ResNet{settings['depth']}"
    picture = page.chart(
        folder / "disjoint.svg", title, "weight of the second network", "test accuracy, %", drawn
    )
    return [
        f"## Unlike data: ResNet{settings['depth']}, {settings['base']} first channels, CIFAR-10 at 16 x 16",
        "",
        *page.prose(
            "The first network saw a fifth of the images of classes 0 to 4 and four fifths of the others, "
            "the second one the rest. Best point of the mean curve between the ends; t is the weight of the "
            "second network. Published (CIFAR-100): best loss 1.30 with REPAIR near t = 0.3, 1.73 by weight "
            "matching alone (Git Re-Basin)."
        ),
        "",
        *page.table(["way", "loss, nats", "at t", "accuracy %", "at t"], rows),
        "",
        picture,
    ]
