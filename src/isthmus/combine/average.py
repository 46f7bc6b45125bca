"""The weighted average."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from isthmus.combine.combination import COMBINATIONS


@COMBINATIONS.register(
    "average",
    needs=(),
    claims=("copies-give-the-model", "order-free", "streaming-equals-memory"),
    source="Wortsman et al., Model soups, arXiv:2203.05482",
)
def average(tensors: Sequence[Shaped[Tensor, "..."]], *, weights: Sequence[float]) -> Shaped[Tensor, "..."]:
    """The weighted sum of the models: sum_i w_i W_i.

    Accumulated in float64 and rounded once, so that neither order nor number of models shows beyond
    the last bit of the result's dtype.

    Args:
        tensors: one per model, all of one shape.
        weights: one per model, summing to one.

    Returns:
        A tensor in the dtype of the first.
    """
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for weight, tensor in zip(weights, tensors, strict=True):
        total.add_(tensor.to(torch.float64), alpha=weight)
    return total.to(tensors[0].dtype)
