"""From scores to masks: the smallest go, exactly as many as are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.errors import InputError
from isthmus.prune.layers import Layer

#: Among which weights the smallest scores go: all of them, those of a layer, those of an output unit.
Scope = Literal["global", "layer", "row"]


def keep_largest(
    scores: Mapping[str, Float[Tensor, "..."]],
    weights: Mapping[str, Float[Tensor, "..."]],
    layers: Sequence[Layer],
    sparsity: float,
    scope: Scope,
) -> dict[str, Bool[Tensor, "..."]]:
    """Which weights stay.

    Of n weights that are compared, floor(n sparsity) go: those of the smallest scores, of equal scores the smallest
    weights (many scores are zero where units are dead), and of equal weights the first.

    Args:
        scores: of each layer, of its weight's shape; not negative.
        weights: a state dict with those layers' weights.
        layers: what is pruned.
        sparsity: share of the weights to prune, 0 to 1.
        scope: "global": compared over all layers. "layer": within each. "row": within each output unit.

    Raises:
        InputError: another scope.
    """

    def kept(layer: Layer, shape: tuple[int, ...] | None = None) -> Tensor:
        both = scores[layer.key], weights[layer.key]
        score, weight = (layer.rows(t) if shape is None else t.reshape(shape) for t in both)
        return _kept(score, weight, sparsity)

    if scope == "global":
        flat = [torch.cat([of[layer.key].flatten() for layer in layers]) for of in (scores, weights)]
        sizes = [scores[layer.key].numel() for layer in layers]
        parts = _kept(flat[0].unsqueeze(0), flat[1].unsqueeze(0), sparsity)[0].split(sizes)
        return {layer.key: part.view(layer.shape) for layer, part in zip(layers, parts, strict=True)}
    if scope == "layer":
        return {layer.key: kept(layer, (1, -1)).view(layer.shape) for layer in layers}
    if scope == "row":
        return {layer.key: layer.stored(kept(layer)) for layer in layers}
    raise InputError(f"scope={scope!r} is none of global, layer, row")


def _kept(
    scores: Float[Tensor, "groups members"], weights: Float[Tensor, "groups members"], sparsity: float
) -> Bool[Tensor, "groups members"]:
    # 0.7 is not seven tenths in binary; what is written is what is meant.
    count = int(scores.shape[1] * Fraction(str(float(sparsity))))
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=1, keepdim=True).values
    equal, stay = scores == threshold, scores > threshold
    left = count - (scores < threshold).sum(1, keepdim=True)
    if bool((equal.sum(1, keepdim=True) == left).all()):
        return stay
    order = torch.where(equal, wide(weights).abs(), torch.inf).argsort(dim=1, stable=True)
    goes = torch.arange(scores.shape[1], device=scores.device) < left
    return stay | (equal & ~torch.zeros_like(equal).scatter(1, order, goes.expand_as(equal)))


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float32 at least: narrower ones have no k-th value."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
