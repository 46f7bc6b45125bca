"""One-shot pruning and its repair: sparsity x pruner x repair, on networks with batch norm, layer norm and none.

    python experiments/pruning/run.py --data npz:cifar10.npz --checkpoints FOLDER --models FOLDER

Networks that are in `--checkpoints` are taken from there; others (with layer norm) are trained into `--models` by
the recipes of `experiments/vanishing_feature`. Options of pruners and repairs are chosen at 90 % sparsity by the
repaired network on validation images; test images are used for the numbers only. What is in `results/` is not measured
again. Writes the tables and figures of `README.md`.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "vanishing_feature"))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import tables
from common.bench import Results
from nets import Shelf

import isthmus
from isthmus import progress, zoo

HERE = Path(__file__).parent
SPARSITIES = (0.1, 0.5, 0.8, 0.9, 0.95, 0.99)
CHOSEN_AT = 0.9

#: Pruner -> its method, and the options to choose among; the first is the default.
PRUNERS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "magnitude, global": ("magnitude", [{"scope": "global"}]),
    "magnitude, layerwise": ("magnitude", [{"scope": "layer"}]),
    "diagonal Fisher": ("diagonal-fisher", [{"limit": 256}]),
    "WoodFisher": (
        "woodfisher",
        [
            {"gradients": 128, "minibatch": 8, "damping": damping, "update": update}
            for damping in (1e-5, 1e-3)
            for update in ("independent", "exact")
        ],
    ),
    "Wanda": (
        "wanda",
        [
            {"scope": scope, "sequential": sequential, "limit": 128}
            for scope in ("row", "layer")
            for sequential in (True, False)
        ],
    ),
}

#: Family -> the repairs that are measured; the first one is what the paper uses there.
REPAIRS: dict[str, dict[str, Any]] = {
    "vgg16bn": {"RESET": "reset"},  # with batch norms behind all layers, REPAIR and RESCALE end there as well
    "resnet20": {"RESET": "reset"},
    "vgg16ln": {"REPAIR": "repair", "RESCALE": "rescale"},
    "vgg16": {"RESCALE": "rescale", "REPAIR": "repair"},
}
#: Gains and biases alone: what it fits beyond them would fill what was pruned. For one pruner only.
GAINS = {"least squares, gains": {"method": "least-squares", "rank": 0}}


class Net:
    """A trained network and its images."""

    def __init__(self, shelf: Shelf, family: str, seed: int, sizes: argparse.Namespace):
        self.model, self.state = shelf.build(family), shelf.state(family, seed)

        def batches(split: str, limit: int | None, size: int = 500) -> list[tuple[Tensor, Tensor]]:
            return list(shelf.data.loader(split, batch_size=size, limit=limit, seed=seed))

        self.scored = batches("train", sizes.scored, 256)  # what pruners look at
        self.calibration = batches("train", sizes.calibration, 64)
        self.validation, self.test = batches("validation", sizes.validation), batches("test", sizes.test)
        with torch.no_grad():
            self.program = isthmus.export(self.model, self.calibration[0][0][:2])

    def accuracy(self, weights: Mapping[str, Tensor], data: list[tuple[Tensor, Tensor]]) -> float:
        return isthmus.evaluate(self.program, data, weights).accuracy

    def pruned(self, method: str, sparsity: float, options: Mapping[str, Any]) -> isthmus.Pruned:
        return isthmus.prune(
            self.program, method, sparsity=sparsity, weights=self.state, data=self.scored, **options
        )


def measure(net: Net, family: str, seed: int, results: Results, chosen: dict[str, Any]) -> None:
    """All pruners, sparsities and repairs of one network; options that are not chosen yet are chosen on it."""
    results.once(
        "unpruned",
        lambda: {
            "test": net.accuracy(net.state, net.test),
            "images": sum(len(y) for _, y in net.test),
            "parameters": sum(v.numel() for v in net.state.values()),
        },
    )
    for name, (method, grid) in PRUNERS.items():
        if name not in chosen:
            chosen[name] = results.once(
                f"options of {name}", functools.partial(choose, net, family, method, grid)
            )
    for sparsity in SPARSITIES:
        for name, (method, _) in PRUNERS.items():
            repairs = {**REPAIRS[family], **(GAINS if name == "magnitude, global" else {})}
            one = functools.partial(cell, net, method, sparsity, chosen[name]["options"], repairs)
            results.once(f"{name} {sparsity:g}", one)
    if seed == 1:
        results.once("samples", lambda: samples(net, family))
        results.once("vanishing", lambda: vanishing(net, family))


def cell(
    net: Net, method: str, sparsity: float, options: Mapping[str, Any], repairs: Mapping[str, Any]
) -> dict[str, float]:
    """Test accuracy of one pruned network, before and after each repair."""
    pruned = net.pruned(method, sparsity, options)
    found = {"before": net.accuracy(pruned.weights, net.test), "sparsity": pruned.sparsity}
    for told, how in repairs.items():
        found[told] = net.accuracy(pruned.repair(how, net.calibration).weights, net.test)
    return found


def choose(net: Net, family: str, method: str, grid: list[dict[str, Any]]) -> dict[str, Any]:
    """The options whose network, pruned at 90 % and repaired, does best on validation."""
    repair = next(iter(REPAIRS[family].values()))
    tried = []
    for options in grid:
        score = 0.0
        if len(grid) > 1:
            repaired = net.pruned(method, CHOSEN_AT, options).repair(repair, net.calibration)
            score = net.accuracy(repaired.weights, net.validation)
        tried.append({"options": options, "validation": score})
    return {**max(tried, key=lambda row: row["validation"]), "tried": tried}


def known_choices(family: str) -> dict[str, Any]:
    """Pruner -> what was chosen for it on a network of this family: it holds for the others as well."""
    found: dict[str, Any] = {}
    for path in sorted((HERE / "results").glob(f"{family}_s[0-9]*.json")):
        for key, row in json.loads(path.read_text())["found"].items():
            if key.startswith("options of "):
                found.setdefault(key.removeprefix("options of "), row)
    return found


def samples(net: Net, family: str) -> dict[str, dict[str, float]]:
    """Repair by fewer images, at 90 %: from one batch of 64 on."""
    repair = next(iter(REPAIRS[family].values()))
    pruned = net.pruned("magnitude", CHOSEN_AT, {"scope": "global"})
    counts = [n for n in (1, 2, 4) if n < len(net.calibration)] + [len(net.calibration)]
    return {
        str(sum(len(y) for _, y in net.calibration[:n])): {
            "test": net.accuracy(pruned.repair(repair, net.calibration[:n]).weights, net.test)
        }
        for n in counts
    }


def vanishing(net: Net, family: str) -> dict[str, dict[str, float]]:
    """E_l of definition 5.1 at 90 %, layer by layer, before and after the usual repair."""
    pruned = net.pruned("magnitude", CHOSEN_AT, {"scope": "global"})
    repaired = pruned.repair(next(iter(REPAIRS[family].values())), net.calibration)
    profiles = {"pruned": pruned.unrepaired, "repaired": repaired.weights}
    found: dict[str, dict[str, float]] = {}
    for name, weights in profiles.items():
        seen = isthmus.vanishing(net.program, weights, [net.state], net.test[:1])
        found[name] = dict(zip(seen.layers, seen.strength, strict=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="CIFAR-10, as isthmus.zoo.open_data takes it")
    parser.add_argument("--checkpoints", type=Path, help="folder of networks {family}_s{1,2}.safetensors")
    parser.add_argument("--models", type=Path, required=True, help="folder of networks trained here")
    parser.add_argument("--family", nargs="*", default=list(REPAIRS), choices=list(REPAIRS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--scale", default="small", choices=["small", "full"])
    parser.add_argument("--device", default="cpu", help="where networks are trained")
    parser.add_argument("--scored", type=int, default=1024, help="images that pruners are given, at most")
    parser.add_argument("--calibration", type=int, default=256, help="images that repairs are given")
    parser.add_argument("--validation", type=int, default=2000)
    parser.add_argument("--test", type=int, default=None, help="test images; all where not given")
    parser.add_argument(
        "--ready", action="store_true", help="leave out networks that would have to be trained"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    progress.disable()
    shelf = Shelf(
        zoo.open_data(options.data).split(validation=5000, seed=0),
        options.checkpoints,
        options.models,
        options.scale,
        options.device,
    )
    settings = {
        name: getattr(options, name) for name in ("scale", "scored", "calibration", "validation", "test")
    }
    for family in options.family:
        chosen = known_choices(family)
        for seed in options.seeds:
            if options.ready and not shelf.path(family, seed).exists():
                continue
            results = Results(HERE / "results" / f"{family}_s{seed}.json", settings)
            measure(Net(shelf, family, seed, options), family, seed, results, chosen)
            tables.write(HERE)


if __name__ == "__main__":
    main()
