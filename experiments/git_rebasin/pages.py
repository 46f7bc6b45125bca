"""The README of this experiment, from what stands in `results/`."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from common import page
from common.bench import Bench
from common.page import spread

WAYS = ("direct", "weight matching", "activation matching", "straight-through")

HEAD = """# Git Re-Basin: barriers over width, unlike data, and two networks that no order joins

Made by `python experiments/git_rebasin/run.py --fashion npz:FILE --cifar npz:FILE --models FOLDER`. Networks of other
seeds, every two a pair; ± is the standard deviation over pairs, which share networks. Matching by activations and
straight-through see 1000 training images; straight-through's learning rate is chosen on 2000 validation images; 5000
test images are for the numbers. The barrier is how far the worst of 11 points on the line falls behind its ends,
interpolated (Entezari et al. 2022); Git Re-Basin's own takes the ends' mean, which is the same for equal ends.
Published: Ainsworth et al. 2023 (arXiv:2209.04836).
"""


def write(bench: Bench) -> None:
    """Tables of what has been measured, and charts beside the results."""
    known = page.read(bench.folder)
    sections: list[list[str]] = []
    if "mlp" in known:
        sections.append(
            [
                "## Three hidden layers, Fashion-MNIST",
                "",
                *page.prose(
                    "Published: MNIST, 3 x 512, no barrier after weight matching or straight-through; "
                    "CIFAR-10, a barrier remains. Ours: 10 epochs of 12000 images times the scale."
                ),
                "",
                *_widths(bench.folder, "mlp", "units of a layer", known["mlp"]),
            ]
        )
    if "resnet" in known:
        depth = known["resnet"]["settings"]["depth"]
        sections.append(
            [
                f"## ResNet{depth} with layer norms, CIFAR-10 at 16 x 16",
                "",
                *page.prose(
                    "Published: ResNet20 with layer norms, CIFAR-10 at 32 x 32: no barrier at 32 times the "
                    "width (512 first channels) after weight matching. Ours is as wide as shown, and "
                    "shallower."
                ),
                "",
                *_widths(bench.folder, "resnet", "first channels", known["resnet"]),
            ]
        )
    for name, title in (
        ("disjoint-mlp", "MLP, Fashion-MNIST"),
        ("disjoint-resnet", "ResNet, CIFAR-10 at 16 x 16"),
    ):
        if name in known:
            sections.append(_disjoint(bench.folder, name, title, known[name]["found"]))
    if "toy" in known:
        sections.append(_toy(known["toy"]["found"]))
    home = Path(__file__).parent
    page.write(home if bench.folder == home / "results" else bench.folder, HEAD, sections, known)


def _widths(folder: Path, name: str, axis: str, known: dict[str, Any]) -> list[str]:
    cells = _cells(known["found"])
    sizes = sorted({int(key[0]) for key in cells})
    rows: list[list[str]] = []
    for width in sizes:
        for way in WAYS:
            found = [value for key, value in cells.items() if key[0] == str(width) and key[2] == way]
            if not found:
                continue
            ends = [e for f in found for e in (f["accuracy"][0], f["accuracy"][-1])]
            rows.append(
                [
                    str(width) if way == WAYS[0] else "",
                    way,
                    f"{100 * mean(ends):.2f}" if way == WAYS[0] else "",
                    spread([f["accuracy"][len(f["accuracy"]) // 2] for f in found]),
                    spread([f["barrier"]["accuracy"] for f in found]),
                    spread([f["barrier"]["loss"] for f in found], 1, 3),
                ]
            )
    lines = {
        way: [
            page.point(w, [v["barrier"]["loss"] for k, v in cells.items() if k[0] == str(w) and k[2] == way])
            for w in sizes
        ]
        for way in WAYS
    }
    picture = page.chart(
        folder / f"{name}.svg", "Test loss barrier over width", axis, "barrier, nats", lines, log_x=True
    )
    columns = [axis, "way", "parents %", "midpoint %", "accuracy barrier, points", "loss barrier, nats"]
    return [*page.table(columns, rows), "", "Chance 10 %.", "", picture]


def _disjoint(folder: Path, name: str, title: str, found: dict[str, Any]) -> list[str]:
    cells = _cells(found)
    seeds = sorted({key[1] for key in cells})
    lines = [v for k, v in cells.items() if k[2] == "lines"]
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
    curves = {w: [v for k, v in cells.items() if k[2] == w] for w in WAYS}
    curves = {way: values for way, values in curves.items() if len(values) == len(seeds)}
    parents = curves["direct"]
    for label, place in (("first network", 0), ("second network", -1)):
        losses = [c["loss"][place] for c in parents]
        rows.append([label, spread(losses, 1, 3), "", spread([c["accuracy"][place] for c in parents]), ""])
    for way, values in curves.items():
        cells_of = []
        for key, pick, scale, digits in (("loss", min, 1.0, 3), ("accuracy", max, 100.0, 2)):
            mean_curve = [mean(points) for points in zip(*(c[key] for c in values), strict=True)]
            at = mean_curve.index(pick(mean_curve))
            inside = [c[key][at] for c in values]
            cells_of += [spread(inside, scale, digits), f"{at / (len(mean_curve) - 1):.1f}"]
        rows.append([way, *cells_of])
    count = len(parents[0]["loss"])
    drawn = {
        way: [page.point(t / (count - 1), [c["loss"][t] for c in values]) for t in range(count)]
        for way, values in curves.items()
    }
    for way in ("ensemble", "joint training"):
        drawn[way] = [page.point(t, [v[way]["loss"] for v in lines]) for t in (0.0, 1.0)]
    picture = page.chart(
        folder / f"{name}.svg",
        f"Unlike data: {title}",
        "weight of the second network",
        "test loss, nats",
        drawn,
    )
    return [
        f"## Unlike data: {title}",
        "",
        *page.prose(
            "The first network saw a fifth of the images of classes 0 to 4 and four fifths of the others, "
            "the second one the rest. Best point of the mean curve, ends included; t is the weight of the "
            "second network."
        ),
        "",
        *page.table(["way", "loss, nats", "at t", "accuracy %", "at t"], rows),
        "",
        *page.prose(
            "Published (ResNet20, CIFAR-100): weight matching's best loss is 1.73 near t = 0.3, below both "
            "networks', its accuracy hardly above theirs; joint training is best, the ensemble next. Chance "
            "10 %."
        ),
        "",
        picture,
    ]


def _toy(found: dict[str, Any]) -> list[str]:
    planted = found["planted"]
    rows = [
        [f"orders {name}", f"{100 * value['barrier']['accuracy']:.1f}", f"{100 * min(value['accuracy']):.1f}"]
        for name, value in planted["orders"].items()
    ]
    rows += [
        [name, f"{100 * value['barrier']['accuracy']:.1f}", f"{100 * min(value['accuracy']):.1f}"]
        for name, value in planted["methods"].items()
    ]
    trained = [v for k, v in found.items() if k.startswith("trained/")]
    for way in ("direct", "weight matching"):
        rows.append(
            [
                f"trained, {way}",
                spread([t[way]["barrier"]["accuracy"] for t in trained], digits=1),
                spread([min(t[way]["accuracy"]) for t in trained], digits=1),
            ]
        )
    ends = [t["direct"]["accuracy"][0] for t in trained]
    chance = next(iter(planted["orders"].values()))["chance"]
    return [
        "## Two networks that no order joins",
        "",
        *page.prose(
            "The published counter-example: two networks of two hidden layers of two units, both right on "
            f"every point, with other weights than training finds. All four orders, {planted['examples']} "
            f"points, 21 places; guessing {100 * chance:.1f} %. Below, networks with hidden layers of 32 that "
            f"were trained on the same task ({spread(ends, digits=1)} % right)."
        ),
        "",
        *page.table(["second network", "accuracy barrier, points", "lowest accuracy %"], rows),
    ]


def _cells(found: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    return {tuple(key.split("/")): value for key, value in found.items()}
