"""Tables and figures of what `run.py` measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from common import page
from scipy.stats import spearmanr

MEASURES = ("CKA", "control", "G_ReLU-CKA", "Procrustes", "G_ReLU-Procrustes")

HEAD = """# How alike strangers are, layer by layer

Made by `python experiments/stitching/run.py --checkpoints FOLDER --cifar npz:cifar10.npz --fashion npz:fmnist.npz`.
Pairs of networks that were trained apart, compared at what layers read (behind the activation, before pooling), on
{examples} training images. CKA: linear, unbiased, averaged over batches of 250. Control: the same of channels that
are centred and of unit norm. G_ReLU-CKA: of those, the channel in which two images agree most. Penalty: the two
networks' mean test accuracy less that of the stitched network, in points, on {test} test images; the map is the
least-squares one with bias (no training; its ridge by the affine one on 500 validation images): affine, what ReLU
lets through (relu: an order with positive scales), affine of a rank, or none (identity). ± is the standard deviation
over pairs and directions.
"""


def write(folder: Path, families: Sequence[str]) -> None:
    """Write the page for all results that there are."""
    runs = [json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))]
    # A pair that is not measured to its end is left out.
    runs = [run for run in runs if {*MEASURES, "G_ReLU-CKA of one"} <= run["found"].keys()]
    if not runs:
        return
    by_family = {name: [run for run in runs if run["settings"]["family"] == name] for name in families}
    sections = [s for name, own in by_family.items() if own for s in _family(folder, name, own)]
    settings = runs[0]["settings"]
    head = HEAD.format(examples=settings["examples"], test=settings["test"] or 10000)
    readme = folder / "README.md"
    notes = readme.read_text().split("<!-- notes -->")[-1] if readme.exists() else "\n"
    lines = [head, *(line for section in sections for line in (*section, ""))]
    readme.write_text("\n".join(lines) + "\n<!-- notes -->" + notes)


def _family(folder: Path, family: str, runs: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    found = [run["found"] for run in runs]
    measures = [name for name in MEASURES if name in found[0]]
    places = list(found[0][measures[0]]["diagonal"])
    stitches = [row for one in found for key, row in one.items() if key.startswith("stitch")]
    kinds = list(stitches[0]["penalties"]) if stitches else []

    def likeness(name: str, place: str) -> list[float]:
        return [one[name]["diagonal"][place] for one in found if name in one]

    def penalty(kind: str, place: str) -> list[float]:
        return [row["penalties"][kind][place] for row in stitches if place in row["penalties"][kind]]

    rows = [
        [str(number), place]
        + [page.spread(likeness(name, place), 1.0, 3) for name in measures]
        + [page.spread(penalty(kind, place), 1.0, 1) for kind in kinds]
        for number, place in enumerate(places, 1)
    ]
    ends = page.spread([a for row in stitches for a in row["accuracies"]])
    pairs = f"{len(runs)} pair" + ("s" if len(runs) > 1 else "")
    yield [
        f"## {family}",
        "",
        f"{pairs}; "
        + (
            f"test accuracy of the networks {ends} %. Where other paths lead past a place, nothing is stitched."
            if stitches
            else "not stitched here."
        ),
        "",
        *page.table(["", "place", *measures, *kinds], rows),
    ]
    numbered = list(enumerate(places, 1))
    lines = {name: [page.point(i, likeness(name, place)) for i, place in numbered] for name in measures}
    title = f"{family}: likeness of strangers"
    yield [page.chart(folder / "results" / f"{family}-likeness.svg", title, "place", "1 is alike", lines)]
    cut = [(i, place) for i, place in numbered if kinds and penalty(kinds[0], place)]
    if cut:
        lines = {kind: [page.point(i, penalty(kind, place)) for i, place in cut] for kind in kinds}
        path = folder / "results" / f"{family}-penalty.svg"
        yield [page.chart(path, f"{family}: stitching penalty", "place", "points", lines)]
    yield _depth(found, places)
    if all("stopping" in one for one in found):
        yield from _stopping(folder, family, [one["stopping"] for one in found])


def _stopping(folder: Path, family: str, found: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """Barriers of partly merged networks, and how well similarities order those of single layers."""
    layers = found[0]["layers"]
    told = {"first": "layers 1 to i merged", "last": "layers i to the last", "single": "layer i alone"}
    lines = {
        said: [page.point(i + 1, [100 * one["barriers"][name][i] for one in found]) for i in range(layers)]
        for name, said in told.items()
    }
    path = folder / "results" / f"{family}-stopping.svg"
    numbers = {
        "merging from the input stops behind layer": [one["stop"] for one in found],
        "merging to the output may start at layer": [one["start"] for one in found],
        "barrier of merging all": [100 * one["barriers"]["first"][-1] for one in found],
        "barrier of the worst layer alone": [100 * max(one["barriers"]["single"]) for one in found],
    }
    numbers |= {
        f"rank correlation of {name}, falling, with the barrier of one layer": [
            _knows(o, name) for o in found
        ]
        for name in MEASURES[:3]
    }
    yield [
        "Merged in part after activation matching, each network keeping its other layers (equation 24 of the survey;",
        "batch norms taken anew): the barrier in points of accuracy, and what follows from it at a tolerance of 2,",
        f"of {layers} layers.",
        "",
        page.chart(path, f"{family}: barriers of partial merges", "layer i", "points", lines),
        "",
        *page.table(
            ["", family],
            [
                [name, page.spread(row, 1.0, 2 if "correlation" in name else 1)]
                for name, row in numbers.items()
            ],
        ),
    ]


def _knows(one: dict[str, Any], measure: str) -> float:
    """Whether the less alike layers are those that are harder to merge."""
    depths, alone = one["similarity"][measure], one["barriers"]["single"]
    return float(spearmanr([-v for v in depths.values()], [alone[int(d) - 1] for d in depths]).statistic)


def _depth(found: Sequence[dict[str, Any]], places: Sequence[str]) -> list[str]:
    """Whether the diagonal falls, and whether it says which layers belong together."""
    rows: list[list[str]] = []
    third = max(1, len(places) // 3)
    for name in MEASURES[:3]:
        diagonals = [list(one[name]["diagonal"].values()) for one in found if name in one]
        matrices = [one[name]["matrix"] for one in found if name in one]
        if not diagonals:
            continue
        right = mean(
            mean(float(max(range(len(row)), key=row.__getitem__) == i) for i, row in enumerate(matrix))
            for matrix in matrices
        )
        ends = [mean(mean(d[part]) for d in diagonals) for part in (slice(third), slice(-third, None))]
        trend = mean(_spearman(d) for d in diagonals)
        rows.append([name, *(f"{end:.3f}" for end in ends), f"{trend:+.2f}", f"{100 * right:.0f} %"])
    columns = [
        "",
        "first third",
        "last third",
        "rank correlation with depth",
        "diagonal is its row's largest",
    ]
    return page.table(columns, rows)


def _spearman(values: Sequence[float]) -> float:
    """Rank correlation of values with their place."""
    n = len(values)
    ranks = {i: rank for rank, i in enumerate(sorted(range(n), key=lambda i: values[i]))}
    squared = sum((i - ranks[i]) ** 2 for i in range(n))
    return 1 - 6 * squared / (n * (n * n - 1)) if n > 1 else 0.0
