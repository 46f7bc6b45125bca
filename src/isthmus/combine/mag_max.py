"""MagMax: of each element, the task vector that moved it furthest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus.combine.blocks import Block, BlockRule, arithmetic, scratch, task_vector, widened
from isthmus.combine.rules import rule


class _Furthest(BlockRule):
    def __init__(self, weights: Sequence[float], lam: float):
        self._weights = tuple(weights)
        self._lam = lam

    def write(self, block: Block) -> Tensor:
        assert block.base is not None
        dtype = arithmetic(block)
        base = widened(block.base, dtype, "base")
        furthest = scratch("merged", base, dtype).zero_()
        for weight, model in zip(self._weights, block.models, strict=True):
            vector = task_vector(model, base, dtype, "vector").mul_(weight)
            size, most = vector.abs(), furthest.abs()
            # Equal and opposite: the positive one, whatever the order.
            taken = (size > most) | ((size == most) & (vector > furthest))
            furthest.copy_(torch.where(taken, vector, furthest))
        return furthest.mul_(self._lam).add_(base)


@rule(
    "mag-max",
    needs=("base",),
    weighing="coefficients",
    claims=("order-free", "streaming-equals-memory"),
    source="Marczak et al., MagMax, arXiv:2407.06322, equation 2",
)
def mag_max(weights: Sequence[float], *, lam: float = 1.0) -> BlockRule:
    """The base plus, of each element, the task vector of largest magnitude.

    Args:
        weights: one per model, of any size; one each where not given. They scale the task vectors before
            they are compared.
        lam: what the merged task vector is multiplied by.

    Source:
        Equation 2 with weights of one. Of two elements that are equal and opposite the positive one is taken, so
        that the order of the models does not show.

    Examples:
        >>> import torch, isthmus
        >>> base, models = {"w": torch.zeros(2)}, [{"w": torch.tensor(v)} for v in ([1.0, -5.0], [2.0, 4.0])]
        >>> isthmus.combine(models, "mag-max", base=base)
        {'w': tensor([ 2., -5.])}
    """
    return _Furthest(weights, lam)
