"""Where an axis has the units of a space."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from isthmus.symmetry import Axis, Blocks, Interleaved, Leaf


def positions_in(axis: Axis, space: str) -> Int[Tensor, "copies units"]:
    """Where an axis has the units of a space, once per index of everything else on it."""
    return _walk(axis, space, torch.arange(axis.size)[None])


def _walk(axis: Axis, space: str, index: Tensor) -> Tensor:
    if isinstance(axis, Leaf):
        return index if axis.space == space else index.new_zeros(0, 0)
    if isinstance(axis, Interleaved):
        return _walk(axis.concatenated, space, index[:, torch.tensor(axis.gathered)])
    found: list[Tensor] = []
    if isinstance(axis, Blocks):
        opened = index.unflatten(1, [factor.size for factor in axis.factors])
        for dim, factor in enumerate(axis.factors, start=1):
            found.append(_walk(factor, space, opened.movedim(dim, -1).flatten(0, -2)))
    else:
        for part, piece in zip(axis.parts, index.split([p.size for p in axis.parts], 1), strict=True):
            found.append(_walk(part, space, piece))
    kept = [f for f in found if f.numel()]
    return torch.cat(kept) if kept else index.new_zeros(0, 0)
