"""Tables and figures of what `run.py` measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import page

NAMES = {
    "vgg16bn": "VGG16, batch norm",
    "resnet20": "ResNet20, batch norm",
    "vgg16ln": "VGG16, layer norm",
    "vgg16": "VGG16, no norm",
}

HEAD = """# One-shot pruning, and its repair

Made by `python experiments/pruning/run.py --data npz:cifar10.npz --checkpoints FOLDER --models FOLDER`. Networks of a
quarter of the published width on CIFAR-10 (chance 10 %), weights of all convolutions and of the classifier pruned,
biases and norms not. Repairs see {calibration} training images in batches of 64 and take the unpruned network as the
reference. Options of pruners, and of nothing else, are chosen at 90 % on {validation} validation images; numbers are
test accuracies in per cent on {test} images. ± is the standard deviation over networks (seeds).
"""


def write(folder: Path) -> None:
    """Write the page for all results that there are."""
    found = {name: list(_read(folder, name)) for name in NAMES}
    found = {name: runs for name, runs in found.items() if runs}
    if not found:
        return
    settings = next(iter(found.values()))[0]["settings"]
    sections = [section for name, runs in found.items() for section in _family(folder, name, runs)]
    sections += [_samples(found), _vanishing(folder, found), _options(found)]
    head = HEAD.format(**{**settings, "test": settings["test"] or 10000})
    readme = folder / "README.md"
    notes = readme.read_text().split("<!-- notes -->")[-1] if readme.exists() else "\n"
    lines = [head, *(line for section in sections for line in (*section, ""))]
    readme.write_text("\n".join(lines) + "\n<!-- notes -->" + notes)


def _read(folder: Path, family: str) -> Iterator[dict[str, Any]]:
    for path in sorted((folder / "results").glob(f"{family}_s[0-9]*.json")):
        known = json.loads(path.read_text())
        if "unpruned" in known["found"]:
            yield known


def _family(folder: Path, family: str, runs: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    cells: dict[str, dict[float, list[dict[str, float]]]] = {}
    for run in runs:
        for key, row in run["found"].items():
            if "before" in row:
                pruner, _, sparsity = key.rpartition(" ")
                cells.setdefault(pruner, {}).setdefault(float(sparsity), []).append(row)
    if not cells:
        return
    unpruned = [run["found"]["unpruned"]["test"] for run in runs]
    sparsities = sorted({s for row in cells.values() for s in row})
    ways = {
        pruner: [w for w in next(iter(found.values()))[0] if w != "sparsity"]
        for pruner, found in cells.items()
    }
    rows = [
        [pruner if way == "before" else "", way]
        + [page.spread([row[way] for row in found.get(s, [])], digits=1) for s in sparsities]
        for pruner, found in cells.items()
        for way in ways[pruner]
    ]
    seen = runs[0]["found"]["unpruned"].get("images")
    images = f", {seen} test images" if seen else ""
    count = f"{len(runs)} network" + ("s" if len(runs) > 1 else "")
    yield [
        f"## {NAMES[family]}",
        "",
        f"{count}, unpruned {page.spread(unpruned)} %{images}.",
        "",
        *page.table(["pruner", "repair", *(f"{100 * s:g} %" for s in sparsities)], rows),
    ]
    usual = next(iter(ways.values()))[1]
    for way in ("before", usual):
        lines = {
            pruner: [page.point(100 * s, [row[way] for row in found[s]], 100.0) for s in sorted(found)]
            for pruner, found in cells.items()
        }
        title = f"{NAMES[family]}: " + ("pruned" if way == "before" else f"pruned, then {way}")
        path = folder / "results" / f"{family}-{'before' if way == 'before' else 'after'}.svg"
        yield [page.chart(path, title, "sparsity, %", "test accuracy, %", lines)]


def _samples(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    runs = {name: run["found"]["samples"] for name, (run, *_) in found.items() if "samples" in run["found"]}
    counts = sorted({int(n) for row in runs.values() for n in row})
    rows = [
        [NAMES[name], *(page.spread([row[str(n)]["test"]] if str(n) in row else []) for n in counts)]
        for name, row in runs.items()
    ]
    return [
        "## How many images a repair needs",
        "",
        "Global magnitude at 90 %, the usual repair (RESET; without batch norm the first of its table), seed 1.",
        "",
        *page.table(["network", *(f"{n} images" for n in counts)], rows),
    ]


def _vanishing(folder: Path, found: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        "## Features vanish",
        "",
        "E_l of definition 5.1 (norm of f(x) - f(0) over the unpruned network's) at the outputs of linear and conv",
        "operations, global magnitude at 90 %, 500 test images, seed 1.",
        "",
    ]
    for name, (run, *_) in found.items():
        if "vanishing" not in run["found"]:
            continue
        profiles = run["found"]["vanishing"]
        drawn = {
            told: [(float(i + 1), value, 0.0) for i, value in enumerate(row.values())]
            for told, row in profiles.items()
        }
        path = folder / "results" / f"{name}-vanishing.svg"
        lines += [page.chart(path, NAMES[name], "layer", "E_l", drawn), ""]
        ends = {told: (min(row.values()), list(row.values())[-1]) for told, row in profiles.items()}
        told = "; ".join(f"{told}: smallest {low:.3g}, logits {end:.3g}" for told, (low, end) in ends.items())
        lines += [f"{NAMES[name]}: {told}.", ""]
    return lines


def _options(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    rows = [
        [
            NAMES[name],
            key.removeprefix("options of "),
            ", ".join(
                f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in tried["options"].items()
            ),
            f"{100 * tried['validation']:.2f}",
        ]
        for name, (run, *_) in found.items()
        for key, row in run["found"].items()
        if key.startswith("options of ") and len(row["tried"]) > 1
        for tried in row["tried"]
    ]
    return [
        "## Options, on validation",
        "",
        "At 90 %, after the usual repair; the best of each is used everywhere above.",
        "",
        *page.table(["network", "pruner", "options", "validation %"], rows),
    ]
