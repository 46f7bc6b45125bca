"""What the windows of a convolution show, read off its node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import fx

from isthmus.features.request import Patches
from isthmus.program import Program

aten = torch.ops.aten

#: Convolution -> number of spatial dimensions; None where only the weight says it.
_CONVOLUTIONS: dict[object, int | None] = {
    aten.conv1d.default: 1,
    aten.conv2d.default: 2,
    aten.conv3d.default: 3,
    aten.conv1d.padding: 1,
    aten.conv2d.padding: 2,
    aten.conv3d.padding: 3,
    aten.convolution.default: None,
}


def windows(program: Program, node: fx.Node) -> tuple[Patches, int] | None:
    """The patches that a convolution reads its input by, and its number of groups.

    Args:
        program: the graph.
        node: any operation.

    Returns:
        None where the operation is no convolution, is a transposed one, or has no batch dimension.
    """
    if node.target not in _CONVOLUTIONS or (node.target is aten.convolution.default and node.args[6]):
        return None
    source, weight = node.args[:2]
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    kernel = program.size(weight.name)[2:]
    rank = len(kernel)
    if len(program.size(source.name)) != rank + 2:
        return None
    names = ("stride", "padding", "dilation", "groups")
    rest: dict[str, object] = {**dict(zip(names, node.args[3:], strict=False)), **node.kwargs}
    if node.target is aten.convolution.default:
        rest["groups"] = node.args[8]
    stride, dilation = (_each(rest.get(name, 1), rank) for name in ("stride", "dilation"))
    padding = rest.get("padding", 0)
    if isinstance(padding, str):
        # As torch does it: what is left over goes behind.
        whole = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        pads = tuple((total // 2, total - total // 2) for total in whole)
    else:
        pads = tuple((p, p) for p in _each(padding, rank))
    return Patches(kernel, stride, pads, dilation), cast("int", rest.get("groups", 1))


def _each(value: object, rank: int) -> tuple[int, ...]:
    """One number per dimension."""
    found = tuple(cast("Sequence[int]", value)) if isinstance(value, Sequence) else (cast("int", value),)
    return found if len(found) == rank else found * rank
