"""The families of networks, how they are trained, and pairs of strangers among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus import weights as files
from isthmus import zoo

State = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training split.
        lr: largest learning rate; it rises for the share `warmup` of all steps, then falls to zero.
        growth: (side, until this share of all steps): images are made smaller early on, which is cheaper.
        after: the family whose batch norms are folded to start from, or None for fresh weights.
    """

    epochs: int
    lr: float
    warmup: float = 0.2
    weight_decay: float = 5e-4
    clip: float | None = None
    optimizer: str = "sgd"
    batch_size: int = 256
    growth: tuple[tuple[int, float], ...] = ()
    after: str | None = None


GROWTH = ((16, 0.25), (24, 0.7))
#: The paper's, except that the rate falls linearly where theirs falls in steps.
PAPER = Recipe(160, 0.1, 0.01, 1e-4, batch_size=128)


METHODS = ("direct", "weight-matching", "activation-matching", "zipit", "cca")
PLAIN = (*METHODS[:2], "weight-matching, biases follow", *METHODS[2:])


@dataclass(frozen=True)
class Family:
    """Networks of one architecture.

    Attributes:
        factory: of the zoo.
        small, full: arguments of the factory and recipe, for minutes of one processor core or for a GPU.
        depth: linear and conv operations on the longest path.
        kept: depths of preservation that are measured, 0 first.
        repairs: of the published tables, and others that apply; the first is the usual one.
        block: where depth is counted in blocks, the linear operations of each; one comes before the first block.
        methods: names of alignments, "direct" being none.
    """

    factory: str
    small: tuple[dict[str, object], Recipe]
    full: tuple[dict[str, object], Recipe]
    depth: int
    kept: tuple[int, ...]
    repairs: tuple[str, ...]
    block: int = 0
    methods: tuple[str, ...] = METHODS


VGG_DEPTHS, RESNET_DEPTHS = (0, 3, 6, 8, 12), (0, 6, 10, 13, 19)
FAMILIES: dict[str, Family] = {
    "vgg16": Family(
        "vgg16",
        ({"base": 16}, Recipe(3, 0.03, 0.1, clip=1.0, after="vgg16bn")),
        ({}, PAPER),
        14,
        VGG_DEPTHS,
        ("repair", "rescale", "calibrate-bias", "least-squares"),
        methods=PLAIN,
    ),
    "vgg16scratch": Family(
        "vgg16",
        ({"base": 16}, Recipe(5, 0.03, weight_decay=1e-4, clip=1.0, batch_size=64, growth=GROWTH)),
        ({}, PAPER),
        14,
        VGG_DEPTHS,
        ("repair", "rescale", "calibrate-bias", "least-squares"),
        methods=PLAIN,
    ),
    "vgg16bn": Family(
        "vgg16",
        ({"base": 16, "norm": "bn"}, Recipe(8, 0.5, growth=GROWTH)),
        ({"norm": "bn"}, PAPER),
        14,
        VGG_DEPTHS,
        ("reset", "least-squares"),
    ),
    "vgg16ln": Family(
        "vgg16",
        ({"base": 16, "norm": "ln"}, Recipe(5, 0.1, clip=1.0, batch_size=64, growth=GROWTH)),
        ({"norm": "ln"}, PAPER),
        14,
        VGG_DEPTHS,
        ("repair", "rescale", "least-squares"),
    ),
    "resnet20": Family(
        "resnet20",
        ({}, Recipe(3, 0.5, growth=GROWTH)),
        ({}, PAPER),
        20,
        RESNET_DEPTHS,
        ("reset", "least-squares"),
    ),
    "resnet20ln": Family(
        "resnet20",
        ({"norm": "ln"}, Recipe(4, 0.1, clip=1.0, batch_size=64, growth=GROWTH)),
        ({"norm": "ln"}, PAPER),
        20,
        RESNET_DEPTHS,
        ("repair", "rescale", "least-squares"),
    ),
    "vit": Family(
        "vit",
        (
            {"patch": 8, "dim": 64, "depth": 7, "heads": 2, "mlp_ratio": 2, "pool": "mean"},
            Recipe(4, 1e-3, weight_decay=0.05, clip=1.0, optimizer="adam", batch_size=64),
        ),
        (
            {"dim": 384, "depth": 7, "heads": 6, "mlp_ratio": 1, "pool": "mean"},
            Recipe(200, 1e-3, weight_decay=0.05, clip=1.0, optimizer="adam", batch_size=128),
        ),
        8,
        (0, 3, 4, 5, 6),
        (),
        4,
        ("direct", "transformer-transport", "weight-matching", "activation-matching"),
    ),
}


class Growing:
    """All batches of a training run: reshuffled each epoch, the early ones of smaller images."""

    def __init__(self, loader: zoo.Loader, recipe: Recipe, seed: int):
        self.loader, self.recipe, self.seed = loader, recipe, seed

    def __len__(self) -> int:
        return self.recipe.epochs * len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = 0
        for epoch in range(self.recipe.epochs):
            for x, y in self.loader.epoch(epoch, self.seed):
                side = next((s for s, until in self.recipe.growth if step < until * len(self)), x.shape[-1])
                step += 1
                yield (x if side == x.shape[-1] else _resized(x, side)), y


def _resized(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Shelf:
    """Where networks come from: given checkpoints, networks trained before, or training now.

    Attributes:
        data: with a validation split, which no network trained here sees.
        given: a folder of checkpoints `{family}_s{seed}.safetensors`, or None.
        trained: the folder that this script trains into.
    """

    data: zoo.Dataset
    given: Path | None
    trained: Path
    scale: str = "small"
    device: str = "cpu"

    def build(self, family: str) -> nn.Module:
        arguments = self.sized(family)[0]
        return zoo.build(FAMILIES[family].factory, **arguments, num_classes=self.data.num_classes).eval()

    def sized(self, family: str) -> tuple[dict[str, object], Recipe]:
        return FAMILIES[family].small if self.scale == "small" else FAMILIES[family].full

    def path(self, family: str, seed: int) -> Path:
        """Where a network is or will be."""
        name = f"{family}_s{seed}.safetensors"
        given = None if self.given is None else self.given / name
        return given if given is not None and given.exists() else self.trained / name

    def pair(self, family: str, index: int) -> list[State]:
        """Two networks that share nothing but the data; pair 1 has seeds 1 and 2, pair 2 has 3 and 4."""
        return [self.state(family, seed) for seed in (2 * index - 1, 2 * index)]

    def ready(self, family: str, index: int) -> bool:
        """Whether a pair needs no training."""
        return all(self.path(family, seed).exists() for seed in (2 * index - 1, 2 * index))

    def state(self, family: str, seed: int) -> State:
        """One network's weights, trained first if need be."""
        path = self.path(family, seed)
        if not path.exists():
            self.train(family, seed)
        found, own = files.load(path), self.build(family).state_dict()
        return {key: found[key].to(value.dtype) for key, value in own.items()}

    def train(self, family: str, seed: int) -> None:
        recipe = self.sized(family)[1]
        model = zoo.init(self.build(family), seed)
        if recipe.after is not None:
            model.load_state_dict(folded(self.build(recipe.after), self.state(recipe.after, seed)))
        loader = self.data.loader(
            "train", batch_size=recipe.batch_size, augment=zoo.Augment(), shuffle=True, drop_last=True
        )
        result = zoo.train(
            model.to(self.device),
            Growing(loader, recipe, seed),
            epochs=1,
            lr=recipe.lr,
            warmup=recipe.warmup,
            weight_decay=recipe.weight_decay,
            clip=recipe.clip,
            optimizer=recipe.optimizer,
            bf16=True,
            seed=seed,
        )
        files.save(result.model.cpu().state_dict(), self.trained / f"{family}_s{seed}.safetensors")
        last = result.history[-1]
        print(f"trained {family} seed {seed}: {result.seconds:.0f} s, mean loss {last.loss:.3f}", flush=True)


@torch.no_grad()
def folded(model: nn.Module, state: State) -> State:
    """A plain chain's weights that compute, in evaluation mode, what a chain with batch norms does."""
    model.load_state_dict(state)
    found: State = {}
    names = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))]
    place = 0  # of a layer in the plain `features`, where the norms are missing
    layers = dict(model.named_modules())
    removed = 0
    for name, after in zip(names, [*names[1:], ""], strict=True):
        layer, norm = layers[name], layers.get(after)
        if isinstance(layer, nn.BatchNorm2d):
            removed += 1
            continue
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            assert norm.running_var is not None and norm.running_mean is not None
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            place = int(name.split(".")[1]) - removed
            found[f"features.{place}.weight"] = layer.weight * scale[:, None, None, None]
            found[f"features.{place}.bias"] = norm.bias - norm.running_mean * scale
        else:
            found |= {f"{name}.{key}": value for key, value in layer.state_dict().items()}
    return found
