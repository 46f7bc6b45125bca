"""The README's sections on linear networks and on what training does to the barrier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from common.page import chart, point, spread, table

Found = Mapping[str, Any]


def linear(folder: Path, found: Found) -> list[str]:
    """Barriers, the exact split, and magnitudes."""
    kinds: dict[str, list[Any]] = {}
    for key, pair in found.items():
        kinds.setdefault(key.rsplit(" ", 1)[0], []).append(pair)
    rows, drawn = [], {}
    for kind, pairs in kinds.items():
        for name in ("direct", "aligned"):
            curve = [pair[name] for pair in pairs]
            rows.append(
                [
                    kind,
                    spread([a for pair in pairs for a in pair["parents"]]),
                    name,
                    spread([c["accuracy"][len(c["t"]) // 2] for c in curve]),
                    spread([c["rescaled"] for c in curve]),
                    spread([p[name]["features"][-1] / p["network"]["features"][-1] for p in pairs], 1),
                    spread([c["features"][-1] / c["offset"][-1] for c in curve], 1),
                ]
            )
            if kind.startswith("5"):
                drawn[
                    f"{kind.replace('5 layers', 'plain').replace('plain, residual', 'residual')}, {name}"
                ] = [point(t, [c["accuracy"][i] for c in curve], 100) for i, t in enumerate(curve[0]["t"])]
    lines = [
        "## Linear networks on Fashion-MNIST",
        "",
        "Width 32; f = g + h is split exactly, bias by bias. Last columns: g at the output of the midpoint,",
        "over that of a network, and over h there. Rescaled: weights and biases by the ratio of mean magnitudes.",
        "",
        *table(
            ["network", "networks %", "midpoint", "test %", "rescaled %", "g left", "g over h"],
            rows,
        ),
        "",
        chart(folder / "linear-residual.svg", "five linear layers", "alpha", "test accuracy, %", drawn),
        "",
    ]
    deep = kinds.get("8 layers", [])
    if deep:
        layers = range(len(deep[0]["direct"]["features"]))
        profiles = {
            f"{label}, {which}": [point(l + 1, [get(pair)[field][l] for pair in deep]) for l in layers]
            for which, get in (("midpoint", lambda p: p["direct"]), ("network", lambda p: p["network"]))
            for label, field in (("g", "features"), ("h", "offset"))
        }
        for label, field in (("g", "features"), ("h", "offset")):
            after = [pair["direct"]["rescaled split"][field] for pair in deep]
            profiles[f"{label}, rescaled"] = [point(l + 1, [values[l] for values in after]) for l in layers]
        scales, terms = ([pair["direct"][field] for pair in deep] for field in ("scale", "biases"))
        lines += [
            chart(
                folder / "linear-split.svg",
                "eight linear layers, direct",
                "layer",
                "norm",
                profiles,
                log_y=True,
            ),
            "",
            "Mean magnitude of the direct midpoint's parameters over the networks', eight layers:",
            "",
            *table(
                ["", *(str(l + 1) for l in layers)],
                [
                    [part, *(spread([scale[f"layers.{l}.{part}"] for scale in scales], 1) for l in layers)]
                    for part in ("weight", "bias")
                ],
            ),
            "",
            "What each bias leaves at the output of the direct midpoint (norm):",
            "",
            *table(
                ["bias of layer", *(str(l + 1) for l in layers)],
                [["", *(spread([term[f"layers.{l}.bias"] for term in terms], 1, 3) for l in layers)]],
            ),
        ]
    return lines


def effects(folder: Path, found: Found) -> list[str]:
    """One row per condition, and distances between the networks while they are trained."""
    rows = []
    for name, group in found.items():
        pairs = group["pairs"]
        rows.append(
            [
                name,
                spread(group["accuracy"], digits=1),
                *(
                    spread([pair[key] for pair in pairs], digits=1)
                    for key in ("direct", "aligned", "midpoint")
                ),
                *(spread([pair[key] for pair in pairs], digits=1) for key in ("repair", "rescale")),
                *(f"{mean(pair['distance'][at] for pair in pairs):.1f}" for at in (0, -1)),
                f"{mean(pair['aligned distance'] / mean(pair['size']) for pair in pairs):.2f}",
            ]
        )
    drawn = {
        name: [
            point(epoch, values)
            for epoch, values in enumerate(zip(*(p["distance"] for p in group["pairs"]), strict=True))
        ]
        for name, group in found.items()
        if name.startswith("ln")
    }
    return [
        "## What training does to the barrier",
        "",
        "Fashion-MNIST at 14x14, 6,000 training images, six epochs, nine convolutions of 16 to 64 channels and a",
        "classifier. Three networks per row, every two a pair (± over pairs, which share networks). Barriers in points",
        "of test accuracy over five places; midpoints after weight matching. Distances between the networks before",
        "and after training; the last column is the distance after matching over the networks' length. 'then' is one",
        "more epoch at that rate, which makes networks worse: the control of accuracy.",
        "",
        *table(
            [
                "networks",
                "test %",
                "barrier, direct",
                "barrier, matched",
                "midpoint %",
                "REPAIR %",
                "RESCALE %",
                "distance at first",
                "at last",
                "matched, relative",
            ],
            rows,
        ),
        "",
        chart(folder / "training-distance.svg", "layer norm: distance", "epochs", "distance", drawn)
        if drawn
        else "",
    ]
