"""Real pairs of strangers, aligned by every method: the midpoint, and the midpoint repaired, beside their parents.

    python experiments/alignments/run.py --checkpoints FOLDER --data cifar10=npz:FILE fmnist=npz:FILE

A method's options are chosen on the validation split (accuracy of the repaired midpoint) among those that `GRID` lists;
test accuracy is measured once, of the choice. A method is one entry of `GRID`; `--methods` runs some of them, and rows
of other methods that were measured before stay. Writes `results/{family}.json` and the tables of `README.md`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

import isthmus
from isthmus import progress, zoo
from isthmus import weights as files
from isthmus.zoo.data.loader import Loader

HERE = Path(__file__).parent
SEED = 0
VALIDATION = 5000

Weights = Mapping[str, Tensor]

#: Method -> the options to choose among; the first is the default.
GRID: dict[str, list[dict[str, object]]] = {
    "none": [{}],
    "weight-matching": [{}, {"restarts": 5}, {"groups": "full"}],
    "activation-matching": [
        {},
        {"similarity": "moment"},
        {"at": "pre-activation"},
        {"stream": "pooled"},
        {"groups": "full"},
    ],
    "straight-through": [
        {},
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "parametrisation": "midpoint", "projection": "l2"},
    ],
    "annealing": [{"steps": 200, "limit": 200}],
    "sinkhorn": [
        {"start": "weight-matching"},
        {"start": "weight-matching", "objective": "midpoint", "steps": 20},
    ],
    "c2m3": [{}],
    "relu-scaling": [{}, {"fit": "least-squares"}, {"fit": "sinkhorn", "steps": 20}],
    "zipit": [{}, {"beta": 0.0}, {"stream": "pooled"}],
    "cca": [{}, {"stream": "pooled"}, {"gamma": 10.0}, {"affine": True}],
    "transport": [
        {},
        {"at": "post-activation"},
        {"by": "weights"},
        {"solver": "sinkhorn", "regularization": 0.01},
    ],
    "matched-averaging": [{"gamma": 1e-9}],
}


@dataclass(frozen=True)
class Family:
    """Networks of one architecture trained apart.

    Attributes:
        factory, arguments: of the zoo.
        data: the data set.
        pairs: checkpoints to merge, two at a time.
        repair: what gives activations their statistics back.
    """

    factory: str
    arguments: dict[str, object]
    data: str
    pairs: list[tuple[str, str]]
    repair: str


FAMILIES = {
    "mlp": Family(
        "mlp", {}, "fmnist", [("mlp_s1", "mlp_s2"), ("mlp_s1", "mlp_s3"), ("mlp_s2", "mlp_s3")], "repair"
    ),
    "vgg16": Family("vgg16", {"base": 16}, "cifar10", [("vgg16_s1", "vgg16_s2")], "repair"),
    "vgg16bn": Family(
        "vgg16", {"base": 16, "norm": "bn"}, "cifar10", [("vgg16bn_s1", "vgg16bn_s2")], "reset"
    ),
    "resnet20": Family("resnet20", {}, "cifar10", [("resnet20_s1", "resnet20_s2")], "reset"),
}


@dataclass(frozen=True)
class Splits:
    """Images for matching and repair, for choosing, and for the numbers."""

    calibration: list[tuple[Tensor, Tensor]]
    validation: Loader
    test: Loader


class Pair:
    """Two networks and what their merges score."""

    def __init__(self, family: Family, names: tuple[str, str], folder: Path, splits: Splits):
        self.family, self.splits = family, splits
        self.model = zoo.build(family.factory, **family.arguments).eval()
        self.states: list[dict[str, Tensor]] = []
        for name in names:
            found = files.load(folder / f"{name}.safetensors")
            self.states.append({k: found[k].to(v.dtype) for k, v in self.model.state_dict().items()})
        graph = isthmus.trace(self.model, splits.calibration[0][0][:2])
        self.graph, _ = isthmus.verified(graph, splits.calibration[0][0][:2], weights=self.states[0])

    def accuracy(self, weights: Weights, data: Loader) -> float:
        return isthmus.evaluate(self.model, data, weights).accuracy

    def merged(
        self, method: str, options: Mapping[str, object]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], float, str]:
        """The midpoint, the same repaired, the seconds that matching took, and its status."""
        align, start, status = None, time.process_time(), ""
        if method != "none":
            by = {"method": method, **options}
            align = isthmus.align(self.graph, self.states, by, data=self.splits.calibration)
            status = align.status
        seconds = time.process_time() - start

        def merge(repair: str | None) -> dict[str, Tensor]:
            found = isthmus.merge(
                self.states,
                model=self.model,
                align=align,
                repair=repair,
                data=self.splits.calibration,
                graph=self.graph,
                verify=False,
            )
            return dict(found.weights)

        return merge(None), merge(self.family.repair), seconds, status

    def kept(self, method: str, options: Mapping[str, object]) -> dict[str, object]:
        """How much the chosen maps let the midpoint keep, and the bound on that: means over the spaces."""
        if method == "none":
            return {}
        data = self.splits.calibration
        align = isthmus.align(self.graph, self.states, {"method": method, **options}, data=data)
        found = isthmus.kept(align, self.states, data)
        return {"kept": {item.name: {"mean": item.value, "spaces": item.layers} for item in found}}

    def row(self, method: str, grid: list[dict[str, object]]) -> dict[str, object]:
        """One method: its options by validation, its numbers on test."""
        tried = []
        for options in grid:
            plain, repaired, seconds, status = self.merged(method, options)
            score = self.accuracy(repaired, self.splits.validation)
            tried.append((score, options, plain, repaired, seconds, status))
            print(
                f"  {method} {options}: {100 * score:.2f} % on validation, {seconds:.1f} s, {status}",
                flush=True,
            )
        score, options, plain, repaired, seconds, status = max(tried, key=lambda item: item[0])
        return {
            "options": options,
            "validation": score,
            "midpoint": self.accuracy(plain, self.splits.test),
            "repaired": self.accuracy(repaired, self.splits.test),
            "seconds": seconds,
            "status": status,
            **self.kept(method, options),
            "tried": [{"options": item[1], "validation": item[0], "seconds": item[4]} for item in tried],
        }


def measure(
    name: str, folder: Path, data: zoo.Dataset, methods: list[str], sizes: argparse.Namespace
) -> None:
    """Measure a family, and write what was found beside what was known."""
    family = FAMILIES[name]
    path = HERE / "results" / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {"pairs": {}}
    splits = Splits(
        list(data.loader("train", batch_size=250, limit=sizes.calibration, seed=SEED)),
        data.loader("validation", batch_size=500, limit=sizes.validation),
        data.loader("test", batch_size=500, limit=sizes.test),
    )
    known["examples"] = {
        "calibration": sum(len(y) for _, y in splits.calibration),
        "validation": splits.validation.samples,
        "test": splits.test.samples,
    }
    for names in family.pairs:
        label = " + ".join(names)
        pair = Pair(family, names, folder, splits)
        found = known["pairs"].setdefault(label, {"methods": {}})
        print(label, flush=True)
        if "parents" not in found:
            found["parents"] = [pair.accuracy(state, splits.test) for state in pair.states]
        for method in methods:
            found["methods"][method] = pair.row(method, GRID[method])
            path.write_text(json.dumps(known, indent=1) + "\n")


def table(name: str) -> list[str]:
    """A family's rows: mean over its pairs, and their spread where there are several."""
    path = HERE / "results" / f"{name}.json"
    if not path.exists():
        return []
    known = json.loads(path.read_text())
    pairs = list(known["pairs"].values())
    parents = [100 * accuracy for pair in pairs for accuracy in pair["parents"]]
    sizes = ", ".join(f"{count} {split}" for split, count in known["examples"].items())
    lines = [
        f"## {name}",
        "",
        f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''}; parents {mean(parents):.2f} % on average; chance 10 %;",
        f"repair: {FAMILIES[name].repair}; images: {sizes}.",
        "",
        "| method | midpoint % | repaired % | validation % | kept % | bound % | defect | CPU s | options | status |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in GRID:
        rows = [pair["methods"][method] for pair in pairs if method in pair["methods"]]
        if not rows:
            continue
        numbers = [
            _spread([100 * row[key] for row in rows]) for key in ("midpoint", "repaired", "validation")
        ]
        for key, scale in (("information kept", 100), ("information bound", 100), ("defect", 1)):
            known_here = [row["kept"][key]["mean"] for row in rows if key in row.get("kept", {})]
            numbers.append(f"{scale * mean(known_here):.{2 if scale == 1 else 1}f}" if known_here else "")
        chosen = "; ".join(dict.fromkeys(_said(row["options"]) for row in rows))
        status = "; ".join(dict.fromkeys(row["status"] for row in rows))
        seconds = mean(row["seconds"] for row in rows)
        lines.append(f"| {method} | {' | '.join(numbers)} | {seconds:.1f} | {chosen} | {status} |")
    return [*lines, ""]


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _said(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "defaults"


def write() -> None:
    """Put the tables into the page, above what is written by hand."""
    page = HERE / "README.md"
    notes = page.read_text().split("<!-- notes -->")[-1] if page.exists() else "\n"
    lines = [
        "# Every alignment on the same strangers",
        "",
        "Made by `python experiments/alignments/run.py --checkpoints FOLDER --data cifar10=npz:FILE fmnist=npz:FILE`.",
        "Both parents at weight one half, seed 0. Options are chosen on validation images by the repaired midpoint;",
        "test images are used once, for the numbers. ± is the standard deviation over pairs; where there is one",
        "pair, no spread is known. Kept: how much of what varies in both networks' units can be read back from the",
        "midpoint's (`isthmus.kept`), mean over spaces; bound: what any map to as many units could keep (PCA); defect:",
        "how far the maps are from passing through the activations.",
        "",
    ]
    for name in FAMILIES:
        lines += table(name)
    page.write_text("\n".join(lines) + "\n<!-- notes -->" + notes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument(
        "--data", nargs="+", required=True, help="name=where: cifar10=npz:FILE fmnist=npz:FILE"
    )
    parser.add_argument("--family", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--methods", nargs="*", default=list(GRID), choices=list(GRID))
    parser.add_argument("--calibration", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=2000)
    parser.add_argument("--test", type=int, default=None, help="test images; all where not given")
    options = parser.parse_args()
    places = dict(item.split("=", 1) for item in options.data)
    (HERE / "results").mkdir(exist_ok=True)
    progress.disable()
    torch.manual_seed(SEED)
    for name in options.family:
        data = zoo.open_data(places[FAMILIES[name].data]).split(validation=VALIDATION, seed=SEED)
        measure(name, options.checkpoints, data, options.methods, options)
        write()
    write()


if __name__ == "__main__":
    main()
