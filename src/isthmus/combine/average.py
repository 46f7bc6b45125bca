"""The weighted average."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from isthmus.combine.combination import COMBINATIONS
from isthmus.errors import InputError


@COMBINATIONS.register(
    "average",
    needs=(),
    claims=("copies-give-the-model", "order-free", "streaming-equals-memory"),
    source="Wortsman et al., Model soups, arXiv:2203.05482",
)
def average(
    tensors: Sequence[Shaped[Tensor, "..."]],
    *,
    weights: Sequence[float],
    accumulate: Literal["float64", "float32"] = "float64",
) -> Shaped[Tensor, "..."]:
    """The weighted sum of the models: sum_i w_i W_i.

    Accumulated wide and rounded once, so that neither order nor number of models shows beyond the
    last bit of the result's dtype.

    Args:
        tensors: one per model, all of one shape.
        weights: one per model, summing to one.
        accumulate: dtype of the running sum; "float32" halves its memory, and what it loses shows in
            models stored in float32 only.

    Returns:
        A tensor in the widest of the models' dtypes, whatever their order.
    """
    if accumulate not in ("float64", "float32"):
        raise InputError(f"accumulate = {accumulate!r} is neither 'float64' nor 'float32'")
    kept = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    dtype = torch.promote_types(getattr(torch, accumulate), kept)
    total = torch.zeros_like(tensors[0], dtype=dtype)
    for weight, tensor in zip(weights, tensors, strict=True):
        total.add_(tensor.to(dtype), alpha=weight)
    return total.to(kept)
