"""Networks of linear layers only: the multilayer perceptron and the deep linear network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from isthmus.errors import InputError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class MLP(nn.Module):
    """Flatten, then linear layers with an activation between each two.

    Args:
        d_in: numbers in one flattened input.
        widths: units of each hidden layer.
        num_classes: number of logits.
        act: a name in `ACTIVATIONS`, or "none" for a network that is linear throughout.

    Raises:
        InputError: an unknown activation.
    """

    def __init__(
        self,
        d_in: int = 784,
        widths: Sequence[int] = (512, 512, 512),
        num_classes: int = 10,
        act: str = "relu",
    ):
        super().__init__()
        if act != "none" and act not in ACTIVATIONS:
            raise InputError(
                f"unknown activation {act!r}", hint=f"act is one of none, {', '.join(ACTIVATIONS)}"
            )
        sizes = (d_in, *widths, num_classes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.act = act

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        x = x.flatten(1)
        for i, layer in enumerate(self.layers):
            if i and self.act != "none":
                x = ACTIVATIONS[self.act](x)
            x = layer(x)
        return x


class LinearNetwork(nn.Module):
    """Flatten, then `depth` linear layers and no activation: what averaging does, without the nonlinearity.

    Args:
        depth: number of linear layers, the first and the last included.
        width: units of every hidden layer.
        residual: add an identity skip around every layer that keeps the width (all but the first and last).
        d_in: numbers in one flattened input.
        num_classes: number of logits.

    Raises:
        InputError: fewer than two layers.

    Source: Qu and Horvath 2024, who show vanishing features in linear networks with and without residual
        connections. Without them the keys and the function are those of `MLP(act="none")`.
    """

    def __init__(
        self, depth: int = 8, width: int = 32, residual: bool = False, d_in: int = 784, num_classes: int = 10
    ):
        super().__init__()
        if depth < 2:
            raise InputError(f"a deep linear network has at least 2 layers, not {depth}")
        sizes = (d_in, *[width] * (depth - 1), num_classes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.residual = residual

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        x = x.flatten(1)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = x + layer(x) if self.residual and 0 < i < last else layer(x)
        return x
