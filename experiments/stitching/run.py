"""How alike strangers are, layer by layer: CKA, Procrustes and stitching; and whether that says where merging fails.

    python experiments/stitching/run.py --checkpoints FOLDER --cifar npz:cifar10.npz --fashion npz:fmnist.npz

Pairs of networks that share nothing but the data. Similarities and the maps between networks are measured on training
images, a ridge is chosen on validation images, and penalties and barriers are those on test images. What is in
`results/` is not measured again. Writes the tables and figures of `README.md`.
"""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import tables
from common.bench import Results

import isthmus
from isthmus import progress, zoo
from isthmus import weights as files

HERE = Path(__file__).parent
KINDS = ("affine", "relu", "rank 4", "rank 2", "rank 1", "identity")
#: Of the maps, relative to the mean square of what they read; the one for an affine map is chosen on validation.
RIDGES = (1e-6, 1e-2, 1e-1)
#: Accuracy that a partial merge may lose where merging is said to go on.
TOLERANCE = 0.02
KERNELS = {"CKA": "linear", "control": "normalised", "G_ReLU-CKA": "relu"}
GROUPS = {"G_ReLU-Procrustes": "relu", "Procrustes": "orthogonal"}


@dataclass(frozen=True)
class Family:
    """Networks of one architecture trained apart."""

    factory: str
    arguments: dict[str, Any]
    data: str
    pairs: tuple[tuple[str, str], ...]


FAMILIES = {
    "mlp": Family("mlp", {}, "fashion", (("mlp_s1", "mlp_s2"), ("mlp_s1", "mlp_s3"), ("mlp_s2", "mlp_s3"))),
    "vgg16bn": Family("vgg16", {"base": 16, "norm": "bn"}, "cifar", (("vgg16bn_s1", "vgg16bn_s2"),)),
    "resnet20": Family("resnet20", {}, "cifar", (("resnet20_s1", "resnet20_s2"),)),
    "vgg16": Family("vgg16", {"base": 16}, "cifar", (("vgg16_s1", "vgg16_s2"),)),
}


class Pair:
    """Two networks and their images."""

    def __init__(self, family: Family, names: tuple[str, str], folder: Path, data: zoo.Dataset, sizes: Any):
        self.model = model = zoo.build(family.factory, **family.arguments).eval()
        self.states: list[dict[str, Tensor]] = []
        for name in names:
            found = files.load(folder / f"{name}.safetensors")
            self.states.append({k: found[k].to(v.dtype) for k, v in model.state_dict().items()})
        # A kernel's estimate is averaged over batches: they are large.
        self.train = list(data.loader("train", batch_size=250, limit=sizes.examples, seed=0))
        self.validation = list(data.loader("validation", batch_size=500, limit=500))
        self.test = list(data.loader("test", batch_size=500, limit=sizes.test))
        self.program = isthmus.export(model, self.train[0][0][:2])

    def sides(self, i: int, j: int) -> tuple[Any, ...]:
        return self.program, self.states[i], self.program, self.states[j]

    def likeness(self, name: str, i: int = 0, j: int = 1) -> dict[str, Any]:
        """One measure: its diagonal, and the whole matrix of places where it has one."""
        if name in GROUPS:
            found = isthmus.procrustes(*self.sides(i, j), self.train, group=GROUPS[name])
            return {"diagonal": dict(found.layers)}
        seen = isthmus.cka(*self.sides(i, j), self.train, kernel=KERNELS[name])
        return {"diagonal": seen.diagonal, "matrix": [list(row) for row in seen.matrix]}

    def stopping(self) -> dict[str, Any]:
        """Where merging the networks has to stop and may start, and whether a similarity knows it."""
        graph = isthmus.trace(self.model, self.train[0][0][:2])
        alignment = isthmus.align(graph, self.states, "activation-matching", data=self.train)
        likeness = {
            name: isthmus.cka(*self.sides(0, 1), self.train, kernel=KERNELS[name]) for name in KERNELS
        }
        found = isthmus.measure.when_to_stop(
            self.program,
            isthmus.Segment(*alignment.apply(self.states)),
            self.test,
            tolerance=TOLERANCE,
            similarity=likeness["G_ReLU-CKA"].by_depth,
            calibration=[x for x, _ in self.train],
        )
        assert found.single is not None, "there is a similarity"
        barriers = {"first": found.first, "last": found.last, "single": found.single}
        return {
            "stop": found.stop,
            "start": found.start,
            "layers": found.layers,
            "barriers": {name: list(one.accuracy) for name, one in barriers.items()},
            "similarity": {name: one.by_depth for name, one in likeness.items()},
        }

    def stitched(self, i: int, j: int) -> dict[str, Any]:
        """Penalties of network i going on with what network j has made, kind by kind."""

        def penalty(ridge: float) -> float:
            (found,) = isthmus.stitch(
                *self.sides(i, j), self.train, self.validation, kinds=["affine"], ridge=ridge
            )
            return found.findings[0].value

        ridge = min(RIDGES, key=penalty)
        found = isthmus.stitch(*self.sides(i, j), self.train, self.test, kinds=KINDS, ridge=ridge)
        penalties = {one.kind: one.penalties for one in found}
        if any("running_mean" in key for key in self.states[i]):
            (kept,) = isthmus.stitch(
                *self.sides(i, j), self.train, self.test, kinds=["affine"], ridge=ridge, norms="keep"
            )
            penalties["affine, norms as they were"] = kept.penalties
        return {
            "ridge": ridge,
            "accuracies": list(found[0].accuracies),
            "left out": dict(found[0].left_out),
            "penalties": penalties,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--cifar", help="CIFAR-10, as isthmus.zoo.open_data takes it")
    parser.add_argument("--fashion", help="Fashion-MNIST, likewise")
    parser.add_argument("--family", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--examples", type=int, default=1000, help="training images")
    parser.add_argument("--test", type=int, default=None, help="test images; all where not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    progress.disable()
    settings = {"examples": options.examples, "test": options.test}
    for name in options.family:
        family = FAMILIES[name]
        data = zoo.open_data(getattr(options, family.data)).split(validation=5000, seed=0)
        for names in family.pairs:
            pair = Pair(family, names, options.checkpoints, data, options)
            results = Results(HERE / "results" / f"{'-'.join(names)}.json", {**settings, "family": name})
            for measure in (*KERNELS, *GROUPS):
                results.once(measure, functools.partial(pair.likeness, measure))
            # The control of the controls: one network, its layers against its other layers.
            results.once("G_ReLU-CKA of one", functools.partial(pair.likeness, "G_ReLU-CKA", 0, 0))
            for i, j in ((0, 1), (1, 0)):
                results.once(f"stitch {names[j]} to {names[i]}", functools.partial(pair.stitched, i, j))
            results.once("stopping", pair.stopping)
            tables.write(HERE, list(FAMILIES))


if __name__ == "__main__":
    main()
