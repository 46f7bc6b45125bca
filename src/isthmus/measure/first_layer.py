"""The weights that read an image first: what can be looked at as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, fx

from isthmus.program import Program

aten = torch.ops.aten
#: Operations after which pixels are no longer where they were.
_MOVES = {aten.permute.default, aten.transpose.int, aten.flip.default, aten.roll.default, aten.t.default}


@dataclass(frozen=True)
class FirstLayer:
    """A weight whose units read images.

    Attributes:
        key: its name.
        kind: "kernels" of a convolution, "templates" of a linear classifier of whole images, or "units" of a linear
            layer that others follow.
        shape: of what each unit reads, (channels, height, width).
    """

    key: str
    kind: Literal["kernels", "templates", "units"]
    shape: tuple[int, int, int]

    def of(self, weights: Mapping[str, Tensor]) -> Float[Tensor, "units c h w"]:
        """The weight as one image per unit."""
        return weights[self.key].detach().float().reshape(-1, *self.shape)


def first_layer(program: Program) -> FirstLayer | None:
    """The layer that reads a model's image, if that is a convolution or a linear layer of all pixels.

    Args:
        program: a model with an input (n, 1 or 3, height, width).

    Returns:
        None where the first layer reads something else, or rearranged pixels.

    Examples:
        >>> from torch import nn
        >>> from isthmus import export
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> first_layer(export(net, torch.zeros(2, 3, 8, 8)))
        FirstLayer(key='0.weight', kind='kernels', shape=(3, 3, 3))
    """
    for node in program.graph.nodes:
        name = program.linear_weight(node) if node.name in program.dynamic else None
        if name is None or program.depth[node.name] != 1:
            continue
        shape, image = program.shapes[program.weights[name]], _image(program, node.args[0])
        if image is None:
            continue
        if node.target is aten.linear.default and shape[1] == math.prod(image):
            kind = "templates" if program.layers == 1 else "units"
            return FirstLayer(program.weights[name], kind, image)
        if node.target in (aten.conv2d.default, aten.conv2d.padding) and shape[1] == image[0]:
            return FirstLayer(program.weights[name], "kernels", (shape[1], shape[2], shape[3]))
    return None


def likely_first_layer(weights: Mapping[str, Tensor]) -> FirstLayer | None:
    """The same where only the weights are known: the one convolution that reads three channels, or else one.

    Returns:
        None where there is no such weight, or several.
    """
    for channels in (3, 1):
        found = [
            key
            for key, value in weights.items()
            if value.ndim == 4 and value.shape[1] == channels and min(value.shape[2:]) > 1
        ]
        if len(found) == 1:
            shape = weights[found[0]].shape
            return FirstLayer(found[0], "kernels", (channels, shape[2], shape[3]))
        if found:
            return None
    return None


def _image(program: Program, source: object) -> tuple[int, int, int] | None:
    """(channels, height, width) of the image whose pixels a value has, in their order."""
    while isinstance(source, fx.Node) and source.name not in program.inputs:
        before = [a for a in source.all_input_nodes if a.name in program.dynamic]
        if len(before) != 1 or source.target in _MOVES:
            return None
        source = before[0]
    if not isinstance(source, fx.Node):
        return None
    size = program.size(source.name)
    return (size[1], size[2], size[3]) if len(size) == 4 and size[1] in (1, 3) else None
