"""Arcee Fusion: take over from another model what matters most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from isthmus.combine.blocks import Block, BlockRule, Layout, Place, arithmetic, task_vector, widened
from isthmus.combine.order_statistics import OrderStatistics, thinned
from isthmus.combine.rules import rule


class _Important(BlockRule):
    layout: Layout = "rows"
    passes = OrderStatistics.passes

    def __init__(self) -> None:
        self._quartiles = OrderStatistics(lambda n: [int(q * (n - 1)) for q in (0.25, 0.5, 0.75)])
        self._threshold = 0.0

    def skips(self, index: int) -> bool:
        return self._quartiles.skips(index)

    def measure(self, index: int, block: Block) -> object:
        found = _importance(block)
        seen = thinned(found, block.place) if index == 0 else found
        return block.place, self._quartiles.measure(index, seen)

    def reduce(self, index: int, partials: Iterable[object]) -> None:
        for partial in partials:
            place, found = cast("tuple[Place, object]", partial)
            self._quartiles.add(index, found, place)
        self._quartiles.close(index)
        if self._quartiles.boundaries:
            low, median, high = (b.value for b in self._quartiles.boundaries)
            self._threshold = median + 1.5 * (high - low)

    def write(self, block: Block) -> Tensor:
        assert block.base is not None
        dtype = arithmetic(block)
        base = widened(block.base, dtype, "base")
        vector = task_vector(block.models[0], base, dtype, "vector")
        return vector.mul_(_importance(block) >= self._threshold).add_(base)


def _importance(block: Block) -> Tensor:
    """|W - base| times the divergence of the rows' softmax; never negative, nor minus zero."""
    assert block.base is not None
    dtype = arithmetic(block)
    model, base = block.models[0].to(dtype), block.base.to(dtype)
    p, q = (torch.softmax(t, dim=-1) + 1e-8 for t in (model, base))
    divergence = (p * torch.log(p / q)).sum(-1, keepdim=True)
    return ((model - base).abs() * divergence.clamp_min(0)).abs()


@rule(
    "arcee-fusion",
    needs=("base", "passes"),
    weighing="none",
    models=(1, 1),
    claims=("streaming-equals-memory",),
    source="Arcee AI; as mergekit's `arcee_fusion`",
)
def arcee_fusion(weights: Sequence[float]) -> BlockRule:
    """The base, with the elements of the model that matter most: above the median by 1.5 interquartile ranges.

    An element's importance is its distance from the base times the Kullback-Leibler divergence between the
    softmax of its row and the base's row.

    Args:
        weights: not used.

    Source:
        As mergekit's `arcee_fusion`, with exact quartiles; mergekit estimates those of tensors with more than a
        million elements from a random sample. A divergence that rounds below zero counts as zero.

    Examples:
        >>> import torch, isthmus
        >>> base, model = {"w": torch.zeros(1, 5)}, {"w": torch.tensor([[0.1, 0.1, 0.1, 0.2, 3.0]])}
        >>> isthmus.combine([model], "arcee-fusion", base=base)
        {'w': tensor([[0., 0., 0., 0., 3.]])}
    """
    del weights
    return _Important()
