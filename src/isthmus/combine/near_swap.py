"""NearSwap: take over from another model what is already near."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus.combine.blocks import Block, BlockRule, arithmetic, scratch, task_vector, widened
from isthmus.combine.rules import rule
from isthmus.combine.task_vectors import refuse


class _Near(BlockRule):
    def __init__(self, t: float):
        self._t = t

    def write(self, block: Block) -> Tensor:
        assert block.base is not None
        dtype = arithmetic(block)
        base = widened(block.base, dtype, "base")
        vector = task_vector(block.models[0], base, dtype, "vector")
        share = torch.abs(vector, out=scratch("share", vector, dtype))
        share.clamp_min_(1e-6).reciprocal_().mul_(self._t).clamp_(0, 1)
        return vector.mul_(share).add_(base)


@rule(
    "near-swap",
    needs=("base",),
    weighing="none",
    models=(1, 1),
    claims=("streaming-equals-memory",),
    source="alchemonaut, QuartetAnemoi-70B-t0.0001; as mergekit's `nearswap`",
)
def near_swap(weights: Sequence[float], *, t: float = 1e-4) -> BlockRule:
    """The base, moved towards the model by at most t per element: all the way where they are nearer than t.

    Args:
        weights: not used.
        t: how far an element moves at most, >= 0; by default as in the first model made so.

    Raises:
        InputError: t is negative or not finite.

    Source:
        base + min(t / max(|W - base|, 1e-6), 1) (W - base), as mergekit's `nearswap`.

    Examples:
        >>> import torch, isthmus
        >>> base, model = {"w": torch.zeros(3)}, {"w": torch.tensor([0.5, 4.0, -2.0])}
        >>> isthmus.combine([model], "near-swap", base=base, options={"t": 1.0})
        {'w': tensor([ 0.5000,  1.0000, -1.0000])}
    """
    del weights
    refuse("near-swap", [] if 0 <= t < float("inf") else [f"t = {t:g} is not a number of at least 0"])
    return _Near(t)
