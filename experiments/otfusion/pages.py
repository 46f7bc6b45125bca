"""The README of this experiment, from what stands in `results/`."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from common import page
from common.bench import Bench
from common.page import spread
from fusion import WAYS

#: Of Fashion-MNIST, by number.
CLASSES = {"4": "coat", "8": "bag"}

HEAD = """# OT fusion: unlike data, two widths, several networks

Made by `python experiments/otfusion/run.py --fashion npz:FILE --models FOLDER`, on Fashion-MNIST.
Test accuracy in %, mean ± standard deviation over seeds; chance 10 %. Options (which value of a layer is compared;
the regularisation of Sinkhorn) and weights of networks are chosen on 2000 validation images. *Direct*: units stay
where they are; other widths are cut off or padded with zeros. Published: Singh and Jaggi 2020 (arXiv:1910.05653).
"""


def write(bench: Bench) -> None:
    """Tables of what has been measured, and charts beside the results."""
    known = page.read(bench.folder)
    made = {"specialist": _specialist, "widths": _widths, "several": _several}
    sections = [part(bench.folder, known[name]) for name, part in made.items() if name in known]
    home = Path(__file__).parent
    page.write(home if bench.folder == home / "results" else bench.folder, HEAD, sections, known)


def _cells(found: dict[str, Any], *first: str) -> dict[str, list[Any]]:
    """Way -> what was measured of every seed, of the keys that begin so."""
    cells: dict[str, list[Any]] = {}
    for key, value in found.items():
        *head, _, way = key.split("/")
        if tuple(head) == first:
            cells.setdefault(way, []).append(value)
    return cells


def _merged(values: list[Any]) -> str:
    """The merged network, and in brackets the carried ones alone."""
    return (
        f"{spread([v['test'] for v in values])} ({100 * mean(v['carried'] for v in values):.1f})"
        if values
        else ""
    )


def _specialist(folder: Path, known: dict[str, Any]) -> list[str]:
    found, shape = known["found"], "-".join(map(str, known["settings"]["widths"]))
    groups = list(dict.fromkeys(tuple(key.split("/")[:3]) for key in found))
    rows: list[list[str]] = []
    for special, part, times in groups:
        cells = _cells(found, special, part, times)
        alone = cells["alone"]
        label = f"{CLASSES[special]}, {100 * float(part):g} %" + ("" if times == "1" else ", x2")
        for number, name in enumerate(("first network", "second network")):
            rows.append(
                [label if not number else "", name, spread([a["each"][number] for a in alone]), "", ""]
            )
        rows.append(["", "ensemble", spread([a["ensemble"] for a in alone]), "", ""])
        rows.append(["", "trained on both data", spread(cells["joint"]), "", ""])
        for way in WAYS:
            values = cells.get(way, [])
            if values:
                half = spread([v["test"][len(v["test"]) // 2] for v in values])
                at = f"{mean(v['t'] for v in values):.2f}"
                rows.append(["", way, spread([v["best"] for v in values]), at, half])
    drawn: list[str] = []
    for special in dict.fromkeys(group[0] for group in groups):
        cells = _cells(found, special, "0.1", "1")
        lines = {
            way: [page.point(t / 10, [100 * v["test"][t] for v in cells[way]]) for t in range(11)]
            for way in WAYS
            if way in cells
        }
        title = f"Only the first has seen: {CLASSES[special]}; 10 % of the others"
        path = folder / f"specialist-{CLASSES[special]}.svg"
        drawn.append(page.chart(path, title, "weight of the second network", "test accuracy, %", lines))
    return [
        "## A class that only one network has seen",
        "",
        "The first network saw every image of one class and a part of the others; the second one the rest, and none of",
        f"that class. Perceptrons of {shape}; x2: the second one is twice as wide. The first is carried to the",
        "second's units, which are compared on 400 of the second's images. *Best*: at the weight that is best on",
        "validation images, whose mean is beside. Published (digit 4, perceptrons of 400-200-100, figures without",
        "numbers): fusion is far above direct averaging at every weight, and at some above both networks.",
        "",
        *page.table(["class, part of the others", "way", "best", "weight of the second", "midpoint"], rows),
        "",
        *drawn,
    ]


def _widths(_: Path, known: dict[str, Any]) -> list[str]:
    found, settings = known["found"], known["settings"]
    shape = "-".join(map(str, settings["widths"]))
    names = sorted({key.split("/")[0] for key in found})
    columns = ["way", *(f"{name} -> {into}" for name in names for into in ("narrow", "wide"))]
    rows: list[list[str]] = []
    alone = {name: _cells(found, name, "both")["alone"] for name in names}
    for number, label in enumerate(("narrow alone", "wide alone")):
        rows.append([label, *(c for n in names for c in (spread([a["each"][number] for a in alone[n]]), ""))])
    rows.append(["ensemble", *(c for n in names for c in (spread([a["ensemble"] for a in alone[n]]), ""))])
    for way in WAYS:
        told = [
            _merged(_cells(found, name, into).get(way, [])) for name in names for into in ("narrow", "wide")
        ]
        rows.append([way if way != "direct" else "cut off or padded", *told])
    return [
        "## A narrow and a wide network",
        "",
        *page.prose(
            "Midpoints in the units of either; in brackets what the carried network scores alone. mlp: "
            f"{shape} with twice as many; vgg: four convolutions with batch norms (reset), {settings['base']} "
            "first channels with twice as many; images of 14 x 14. Published (a figure, in the setting "
            "above): fusion works where the second network is twice as wide; its code has neither biases nor "
            "batch norms."
        ),
        "",
        *page.table(columns, rows),
    ]


def _several(_: Path, known: dict[str, Any]) -> list[str]:
    found = known["found"]
    names = sorted({key.split("/")[0] for key in found})
    counts = sorted({key.split("/")[1] for key in found})
    columns = ["way", *(f"{name}, {count}" for name in names for count in counts)]
    places = [(name, count) for name in names for count in counts]
    rows = [
        [
            "networks",
            *(spread([mean(a["each"]) for a in _cells(found, *p).get("alone", [])]) for p in places),
        ],
        ["ensemble", *(spread([a["ensemble"] for a in _cells(found, *p).get("alone", [])]) for p in places)],
    ]
    rows += [[way, *(_merged(_cells(found, *p).get(way, [])) for p in places)] for way in WAYS]
    tuned = dict.fromkeys(key.split("/")[3] for key in found if key.endswith("tuned"))
    rows += [[way, *(spread(_cells(found, *p).get(way, [])) for p in places)] for way in tuned]
    return [
        "## Several networks, and training on",
        "",
        *page.prose(
            "All networks carried to one, each of three in turn; in brackets what the carried networks score "
            "alone. *Tuned* (of two): two further epochs at a tenth of the rate, the same for the anchor "
            "alone. Published (VGG11, CIFAR-10): networks 90.4, ensemble 91.34 / 91.77 / 91.85 of 2 / 4 / 6, "
            "direct 17.02 / 10.00 / 10.00, fused 85.98 / 73.31 / 72.16."
        ),
        "",
        *page.table(columns, rows),
    ]
