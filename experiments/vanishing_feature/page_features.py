"""The README's sections on features: bounds, logits, norms' statistics, images a repair needs, pruning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from common.page import Line, chart, point, spread, table

Found = dict[str, Any]


def section(folder: Path, family: str, found: Sequence[Found]) -> list[str]:
    """All of one family."""
    lines = [f"## Features: {family}", ""]
    first = [pair["bounds"] for pair in found]
    layers = len(first[0]["direct"]["bound"])
    drawn: dict[str, Line] = {}
    for name, profile in first[0].items():
        missing = layers - len(profile["bound"])  # kept apart: by definition 1
        drawn[name] = [
            point(place + 1, [1.0 if place < missing else b[name]["bound"][place - missing] for b in first])
            for place in range(layers)
        ]
    lines += [
        chart(
            folder / f"bounds-{family}.svg",
            f"{family}: bound of features",
            "layer",
            "over the networks'",
            drawn,
        ),
        "",
        "The normalised bound of definition 5.1 (at most 1000 test images); kept layers are 1. At the last layer:",
        "",
        *table(
            ["merge", "features left", "features over offset there"],
            [
                [
                    name,
                    spread([b[name]["strength"][-1] for b in first], 1),
                    spread([b[name]["features"][-1] / b[name]["offset"][-1] for b in first], 1),
                ]
                for name in first[0]
            ],
        ),
        "",
        *_logits([pair["logits"] for pair in found]),
        "",
    ]
    if "statistics" in found[0]:
        lines += [*_statistics([pair["statistics"] for pair in found]), ""]
    lines += _samples(found)
    if "pruned" in found[0]:
        lines += ["", *_pruned(folder, family, [pair["pruned"] for pair in found])]
    return lines


def _logits(found: Sequence[Found]) -> list[str]:
    """How much logits differ between classes, and between images."""
    return [
        "Logits over the test images: how far the classes' means lie apart (standard deviation), and the standard",
        "deviation of a class's logit over images, averaged. A small second: alike answers to all images.",
        "",
        *table(
            ["network", "between classes", "between images"],
            [
                [
                    name,
                    spread([stdev(logits[name]["mean"]) for logits in found], 1),
                    spread([mean(logits[name]["std"]) for logits in found], 1),
                ]
                for name in found[0]
            ],
        ),
    ]


def _statistics(found: Sequence[Found]) -> list[str]:
    """Running statistics before and after RESET."""
    rows = []
    for label, key in (
        ("deviation after / before", "std ratio"),
        ("change of the mean, in deviations after", "mean shift"),
        ("size of the mean, in deviations before", "mean size"),
    ):
        layers = range(len(found[0][key]))
        rows.append([label, *(f"{mean(pair[key][layer] for pair in found):.2f}" for layer in layers)])
    return [
        "Running statistics of the aligned midpoint before and after RESET, median over channels, norm by norm:",
        "",
        *table(["", *(str(layer + 1) for layer in range(len(found[0]["std ratio"])))], rows),
    ]


def _samples(found: Sequence[Found]) -> list[str]:
    """Accuracy over the number of images that a repair sees."""
    keys = [key.split() for key in found[0] if key.startswith("samples ")]
    sizes = sorted({int(key[2]) for key in keys})
    rows = [
        [repair, *(spread([pair[f"samples {repair} {size}"] for pair in found]) for size in sizes)]
        for repair in dict.fromkeys(key[1] for key in keys)
    ]
    head = "Images that the repair of the aligned midpoint sees, goals included:"
    return [head, "", *table(["", *map(str, sizes)], rows)]


def _pruned(folder: Path, family: str, found: Sequence[Found]) -> list[str]:
    """One network pruned by magnitude, and reset."""
    drawn = {
        name: [
            point(place + 1, [pair[key]["bound"][place] for pair in found])
            for place in range(len(found[0][key]["bound"]))
        ]
        for name, key in (("pruned", "pruned"), ("pruned + reset", "reset"))
    }
    share = f"{100 * found[0]['sparsity']:.0f} %"
    rows = [
        [
            label,
            spread([pair[key]["accuracy"] for pair in found]),
            spread([pair[key]["strength"][-1] for pair in found], 1),
            spread([mean(pair[key]["logits"]["std"]) / mean(pair["whole"]["std"]) for pair in found], 1),
        ]
        for label, key in (("pruned", "pruned"), ("pruned + reset", "reset"))
    ]
    sizes = sorted(int(key.split()[1]) for key in found[0] if key.startswith("reset "))
    few = ", ".join(f"{size}: {spread([pair[f'reset {size}'] for pair in found])} %" for size in sizes)
    return [
        f"The first network pruned by global magnitude to {share} zeros, in one shot:",
        "",
        chart(
            folder / f"pruned-{family}.svg",
            f"{family}, {share} pruned",
            "layer",
            "bound over the network's",
            drawn,
        ),
        "",
        *table(
            ["", "test %", "features left at the end", "logits' deviation over images, over the network's"],
            rows,
        ),
        "",
        f"RESET on fewer images: {few}.",
    ]
