"""Weighted sums of the models, of their differences from a base, and of one model alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from isthmus.combine.blocks import Block, BlockRule, arithmetic, scratch, widened
from isthmus.combine.rules import rule
from isthmus.errors import InputError

#: dtype of a running sum. "auto" is float32 for models stored in 16 bits or fewer, float64 for the others:
#: in either case the sum is rounded once, when it is stored.
Accumulate = Literal["auto", "float64", "float32"]


class Linear(BlockRule):
    """sum_i w_i W_i, and a multiple of the base.

    Args:
        weights: one per model.
        base: what the base is multiplied by.
        accumulate: dtype of the running sum.
    """

    complex = True
    shows = True

    def __init__(self, weights: Sequence[float], base: float = 0.0, accumulate: Accumulate = "auto"):
        self._weights = tuple(weights)
        self._base = base
        if accumulate not in ("auto", "float64", "float32"):
            raise InputError(f"accumulate = {accumulate!r} is none of 'auto', 'float64', 'float32'")
        self._accumulate = accumulate

    def write(self, block: Block) -> Tensor:
        terms = list(zip(self._weights, block.models, strict=True))
        if block.base is not None and self._base:
            terms.insert(0, (self._base, block.base))
        if self._accumulate == "auto":
            narrow = all(t.itemsize <= 2 for _, t in terms)
            dtype = arithmetic(block, torch.float32 if narrow else torch.float64)
        else:
            dtype = arithmetic(block, getattr(torch, self._accumulate))
        return weighted_sum(terms, dtype)


def weighted_sum(terms: Sequence[tuple[float, Tensor]], dtype: torch.dtype) -> Tensor:
    """sum_i w_i t_i in scratch memory, added up in the order given."""
    (weight, tensor), *others = terms
    total = scratch("sum", tensor, dtype).copy_(tensor).mul_(weight)
    for weight, tensor in others:
        total.add_(widened(tensor, dtype, "term"), alpha=weight)
    return total


@rule(
    "average",
    claims=("copies-give-the-model", "order-free", "streaming-equals-memory"),
    source="Wortsman et al., Model soups, arXiv:2203.05482",
)
def average(weights: Sequence[float], *, accumulate: Accumulate = "auto") -> BlockRule:
    """The weighted sum of the models: sum_i w_i W_i.

    Accumulated wide and rounded once, so that neither order nor number of models shows beyond the
    last bit of the result's dtype.

    Args:
        weights: one per model, summing to one.
        accumulate: dtype of the running sum: "float32", "float64", or "auto", which is float32 for models
            stored in 16 bits or fewer and float64 for others.

    Raises:
        InputError: another dtype to accumulate in.

    Examples:
        >>> import torch, isthmus
        >>> isthmus.combine([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], weights=[0.25, 0.75])
        {'w': tensor([0.7500, 0.7500])}
    """
    return Linear(weights, accumulate=accumulate)


@rule(
    "linear",
    weighing="coefficients",
    claims=("copies-give-the-model", "order-free", "streaming-equals-memory"),
    source="Wortsman et al., Model soups, arXiv:2203.05482; as mergekit's `linear`",
)
def linear(weights: Sequence[float], *, normalize: bool = True, accumulate: Accumulate = "auto") -> BlockRule:
    """The weighted sum of the models, divided by the sum of the weights: an average of any weights.

    Args:
        weights: one per model, of any size; one each where not given.
        normalize: divide by the sum of the weights. False leaves the sum as it is.
        accumulate: dtype of the running sum, as for `average`.

    Raises:
        InputError: the weights sum to zero.

    Examples:
        >>> import torch, isthmus
        >>> isthmus.combine([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], "linear", weights=[1.0, 3.0])
        {'w': tensor([0.7500, 0.7500])}
    """
    whole = sum(weights) if normalize else 1.0
    if abs(whole) < 1e-12:
        raise InputError("the models' weights are wrong", ["they sum to 0: nothing to divide by"])
    return Linear([w / whole for w in weights], accumulate=accumulate)


@rule(
    "passthrough",
    weighing="none",
    models=(1, 1),
    claims=("copies-give-the-model", "streaming-equals-memory"),
    source="mergekit's `passthrough`",
)
def passthrough(weights: Sequence[float], *, scale: float = 1.0) -> BlockRule:
    """One model as it is, or times a number.

    Args:
        weights: not used.
        scale: what every tensor is multiplied by.

    Examples:
        >>> import torch, isthmus
        >>> isthmus.combine([{"w": torch.ones(2)}], "passthrough", options={"scale": 0.5})
        {'w': tensor([0.5000, 0.5000])}
    """
    del weights
    return Linear([scale])
