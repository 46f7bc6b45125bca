"""SCE: select elements that vary, weigh models by their changes, erase minority signs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from isthmus.combine.blocks import Block, BlockRule, Place, arithmetic, scratch, task_vector, total, widened
from isthmus.combine.order_statistics import OrderStatistics, thinned
from isthmus.combine.rules import rule
from isthmus.combine.task_vectors import refuse, wrong_choice
from isthmus.combine.trimming import unit_interval


class _Sce(BlockRule):
    def __init__(self, models: int, density: float, floor: float):
        self._models = models
        self._density = density
        self._floor = floor
        self._varying = 0
        self._order = OrderStatistics(lambda count: [count - int(self._varying * density)])
        self._select = density < 1
        self._shares = [1.0 / models] * models
        self.passes = 1 + (OrderStatistics.passes if self._select else 0)

    def skips(self, index: int) -> bool:
        return index < self.passes - 1 and self._order.skips(index)

    def measure(self, index: int, block: Block) -> object:
        vectors = self._vectors(block)
        if index < self.passes - 1:
            spread = _variance(vectors)
            varying = int(torch.count_nonzero(spread)) if index == 0 else 0
            seen = thinned(spread, block.place) if index == 0 else spread
            return block.place, varying, self._order.measure(index, seen)
        self._choose(vectors, block.place)
        return vectors[0].numel(), [total(v.square_()) for v in vectors]

    def reduce(self, index: int, partials: Iterable[object]) -> None:
        if index < self.passes - 1:
            for partial in partials:
                place, varying, found = cast("tuple[Place, int, object]", partial)
                self._varying += varying
                self._order.add(index, found, place)
            self._order.close(index)
            return
        sums, size = [0.0] * self._models, 0
        for partial in partials:
            count, squares = cast("tuple[int, list[float]]", partial)
            size += count
            sums = [a + b for a, b in zip(sums, squares, strict=True)]
        whole = sum(sums)
        if whole > 0 and whole >= self._floor * size:
            self._shares = [s / whole for s in sums]

    def write(self, block: Block) -> Tensor:
        assert block.base is not None
        vectors = self._vectors(block)
        self._choose(vectors, block.place)
        dtype = vectors[0].dtype
        vote = scratch("vote", vectors[0], dtype).copy_(vectors[0])
        for vector in vectors[1:]:
            vote.add_(vector)
        sign = torch.ge(vote, 0, out=scratch("sign", vote, dtype)).mul_(2).sub_(1)
        agrees, merged = vote, scratch("merged", vote, dtype).zero_()
        parts = scratch("parts", vote, dtype).zero_()
        for share, vector in zip(self._shares, vectors, strict=True):
            torch.mul(vector, sign, out=agrees)
            torch.gt(agrees, 0, out=agrees)
            merged.addcmul_(vector, agrees, value=share)
            parts.add_(agrees, alpha=share)
        merged.div_(parts.clamp_min_(1e-6))
        return merged.add_(widened(block.base, dtype, "base"))

    def _vectors(self, block: Block) -> list[Tensor]:
        assert block.base is not None
        dtype = arithmetic(block)
        base = widened(block.base, dtype, "base")
        return [task_vector(m, base, dtype, f"vector {i}") for i, m in enumerate(block.models)]

    def _choose(self, vectors: Sequence[Tensor], place: Place) -> None:
        """Set to zero, in place, what is not selected."""
        if not self._select:
            return
        (least,) = self._order.boundaries
        wanted = int(self._varying * self._density)
        spread = _variance(vectors).reshape(-1).numpy(force=True)
        kept = spread > least.value
        quota = wanted - (self._order.count - least.below - least.equal) - least.equals(place)[0]
        if wanted and quota > 0:
            kept[np.flatnonzero(spread == spread.dtype.type(least.value))[:quota]] = True
        elif not wanted:
            kept[:] = False
        mask = torch.from_numpy(kept).to(vectors[0].device).view(vectors[0].shape)
        for vector in vectors:
            vector.mul_(mask)


def _variance(vectors: Sequence[Tensor]) -> Tensor:
    """Of each element, over the models (population)."""
    mean = scratch("mean", vectors[0], vectors[0].dtype).copy_(vectors[0])
    for vector in vectors[1:]:
        mean.add_(vector)
    mean.div_(len(vectors))
    spread = scratch("spread", mean, mean.dtype).zero_()
    away = scratch("away", mean, mean.dtype)
    for vector in vectors:
        torch.sub(vector, mean, out=away)
        spread.addcmul_(away, away)
    return spread.div_(len(vectors))


@rule(
    "sce",
    needs=("base", "passes"),
    weighing="none",
    claims=("order-free", "streaming-equals-memory"),
    source="Wan et al., FuseChat, arXiv:2408.07990, section 3.3",
)
def sce(
    weights: Sequence[float],
    *,
    density: float = 1.0,
    convention: Literal["paper", "mergekit"] = "paper",
) -> BlockRule:
    """Select the elements that differ most between models, weigh models by how far they moved, elect signs.

    Args:
        weights: not used: a model's weight in a tensor is its share of the squared task vectors.
        density: of the elements whose variance over the models is not zero, the part that is kept, in (0, 1]
            (mergekit's `select_topk`).
        convention: "mergekit" weighs models equally in tensors whose task vectors have mean squares that sum to
            less than 1e-6 (which those of most fine-tuned models do), "paper" only where they are zero.

    Raises:
        InputError: options out of range.

    Source:
        Section 3.3: select, calculate, erase. Of elements of equal variance the first are kept.

    Examples:
        >>> import torch, isthmus
        >>> base, models = {"w": torch.zeros(2)}, [{"w": torch.tensor(v)} for v in ([1.0, 1.0], [3.0, -5.0])]
        >>> isthmus.combine(models, "sce", base=base)
        {'w': tensor([ 2.8889, -5.0000])}
    """
    refuse(
        "sce",
        [
            *unit_interval("density", [density]),
            *wrong_choice("convention", convention, ("paper", "mergekit")),
        ],
    )
    return _Sce(len(weights), density, 1e-6 if convention == "mergekit" else 0.0)
