"""What the experiments on small strangers share: images, networks trained once, results measured once.

A run that is stopped goes on where it was: a network that has a file is not trained again, and what stands in a file
of results is not measured again. Settings stand beside the results; a file of other settings is refused, not mixed.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import isthmus
from isthmus import progress, zoo
from isthmus import weights as files

VALIDATION = 2000
CALIBRATION = 1000

State = dict[str, Tensor]
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum, a rate that rises and falls, no augmentation."""

    epochs: int = 10
    lr: float = 0.1
    batch_size: int = 128
    weight_decay: float = 5e-4
    clip: float = 1.0


@dataclass(frozen=True)
class Images:
    """A data set and the batches that are looked at.

    Attributes:
        data: training, validation and test images.
        calibration: training images, for matching and repair.
        validation, test: for choosing, and for the numbers.
    """

    data: zoo.Dataset
    calibration: Batches
    validation: Batches
    test: Batches


class Results:
    """A file of numbers by key, written whenever there is a new one."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self.known: dict[str, Any] = {"settings": dict(settings), "seconds": 0.0, "found": {}}
        if path.exists():
            self.known = json.loads(path.read_text())
            if self.known["settings"] != json.loads(json.dumps(settings)):
                raise SystemExit(f"{path} was measured with other settings: {self.known['settings']}")

    @property
    def found(self) -> dict[str, Any]:
        return self.known["found"]

    def once(self, key: str, measured: Callable[[], Any]) -> Any:
        """What stands under a key, or what is measured now."""
        if key not in self.found:
            began = time.process_time()
            self.found[key] = measured()
            spent = time.process_time() - began
            self.known["seconds"] = round(self.known["seconds"] + spent, 1)
            with files.atomic(self.path) as file:
                file.write((json.dumps(self.known, indent=1) + "\n").encode())
            print(f"{self.path.stem} {key}: {spent:.0f} s", flush=True)
        return self.found[key]


class Bench:
    """What an experiment is given on its command line.

    Args:
        options: see `arguments`.
        results: the folder of its results.
    """

    def __init__(self, options: argparse.Namespace, results: Path):
        self.options, self.folder = options, results
        self.seeds = tuple(range(options.seeds))
        results.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(options.threads)
        progress.disable()

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every two of the seeds."""
        return list(itertools.combinations(self.seeds, 2))

    def results(self, name: str, **settings: Any) -> Results:
        common = {"scale": self.options.scale, "seeds": list(self.seeds)}
        return Results(self.folder / f"{name}.json", {**common, **settings})

    def images(self, name: str, train: int, *, halved: bool = False, test: int = 5000) -> Images:
        """`fashion` or `cifar`: so many images times the scale, as far as there are any.

        Args:
            name: which option says where it is.
            train: training images at scale 1.
            halved: each 2 x 2 pixels averaged to one.
            test: test images at scale 1.
        """
        found = zoo.open_data(getattr(self.options, name)).split(validation=VALIDATION, seed=0)
        sizes = {"train": train * self.options.scale, "test": test * self.options.scale}
        parts: dict[str, np.ndarray] = {}
        for split in ("train", "validation", "test"):
            x, y = found.arrays(split)
            rows = np.random.Generator(np.random.PCG64(0)).permutation(len(y))
            rows = rows[: int(sizes.get(split, VALIDATION))]
            parts |= {f"x_{split}": _halved(x[rows]) if halved else x[rows], f"y_{split}": y[rows]}
        return looked_at(replace(found, **parts))

    def trained(
        self,
        name: str,
        factory: Callable[[], nn.Module],
        data: zoo.Dataset,
        seed: int,
        recipe: Recipe | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> State:
        """The weights of a network, trained if they have no file.

        Args:
            name: what the file's name begins with; the rest is a digest of architecture, images and recipe.
            factory: makes the network.
            data: its training split is trained on.
            seed: of the initial weights and of the order of the images.
            recipe: how.
            start: weights to go on from.
        """
        recipe = recipe or Recipe()
        net = factory()
        told = [repr(net), data.sha256(), asdict(recipe), None if start is None else files.digest(start)]
        digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:10]
        path = self.options.models / f"{name}-s{seed}-{digest}.safetensors"
        if not path.exists():
            if start is None:
                net = zoo.init(net, seed)
            else:
                net.load_state_dict(dict(start))
            made = asdict(recipe)
            loader = data.loader("train", batch_size=made.pop("batch_size"), shuffle=True, drop_last=True)
            net = zoo.train(net.to(self.options.device), loader, seed=seed, **made).model.cpu()
            path.parent.mkdir(parents=True, exist_ok=True)
            files.save(net.state_dict(), path)
            print(f"trained {path.stem}", flush=True)
        found = files.load(path)
        return {key: found[key] for key in net.state_dict()}  # a file's order is that of the alphabet


def looked_at(data: zoo.Dataset) -> Images:
    """The batches of a data set."""
    return Images(
        data,
        list(data.loader("train", batch_size=250, limit=CALIBRATION, seed=0)),
        list(data.loader("validation", batch_size=500)),
        list(data.loader("test", batch_size=500)),
    )


def parted(data: zoo.Dataset, shares: Mapping[int, float], seed: int) -> tuple[zoo.Dataset, zoo.Dataset]:
    """Two training splits that have no image in common.

    Args:
        data: what is parted; validation and test stay whole in both.
        shares: class -> the part of its images that the first split gets; the second one gets the rest.
        seed: of who gets which.
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    x, y = data.arrays("train")
    first: list[np.ndarray] = []
    second: list[np.ndarray] = []
    for number, share in shares.items():
        rows = draw.permutation(np.flatnonzero(y == number))
        cut = round(share * len(rows))
        first.append(rows[:cut])
        second.append(rows[cut:])
    one, two = (np.sort(np.concatenate(part)) for part in (first, second))
    return replace(data, x_train=x[one], y_train=y[one]), replace(data, x_train=x[two], y_train=y[two])


def opposite(classes: int) -> dict[int, float]:
    """The split of Git Re-Basin: a fifth of the first half of the classes and four fifths of the others."""
    return {number: 0.2 if number < classes // 2 else 0.8 for number in range(classes)}


def together(models: Sequence[nn.Module], data: Batches) -> float:
    """Accuracy of the mean of some networks' logits; they may differ in width."""
    right = total = 0
    with torch.no_grad():
        for inputs, targets in data:
            logits = torch.stack([model(inputs).double() for model in models]).mean(0)
            right += int((logits.argmax(1) == targets).sum())
            total += len(targets)
    return right / total


def with_weights(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A network of its own with some weights."""
    net = copy.deepcopy(model).eval()
    net.load_state_dict(dict(state))
    return net


def best(tried: Mapping[str, float]) -> str:
    """The name of the highest score; the first one where several are equal."""
    return max(tried, key=lambda name: tried[name])


def graph_of(model: nn.Module, images: Images, state: Mapping[str, Tensor]) -> isthmus.SymmetryGraph:
    """The symmetries of an architecture, verified."""
    example = images.calibration[0][0][:2]
    return isthmus.verified(isthmus.trace(model.eval(), example), example, weights=state)[0]


#: Option -> the data set that it names, as `isthmus.zoo.open_data` takes it.
SETS = {"fashion": "Fashion-MNIST", "cifar": "CIFAR-10"}


def arguments(doc: str | None, parts: Sequence[str], sets: Sequence[str]) -> argparse.ArgumentParser:
    """The command line that the experiments share.

    Args:
        doc: of the script.
        parts: of the experiment, which `--only` chooses among.
        sets: keys of `SETS` that it looks at.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in sets:
        parser.add_argument(f"--{name}", required=True, help=f"{SETS[name]}: npz:FILE, or what else is known")
    parser.add_argument(
        "--models", type=Path, required=True, help="folder of trained networks, made if missing"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of images")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind; every two are a pair")
    parser.add_argument("--device", default="cpu", help="where networks are trained")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--results", type=Path, help="folder of results and README; the experiment's own if missing"
    )
    parser.add_argument("--only", nargs="*", default=list(parts), choices=list(parts))
    return parser


def _halved(x: np.ndarray) -> np.ndarray:
    """Images of half the size."""
    wide = x.astype(np.uint16)
    total = wide[:, ::2, ::2] + wide[:, 1::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)
