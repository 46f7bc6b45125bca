"""The README of this experiment, from what stands in `results/`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import figures
import published

HERE = Path(__file__).parent
WAYS = {
    "single": "Perf Ave",
    "uniform": "Uni Soups",
    "greedy": "Grd Soups",
    "logits": "Ens Lgt",
    "features": "Ens Fts",
    "features, head 1": "Ens Fts*",
    "greedy logits": "Grd Ens Lgt",
    "greedy features": "Grd Ens Fts",
}
SPREAD = {
    "largest": "max of average",
    "largest_mean": "mean of max",
    "largest_each": "max of max",
    "variance": "variance of average",
    "independent": "independent",
    "explained": "explained",
    "variance_each": "largest of the models",
}
THEOREM = ("input", "biases", "last bias", "total", "total, own widths")


def write(results: Path, out: Path) -> None:
    """Write the page: what stands above `<!-- results -->` stays, what is below is made again."""
    found = {p.stem: json.loads(p.read_text())["found"] for p in sorted(results.glob("*.json"))}
    head = out.read_text().partition("<!-- results -->")[0] if out.exists() else ""
    figures.gaps(found, results / "gap.svg")
    figures.batches(found, "vgg19", results / "batches.svg")
    parts = [part for part in (_averages(found), _gaps(found), _magnitudes(found), _bounds(found), _patterns(found),
                               _across(found), _statistics(found), _costs(results)) if part]  # fmt: skip
    out.write_text(head + "<!-- results -->\n\n" + "\n\n".join(parts) + "\n")


def _rows(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _published(text: str) -> list[object]:
    values: list[object] = list(map(float, text.split()))
    return [*values[:5], None, *values[5:]]


def _averages(found: Mapping[str, Any]) -> str:
    rows: list[list[object]] = []
    for name, one in found.items():
        if not name.startswith("average-"):
            continue
        _, net, task = name.split("-", 2)
        for protocol in ("correct", "rethink"):
            for number, scores in one.get(protocol, {}).items():
                ways = [scores[way] for way in WAYS]
                ways[0] = f"{scores['single']:.2f} ± {scores['spread']:.2f}"
                averaged = scores.get("uniform, averaged statistics")
                data = f"{task} ({one['chance']:.0f})"
                rows.append([net, data, protocol, number, *ways, averaged, len(scores["members"])])
    if not rows:
        return ""
    head = [
        "network",
        "data (chance)",
        "protocol",
        "models",
        *WAYS.values(),
        "Uni, averaged statistics",
        "soup of",
    ]
    paper = [
        ["VGG19", data, "paper", n, *_published(t), None, None]
        for data, own in published.AVERAGES.items()
        for n, t in own.items()
    ]
    return "\n".join(
        [
            "## Weights against features",
            "",
            "Per cent on the test split: accuracy, for `overlaid` the mean AUROC of its labels. `±` is the",
            "standard deviation of the single models; `soup of`: members of the greedy soup. The paper's rows are",
            "below ours. `text`: a substitute for GLUE, of which the paper has no rows.",
            "",
            _rows(head, [*rows, *paper]),
        ]
    )


def _gaps(found: Mapping[str, Any]) -> str:
    rows: list[list[object]] = []
    shown = {n: one for n, one in found.items() if n.startswith("average-") and n.endswith("-cifar10")}
    numbers = sorted({int(n) for one in shown.values() for n in one["correct"]})
    for name, one in shown.items():
        for protocol in ("correct", "rethink"):
            own = one[protocol]
            gaps = [own[n]["logits"] - own[n]["uniform"] if n in own else None for n in map(str, numbers)]
            rows.append([name.split("-")[1], protocol, *gaps])
    if not rows:
        return ""
    return "\n".join(
        [
            "## The gap between ensemble and soup",
            "",
            "Ens Lgt less Uni Soups, in points, over depth (rows) and number of models (columns), CIFAR-10.",
            "",
            _rows(["network", "protocol", *(f"{n} models" for n in numbers)], rows),
            "",
            "![the gap over the number of models](results/gap.svg)",
        ]
    )


def _magnitudes(found: Mapping[str, Any]) -> str:
    parts: list[str] = []
    ways = ("single", "uniform", "greedy", "logits", "features", "features, head 1")
    for name, one in found.items():
        if not name.startswith("magnitude-"):
            continue
        for scope in ("everything", "weights"):
            rows: list[list[object]] = []
            for precision in ("float32", "float64"):
                for factor, own in one[scope][precision].items():
                    shown = [f"{own[w]['score']:.1f} ({100 * own[w]['not finite']:.0f})" for w in ways]
                    scatter = own["scatter"]
                    rows.append(
                        [precision, f"x{factor}", *shown, scatter["correlation"], scatter["ensemble above"]]
                    )
            if scope == "everything" and "without biases" in one:
                bare = one["without biases"]
                rows.append(["float64", "no biases", *(f"{bare[w]['score']:.1f} (0)" for w in ways),
                             bare["scatter"]["correlation"], bare["scatter"]["ensemble above"]])  # fmt: skip
            head = [
                "precision",
                "factor",
                *(WAYS[w] for w in ways),
                "batches: correlation",
                "ensemble above soup",
            ]
            parts += [f"### {name.split('-')[1]}, scope: {scope}", "", _rows(head, rows), ""]
    if not parts:
        return ""
    paper = [["VGG19, TinyImageNet", n, *map(float, t.split())] for n, t in published.X100.items()]
    head = ["", "models", "Perf Ave", "x100 Perf", *list(WAYS.values())[1:]]
    return "\n".join(
        [
            "## Magnitude factors",
            "",
            "Accuracy in per cent and, in brackets, the per cent of answers that are not finite. *no biases*: the",
            "same networks without any bias behind the first layer. The last two columns are the paper's scatter",
            "plot: over batches of 25, the correlation of the soup's and the ensemble's accuracy, and the share of",
            "batches in which the ensemble is better.",
            "",
            "![batches at x1 and x100](results/batches.svg)",
            "",
            *parts,
            "The paper, table 10, all weights times 100:",
            "",
            _rows(head, paper),
        ]
    )


def _bounds(found: Mapping[str, Any]) -> str:
    if "bounds" not in found:
        return ""
    layers = [[f"`{k}`", *(f"{s[n]:.3g}" for n in SPREAD)] for k, s in found["bounds"]["layers"].items()]
    outputs = [
        [name, o["property 1"], o["spectral"], *(o["theorem 1"][n] for n in THEOREM)]
        for name, o in found["bounds"]["outputs"].items()
    ]
    return "\n".join(
        [
            "## Magnitudes and variances of averaged weights",
            "",
            "Ten models of one trunk. *independent* is the paper's (s1^2 + s2^2) / 4 for any number of models;",
            "*explained* adds the covariance that it leaves out.",
            "",
            _rows(["layer", *SPREAD.values()], layers),
            "",
            "Bounds on outputs, powers of ten: Property 1 and the product of spectral norms bound |outputs| / |input|",
            "without biases; theorem 1 bounds the summed variance of outputs, by its three terms.",
            "",
            _rows(["weights", "Property 1", "spectral", *(f"theorem 1: {n}" for n in THEOREM)], outputs),
        ]
    )


def _patterns(found: Mapping[str, Any]) -> str:
    parts: list[str] = []
    if "templates" in found:
        keys = (
            "accuracy",
            "own class",
            "lowest own",
            "other classes",
            "nearest is own",
            "merged, own two classes",
        )
        rows = [[n, *(o[k] for k in keys)] for n, o in found["templates"].items() if isinstance(o, dict)]
        parts += [
            "## Templates",
            "",
            "One linear layer on CIFAR-10's raw pixels. Cosines of its rows (less their mean) with the mean images",
            "(less that of all):",
            "",
            _rows(["weight decay", *keys], rows),
            "",
            "![mean images](results/class-means.png) ![templates](results/templates.png)",
            "![merged](results/merged-templates.png)",
            "",
            "Mean images; templates with weight decay 0.1; templates of classes i and i + 5, merged.",
        ]
    if "kernels" in found:
        own = found["kernels"]
        rows = [
            [k, f"{v:.4f}"]
            for part in ("kernels", "features")
            for k, v in own[part].items()
            if k != "kernels"
        ]
        parts += [
            "",
            "First-layer kernels of ten models of one trunk (cosines), and their features (correlations):",
            "",
            _rows(["", ""], rows),
            "",
            "![kernels](results/kernels-first.png) ![kernels of the soup](results/kernels-soup.png)",
        ]
    return "\n".join(parts)


def _across(found: Mapping[str, Any]) -> str:
    if "across" not in found:
        return ""
    keys = ("second", "uniform", "logits", "features")
    rows: list[list[object]] = []
    for protocol, own in found["across"].items():
        rows += [[task, protocol, s["first"], *(s[k] for k in keys)] for task, s in own.items()]
    rows += [
        [data, "paper (CIFAR-100)", 70.37, *map(float, t.split())] for data, t in published.ACROSS.items()
    ]
    return "\n".join(
        [
            "## Across tasks",
            "",
            "VGG19 on CIFAR-10 merged with a model of another task; head 1 answers, per cent on CIFAR-10's test.",
            "",
            _rows(
                ["model 2 from", "protocol", "model 1", "model 2, head 1", "Uni Soups", "Ens Lgt", "Ens Fts"],
                rows,
            ),
        ]
    )


def _statistics(found: Mapping[str, Any]) -> str:
    shown = {n.removeprefix("statistics-"): o for n, o in found.items() if n.startswith("statistics-")}
    if not shown:
        return ""
    ways = next(iter(shown.values()))
    rows: list[list[object]] = [[way, *(one[way][1] for one in shown.values())] for way in ways]
    for family in ("fisher", "reg-mean"):
        best = [
            max((w for w in o if w.startswith(family)), key=lambda w, o=o: o[w][0]) for o in shown.values()
        ]
        told = [o[w][1] for w, o in zip(best, shown.values(), strict=True)]
        rows.append([f"**{family}, chosen on validation**", *told])
    parts = [
        "## Fisher information and Gram matrices",
        "",
        "Five siblings with a head each; test, per cent:",
        "",
        _rows(["", *shown], rows),
        "",
    ]
    rows, shares = [], []
    for name, one in found.items():
        if name.startswith("donors-"):
            for donor, own in one.items():
                for method, told in own.items():
                    curve = told["validation and test by share"]
                    shares = list(curve)
                    tests = [f"{t:.1f}" for _, t in curve.values()]
                    rows.append(
                        [name.removeprefix("donors-"), donor, method, told["chosen"], told["test"], *tests]
                    )
    if rows:
        parts += [
            "A model of another task as a donor, the target's head kept; its share is chosen on validation:",
            "",
            _rows(["target", "donor", "method", "share", "test", *(f"test at {s}" for s in shares)], rows),
        ]
    return "\n".join(parts).rstrip()


def _costs(results: Path) -> str:
    rows = [
        [p.stem, json.loads(p.read_text())["seconds"]["processor"]] for p in sorted(results.glob("*.json"))
    ]
    return "\n".join(["## Seconds of one core", "", _rows(["stage", "seconds"], rows)]) if rows else ""


if __name__ == "__main__":
    write(HERE / "results", HERE / "README.md")
