"""Small networks of every kind, with weights drawn for them: what tests of alignments share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus
from isthmus.align import ALIGNMENTS, Alignment, align
from isthmus.maps import Permutation, Transport
from isthmus.symmetry import SymmetryGraph
from isthmus.symmetry.elements import random_orders
from isthmus.testing.subjects import drawn
from isthmus.zoo import MLP, VGG, ResNet, ViT

Weights = dict[str, Tensor]


class Grouped(nn.Module):
    """A grouped and a depthwise convolution between two plain ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.last, self.head = nn.Conv2d(6, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.stem, self.grouped, self.depthwise, self.last):
            x = torch.relu(conv(x))
        return self.head(x.mean((2, 3)))


class GroupedQueries(nn.Module):
    """Attention with two queries per key and value, q, k and v of weights of their own, and a gate."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 6), nn.Linear(6, 6)
        self.o, self.up, self.gate = nn.Linear(12, 6), nn.Linear(6, 5), nn.Linear(6, 5)
        self.down = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Dense3(nn.Module):
    """Three layers that read all before them, with norms before the convolutions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 3 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4 + 3 * i, 3, 3, padding=1) for i in range(3))
        self.head = nn.Linear(13, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        return self.head(x.mean((2, 3)))


class Depthwise(nn.Module):
    """A depthwise convolution between two others, all with norms."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(1, width, 1, bias=False), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.last, self.head = nn.Conv2d(width, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(self.bn2(self.depthwise(x)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def vgg(base: int, norm: str = "none") -> nn.Module:
    return VGG((1, "M", 2), base=base, norm=norm, in_channels=1, num_classes=3)


#: Every registered alignment, so brief that it can be tried on every network.
BRIEFLY: dict[str, dict[str, object]] = {name: {"method": name} for name in ALIGNMENTS.names()} | {
    "annealing": {"method": "annealing", "steps": 4},
    "sinkhorn": {"method": "sinkhorn", "steps": 3, "start": "weight-matching"},
    "straight-through": {"method": "straight-through", "epochs": 1},
    # Soft plans give no network back from its copies.
    "transformer-transport": {"method": "transformer-transport", "solver": "exact"},
}

#: Name -> the network, and the shape of one input.
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(d_in=6, widths=(8, 7), num_classes=3), (6,)),
    "conv": (lambda: vgg(6), (1, 6, 6)),
    "conv-bn": (lambda: vgg(6, "bn"), (1, 6, 6)),
    "vgg": (lambda: vgg(4), (1, 6, 6)),
    "vgg-bn": (lambda: vgg(4, "bn"), (1, 6, 6)),
    "grouped": (Grouped, (1, 5, 5)),
    "depthwise": (Depthwise, (1, 6, 6)),
    "resnet": (lambda: ResNet(8, base=4, norm="bn", in_channels=1, num_classes=3), (1, 8, 8)),
    "densenet": (Dense3, (1, 6, 6)),
    "vit": (
        lambda: ViT(
            image=4, patch=2, dim=8, depth=1, heads=2, mlp_ratio=1, pool="mean", in_channels=1, num_classes=3
        ),
        (1, 4, 4),
    ),
    "grouped queries": (GroupedQueries, (3, 6)),
}


@dataclass(frozen=True)
class Net:
    """A network in float64, its symmetries, and 48 inputs."""

    model: nn.Module
    graph: SymmetryGraph
    data: Tensor

    def drawn(self, seed: int, positive: bool = False) -> Weights:
        """Weights of a stranger.

        Args:
            seed: of the draw.
            positive: draw biases and shifts above zero, so that no unit behind a ReLU is silent.
        """
        weights = drawn(self.model, torch.Generator().manual_seed(seed))
        return {k: t.abs() if positive and t.ndim == 1 else t for k, t in weights.items()}

    def planted(self, weights: Weights, seed: int) -> Weights:
        """The same network with its units in another order."""
        orders = random_orders(self.graph, torch.Generator().manual_seed(seed))
        return Transport(self.graph, {n: Permutation(o) for n, o in orders.items()}).apply(weights)

    def run(self, weights: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return torch.func.functional_call(self.model, dict(weights), (self.data,))

    def labelled(self, weights: Weights) -> list[tuple[Tensor, Tensor]]:
        """The inputs with a model's answers, in three batches."""
        return list(zip(self.data.split(16), _classes(self.run(weights)).split(16), strict=True))

    def align(self, models: Sequence[Weights], by: str | Mapping[str, object], **options: Any) -> Alignment:
        return align(self.graph, models, by, data=self.labelled(models[0]), **options)

    def merge(self, models: Sequence[Weights], **options: Any) -> isthmus.Merged:
        return isthmus.merge(
            models,
            model=self.model,
            graph=self.graph,
            data=self.labelled(models[0]),
            verify=False,
            **options,
        )


def _classes(outputs: Tensor) -> Tensor:
    return outputs.flatten(1).argmax(1)


@functools.cache
def build(name: str) -> Net:
    make, shape = NETS[name]
    model = make().double().eval()
    data = torch.randn(48, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Net(model, isthmus.trace(model, data[:2]), data)
