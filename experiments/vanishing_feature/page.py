"""The README of this experiment, from what stands in `results/`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import page_features
import page_repairs
import page_training
from common.page import chart, point, spread, table
from nets import FAMILIES
from published import EDGES, HUNDRED_EDGES, Key, published

Found = dict[str, Any]

HEAD = """# Vanishing feature: the tables and figures, on small strangers

Made by `python experiments/vanishing_feature/run.py --data npz:cifar10.npz --fashion npz:fmnist.npz
--checkpoints FOLDER --models FOLDER`; beside are the numbers of Qu and Horváth (arXiv:2402.05966), of full-width
networks trained for 160 epochs, where ours are a quarter as wide and trained for minutes. What can be compared is the
order of rows and columns.

{sizes} Matching and repair see training images; choices are
made on validation images; test images are for the numbers. Answers are computed in {precision}. ± is the standard
deviation over pairs of strangers, which share no network. Kept layers meet in the paper's way (`variant="paper"`).
Networks trained here never saw a validation image; those of pair 1 of VGG16, VGG16-BN and ResNet20 did, in training.
Chance is {chance:.0f} %."""

NAMES = {
    "vgg16": "VGG16, plain (made of VGG16-BN by folding its norms and training on)",
    "vgg16scratch": "VGG16, plain, trained from scratch",
    "vgg16bn": "VGG16-BN",
    "vgg16ln": "VGG16-LN",
    "resnet20": "ResNet20",
    "resnet20ln": "ResNet20-LN",
    "vit": "Vision transformer, seven blocks, trained from scratch (theirs: pre-trained, wider)",
}
#: Whose published rows stand beside a family's.
BESIDE = {"vgg16scratch": "vgg16"}
#: Stages with a page of their own.
OTHERS = (("repairs", page_repairs.section), ("features", page_features.section))
#: Gaps smaller than this, in points, are no order.
GAP = 1.0


def write(folder: Path) -> None:
    """Tables of what has been measured, and charts beside the results."""
    known = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    measured = [k["settings"] for key, k in known.items() if key.startswith("tables-")]
    if not measured:
        return
    settings = max(measured, key=lambda one: one["test"] or float("inf"))
    classes = settings["classes"]

    def of(stage: str, family: str) -> list[Found]:
        return [k["found"] for key, k in known.items() if key.rsplit("-", 1)[0] == f"{stage}-{family}"]

    def sized(stage: str, family: str, section: list[str]) -> list[str]:
        """A section whose images are not those of the tables says so."""
        own = [k["settings"] for key, k in known.items() if key.rsplit("-", 1)[0] == f"{stage}-{family}"]
        other = [one for one in own if one != settings]
        return [*section[:2], f"{_sizes(other[0])}", "", *section[2:]] if other else section

    tables = {family: found for family in FAMILIES if (found := of("tables", family))}
    sections = [sized("tables", family, _tables(family, found, classes)) for family, found in tables.items()]
    sections.append(_orders(tables, classes))
    for stage, section in (("curves", _curves), ("apart", _apart), *OTHERS):
        found = {family: found for family in FAMILIES if (found := of(stage, family))}
        sections += [sized(stage, family, section(folder, family, own)) for family, own in found.items()]
    if "linear" in known:
        sections.append(page_training.linear(folder, known["linear"]["found"]))
    if "training" in known:
        sections.append(page_training.effects(folder, known["training"]["found"]))
    seconds = sum(k["seconds"] for k in known.values()) / 60
    sections.append([f"Measuring took {seconds:.0f} minutes of one processor core, without training."])
    head = HEAD.format(sizes=_sizes(settings), precision=settings["precision"], chance=100 / classes)
    page = (folder.parent if folder.name == "results" else folder) / "README.md"
    notes = page.read_text().split("<!-- notes -->")[-1] if page.exists() else "\n"
    body = "\n\n".join("\n".join(section) for section in sections)
    page.write_text(f"{head}\n\n{body}\n\n<!-- notes -->{notes}")


def _sizes(settings: Found) -> str:
    counts = [settings["calibration"], settings["validation"], settings["test"] or "all"]
    return "Images: {} calibration, {} validation and {} test.".format(*counts)


def _values(found: Sequence[Found], key: str) -> list[float]:
    """Accuracies of all pairs that have the cell."""
    cells = [pair[key] for pair in found if key in pair]
    return [cell["accuracy"] for cell in cells if "accuracy" in cell]


def _tables(family: str, found: Sequence[Found], classes: int) -> list[str]:
    """A family's midpoints: methods and repairs across, depth of preservation down, theirs under ours."""
    about = FAMILIES[family]
    beside = BESIDE.get(family, family)
    theirs = published(beside, classes)
    edges = (HUNDRED_EDGES if classes == 100 else EDGES).get(beside)
    networks = [score for pair in found for score in pair["parents"]]
    lines = [
        f"## {NAMES[family]}",
        "",
        f"{len(found)} pair{'s' * (len(found) > 1)}; networks {spread(networks)} %, ensemble "
        f"{spread([pair['ensemble'] for pair in found])} %"
        + (f" (published: {edges[0]}; ensemble {edges[1]})." if edges else "; nothing published."),
        "",
    ]
    for method in about.methods[1:]:
        repairs = [r for r in ("none", *about.repairs) if any(f"{method} 0 {r}" in pair for pair in found)]
        rows: list[list[str]] = []
        for depth in about.kept:
            if not any(f"{method} {depth} none" in pair for pair in found):
                continue
            ours = [_cell(found, f"{method} {depth} {repair}") for repair in repairs]
            cost = next((pair[f"cost {depth}"] for pair in found if f"cost {depth}" in pair), None)
            told = f"{cost[0]:.2f} / {cost[1]:.2f}" if cost else ""
            rows.append([f"{depth} of {about.depth}", told, _cell(found, f"direct {depth} none"), *ours])
            cells = [
                theirs.get(("direct", depth, "none"), ""),
                *(theirs.get((method, depth, r), "") for r in repairs),
            ]
            if any(cells[1:]):
                rows.append(["*published*", "", *(f"*{cell}*" if cell else "" for cell in cells)])
        if rows:
            lines += [f"**{method}**", ""]
            lines += [*table(["kept", "parameters / FLOPs", "direct", *repairs], rows), ""]
    return lines[:-1]


def _cell(found: Sequence[Found], key: str) -> str:
    values = _values(found, key)
    if not values:
        return "refused" if any(key in pair for pair in found) else ""
    return spread(values) + (f" ({len(values)} of {len(found)} pairs)" if len(values) < len(found) else "")


def _orders(pairs: Mapping[str, Sequence[Found]], classes: int) -> list[str]:
    """Which of the published orders hold here: of repairs, of methods, and of depths."""
    rows: list[list[str]] = []
    for family, found in pairs.items():
        theirs = published(BESIDE.get(family, family), classes)
        cells = {
            key: (float(cell.split()[0]), 100 * mean(values))
            for key, cell in theirs.items()
            if (values := _values(found, " ".join(map(str, key))))
        }
        gaps: dict[str, list[tuple[float, float]]] = {}
        for (one, (a, x)), (two, (b, y)) in itertools.combinations(cells.items(), 2):
            if abs(a - b) >= GAP and abs(x - y) >= GAP and (what := _compared(one, two)):
                gaps.setdefault(what, []).append((a - b, x - y))
        for what, both in gaps.items():
            held = sum(a * x > 0 for a, x in both)
            told = [f"{mean(values):+.1f}" for values in zip(*both, strict=True)]
            rows.append(
                [
                    NAMES[family] if both is next(iter(gaps.values())) else "",
                    what,
                    f"{held} of {len(both)}",
                    *told,
                ]
            )
    return [
        "## Which orders hold",
        "",
        "Cells that differ in one thing, where the gap is",
        f"{GAP:g} point or more both published and here: in how many the sign is the same, and the mean gap in points.",
        "",
        *table(["networks", "order", "holds", "published gap", "gap here"], rows),
    ]


def _compared(one: Key, two: Key) -> str:
    """The one thing in which two cells differ; nothing if there are more, or if it is the direct merge's method."""
    if [a == b for a, b in zip(one, two, strict=True)].count(False) != 1:
        return ""
    if one[1] != two[1]:
        return "less kept against more"
    at = 0 if one[0] != two[0] else 2
    return f"{one[at]} against {two[at]}"


def _curves(folder: Path, family: str, found: Sequence[Found]) -> list[str]:
    """Accuracy over alpha for every repair, and both ends of bias removal."""
    lines = [f"## Along the segment: {NAMES[family]}", ""]
    for method in ("weight-matching", "zipit"):
        keys = [key.split() for key in found[0] if key.startswith(f"{method} ") and len(key.split()) == 3]
        repairs = list(dict.fromkeys(key[1] for key in keys if key[1] not in ("last", "first")))
        if not repairs:
            continue
        alphas = sorted({float(key[2]) for key in keys if key[1] == "none"})
        drawn = {
            repair: [
                point(alpha, [pair[key] for pair in found if key in pair], 100)
                for alpha in alphas
                if any((key := f"{method} {repair} {alpha}") in pair for pair in found)
            ]
            for repair in repairs
        }
        name = f"curves-{family}-{method}.svg"
        lines += [chart(folder / name, f"{family}, {method}", "alpha", "test accuracy, %", drawn), ""]
        counts = [int(key[2]) for key in keys if key[1] == "first"]  # measured after the last ones
        if counts:
            chosen = ", ".join(str(pair[f"{method} chosen"]) for pair in found)
            rows = [
                [end, *(spread([pair[f"{method} {end} {c}"] for pair in found], digits=1) for c in counts)]
                for end in ("last", "first")
            ]
            lines += [
                f"Biases removed at the midpoint of {method}, from the output or from the input; the best number",
                f"of last layers by validation: {chosen} (published: 5 or 6; removing first ones hurts).",
                "",
                *table(["layers", *map(str, counts)], rows),
                "",
            ]
    return lines[:-1]


def _apart(folder: Path, family: str, found: Sequence[Found]) -> list[str]:
    """First layers kept against last ones, and first layers permuted."""
    keys = [key.split() for key in found[0]]
    counts = sorted({int(key[2]) for key in keys if key[1] == "first"})
    repairs = list(dict.fromkeys(key[3] for key in keys if key[1] == "first"))
    lines = [f"## Which end is kept: {NAMES[family]}", ""]
    for method in ("activation-matching", "zipit"):

        def line(end: str, repair: str, method: str = method) -> list[tuple[float, float, float]]:
            return [point(c, [pair[f"{method} {end} {c} {repair}"] for pair in found], 100) for c in counts]

        drawn = {f"{end}, {repair}": line(end, repair) for end in ("first", "last") for repair in repairs}
        name = f"apart-{family}-{method}.svg"
        rows = [[label, *(f"{m:.1f}" for _, m, _ in places)] for label, places in drawn.items()]
        lines += [chart(folder / name, f"{family}, {method}", "layers kept", "test accuracy, %", drawn), ""]
        lines += [*table([f"{method}, kept", *map(str, counts)], rows), ""]
    told = sorted({int(key[1]) for key in keys if key[0] == "permuted"})
    rows = [
        [repair, *(spread([pair[f"permuted {c} {repair}"] for pair in found], digits=1) for c in told)]
        for repair in repairs
    ]
    return [
        *lines,
        "Only the outputs of the first so many layers are matched (activations), the others are merged as they are:",
        "",
        *table(["layers matched", *map(str, told)], rows),
    ]
