"""The README of this experiment, from what stands in `results/`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
#: Tables 1 and 4 to 7 of the paper: VGG19, data -> number of models -> the columns above, without Ens Fts*.
PUBLISHED: dict[str, dict[int, str]] = {
    "CIFAR-10": {
        2: "92.42 92.79 92.68 93.26 93.22 92.68 92.59",
        3: "92.47 92.82 92.65 93.54 93.48 92.75 92.65",
        5: "92.45 92.90 92.65 93.70 93.71 81.95 92.65",
        7: "92.42 92.79 92.65 93.85 93.71 92.76 92.71",
        10: "92.37 92.90 92.62 93.91 93.81 92.63 92.62",
    },
    "CIFAR-100": {10: "70.34 69.63 70.25 75.36 74.96 70.39 70.32"},
    "PathMNIST": {10: "90.04 32.42 88.48 92.95 75.17 88.59 88.34"},
    "DermaMNIST": {10: "74.17 68.18 74.16 75.76 69.73 73.92 73.17"},
    "CelebA": {10: "92.91 53.19 93.06 93.44 93.47 93.02 93.04"},
    "TinyImageNet": {10: "59.90 62.31 61.95 63.28 63.53 63.53 63.58"},
    "ChestXRay (AUROC)": {10: "80.66 79.29 80.43 81.77 81.07 80.43 80.43"},
}
#: Table 10: TinyImageNet x100, by number of models: Perf Ave, x100, the columns above from Uni Soups on.
PUBLISHED_X100 = {
    2: "59.87 5.60 6.70 6.99 1.59 6.94 6.45 1.52 6.96",
    10: "59.90 4.81 6.86 6.92 0.13 6.92 6.22 0.11 6.95",
}
#: Table 3: model 2's data -> model 2 alone, uniform, logits, features, all on CIFAR-100 (model 1: 70.37).
PUBLISHED_ACROSS = {
    "CIFAR-10": "5.84 49.63 69.93 69.93",
    "PathMNIST": "1.29 24.25 69.88 70.00",
    "DermaMNIST": "5.77 60.37 69.06 69.36",
    "CelebA": "1.03 49.33 69.48 69.61",
    "TinyImageNet": "18.16 61.02 58.40 58.52",
    "ChestXRay": "15.18 61.38 68.18 68.33",
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
            for number, scores in one[protocol].items():
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
        for data, own in PUBLISHED.items()
        for n, t in own.items()
    ]
    return "\n".join(
        [
            "## Weights against features",
            "",
            "Per cent on the test split: accuracy, for `overlaid` the mean AUROC of its labels. `±` is the",
            "standard deviation of the single models. The paper's rows are below ours.",
            "",
            _rows(head, [*rows, *paper]),
        ]
    )


def _gaps(found: Mapping[str, Any]) -> str:
    rows: list[list[object]] = []
    for name, one in found.items():
        if name.startswith("average-") and name.endswith("-cifar10"):
            for protocol in ("correct", "rethink"):
                own = one[protocol]
                gaps = [s["logits"] - s["uniform"] for s in own.values()]
                rows.append([name.split("-")[1], protocol, *gaps])
                numbers = list(own)
    if not rows:
        return ""
    return "\n".join(
        [
            "## The gap between ensemble and soup",
            "",
            "Ens Lgt less Uni Soups, in points, over depth (rows) and number of models (columns), CIFAR-10.",
            "",
            _rows(["network", "protocol", *(f"{n} models" for n in numbers)], rows),
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
    paper = [["VGG19, TinyImageNet", n, *map(float, t.split())] for n, t in PUBLISHED_X100.items()]
    head = ["", "models", "Perf Ave", "x100 Perf", *list(WAYS.values())[1:]]
    return "\n".join(
        [
            "## Magnitude factors",
            "",
            "Accuracy in per cent and, in brackets, the per cent of answers that are not finite. *no biases*: the",
            "same networks without any bias behind the first layer. The last two columns are the paper's scatter",
            "plot: over batches of 100, the correlation of the soup's and the ensemble's accuracy, and the share of",
            "batches in which the ensemble is better.",
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
        [data, "paper (CIFAR-100)", 70.37, *map(float, t.split())] for data, t in PUBLISHED_ACROSS.items()
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
    parts: list[str] = []
    for name, one in found.items():
        if not name.startswith("statistics-"):
            continue
        rows = [[k, v] for k, v in one["five siblings"].items() if k != "examples"]
        parts += [
            f"### {name.split('-')[1]}: five siblings on CIFAR-10, test",
            "",
            _rows(["", "accuracy"], rows),
            "",
        ]
        rows = []
        for donor, own in one.items():
            if donor.startswith("donor"):
                for method, told in own.items():
                    curve = told["validation and test by share"]
                    rows.append(
                        [
                            donor,
                            method,
                            told["chosen"],
                            told["test"],
                            *(f"{t:.1f}" for _, t in curve.values()),
                        ]
                    )
                    shares = list(curve)
        parts += [
            "A model of another task as a donor, the target's head kept; its share is chosen on validation:",
            "",
            _rows(["", "method", "chosen share", "test", *(f"test at {s}" for s in shares)], rows),
        ]
    return "\n".join(["## Fisher information and Gram matrices", "", *parts]) if parts else ""


def _costs(results: Path) -> str:
    rows = [
        [p.stem, json.loads(p.read_text())["seconds"]["processor"]] for p in sorted(results.glob("*.json"))
    ]
    return "\n".join(["## Seconds of one core", "", _rows(["stage", "seconds"], rows)]) if rows else ""


if __name__ == "__main__":
    write(HERE / "results", HERE / "README.md")
