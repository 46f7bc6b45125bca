"""Two figures as SVG: the gap between ensemble and soup over the number of models, and batches of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

mpl.use("Agg")

#: Colours that are told apart with colour-blind eyes (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")


def gaps(found: Mapping[str, Any], path: Path) -> None:
    """Ens Lgt less Uni Soups over the number of models, a line for each network, under both protocols."""
    nets = {
        n.split("-")[1]: one
        for n, one in found.items()
        if n.startswith("average-") and n.endswith("-cifar10")
    }
    if not nets:
        return
    families = sorted({name.removesuffix("_bn") for name in nets})
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for protocol, plot in zip(("correct", "rethink"), axes, strict=True):
        for name, one in sorted(nets.items()):
            points = [(int(n), s["logits"] - s["uniform"]) for n, s in one[protocol].items()]
            colour = COLOURS[families.index(name.removesuffix("_bn")) % len(COLOURS)]
            style = "--" if name.endswith("_bn") else "-"
            label = name if protocol == "correct" else None
            plot.plot(*zip(*points, strict=True), style, color=colour, label=label)
        plot.axhline(0, color="#888888", linewidth=0.8)
        plot.set(
            title=protocol, xlabel="models", ylabel="Ens Lgt less Uni Soups, points", xticks=(2, 3, 5, 7, 10)
        )
        plot.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    _save(figure, path)


def batches(found: Mapping[str, Any], name: str, path: Path) -> None:
    """The paper's scatter: accuracy of the soup and of the ensemble on the same batches, at three places."""
    if f"magnitude-{name}" not in found:
        return
    own = found[f"magnitude-{name}"]["everything"]
    places = (("float32", "1"), ("float32", "100"), ("float64", "100"))
    figure, axes = plt.subplots(1, len(places), figsize=(9, 3.2), layout="constrained")
    for (precision, factor), plot in zip(places, axes, strict=True):
        soups, ensembles = zip(*own[precision][factor]["scatter"]["pairs"], strict=True)
        ends = min(*soups, *ensembles), max(*soups, *ensembles)
        plot.plot(ends, ends, color="#BBBBBB", linewidth=1)
        plot.scatter(soups, ensembles, s=14, color=COLOURS[0], alpha=0.6)
        plot.set(title=f"x{factor}, {precision}", xlabel="uniform soup, %", ylabel="ensemble of logits, %")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """The same numbers give the same bytes."""
    with plt.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
