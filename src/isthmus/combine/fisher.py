"""Fisher merging: each element by how much each model's predictions depend on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from isthmus.combine.average import Linear
from isthmus.combine.blocks import Block, BlockRule, Scope, Statistics, arithmetic, scratch, total, widened
from isthmus.combine.rules import rule
from isthmus.combine.task_vectors import refuse
from isthmus.errors import InputError

_SOURCE = "Matena and Raffel, Merging models with Fisher-weighted averaging, arXiv:2111.09832"


class _Fisher(BlockRule):
    """sum_i t_i F_i W_i / sum_i t_i F_i.

    Args:
        weights: t_i.
        floor: the least Fisher information.
        favor: the floor is for the first model only.
        normalize: divide each model's information by its norm over all tensors.
    """

    statistics: Statistics = "elements"
    scope: Scope = "model"

    def __init__(self, weights: Sequence[float], floor: float, favor: bool, normalize: bool):
        self._weights = tuple(weights)
        self._floor = floor
        self._favor = favor
        self._plain = Linear([w / sum(weights) for w in weights])
        self._scales = [1.0] * len(weights)
        self.passes = 1 if normalize else 0

    def measure(self, index: int, block: Block) -> object:
        del index  # there is one pass only
        return [total(f.double().square_()) for f in self._information(block)]

    def reduce(self, index: int, partials: Iterable[object]) -> None:
        del index
        squares = [0.0] * len(self._weights)
        for partial in partials:
            if found := cast("list[float]", partial):
                squares = [a + b for a, b in zip(squares, found, strict=True)]
        self._scales = [1 / math.sqrt(s) if s > 0 else 1.0 for s in squares]

    def write(self, block: Block) -> Tensor:
        if not block.statistics:
            return self._plain.write(block)
        dtype = arithmetic(block, torch.float64)
        above = scratch("merged", block.models[0], dtype).zero_()
        below = scratch("parts", block.models[0], dtype).zero_()
        mean = scratch("mean", block.models[0], dtype).zero_()
        information = self._information(block)
        for weight, scale, known, model in zip(
            self._weights, self._scales, information, block.models, strict=True
        ):
            part = known.to(dtype).mul_(weight * scale)
            values = widened(model, dtype, "term")
            above.addcmul_(part, values)
            below.add_(part)
            mean.add_(values, alpha=weight / sum(self._weights))
        # No information in any model, and no floor: the average.
        none = below == 0
        return torch.where(none, mean, above.div_(below.masked_fill_(none, 1.0)))

    def _information(self, block: Block) -> list[Tensor]:
        found: list[Tensor] = []
        for i, known in enumerate(block.statistics):
            if bool((known < 0).any()):
                raise InputError(f"fisher: the information of {block.place.key or 'a tensor'} is negative")
            lowest = self._floor if i == 0 or not self._favor else 0.0
            found.append(known.double().clamp_min(lowest))
        return found


@rule(
    "fisher",
    needs=("statistics", "passes"),
    claims=("copies-give-the-model", "streaming-equals-memory"),
    costs="a gradient per example where no statistics are given",
    source=f"{_SOURCE}, equation 5",
)
def fisher(
    weights: Sequence[float], *, floor: float = 1e-6, favor_target: bool = True, normalize: bool = True
) -> BlockRule:
    """The average of each element, weighted by the models' Fisher information: sum t_i F_i W_i / sum t_i F_i.

    Args:
        weights: the models' t_i, summing to one, none negative; uniform where not given.
        floor: the least information of an element, >= 0.
        favor_target: the floor is for the first model only, so that what no model knows about is the first
            model's; otherwise for all, and what no model knows about is averaged.
        normalize: divide each model's information by its norm over all tensors that have one, after the floor.

    Raises:
        InputError: options out of range, a negative weight, or negative information.

    Source:
        Equation 5, with floor, target and normalisation as in the authors' code. `statistics` holds the diagonal
        of each model's Fisher matrix: of the expected squared gradient of log p, per example and then
        averaged, not of a batch's mean gradient. Tensors without it are averaged.

    Examples:
        >>> import torch, isthmus
        >>> models = [{"w": torch.zeros(2)}, {"w": torch.ones(2)}]
        >>> known = [{"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([1.0, 1.0])}]
        >>> isthmus.combine(models, "fisher", statistics=known, options={"normalize": False})
        {'w': tensor([0.5000, 0.2500])}
    """
    refuse(
        "fisher",
        [
            *([] if floor >= 0 else [f"floor = {floor:g} is not at least 0"]),
            *([] if min(weights) >= 0 else ["a negative weight: information cannot be subtracted"]),
        ],
    )
    return _Fisher(weights, floor, favor_target, normalize)


@rule(
    "isotropic",
    claims=("copies-give-the-model", "order-free", "streaming-equals-memory"),
    source=f"{_SOURCE}, section 2",
)
def isotropic(weights: Sequence[float]) -> BlockRule:
    """Fisher merging with the same information everywhere: the weighted average.

    Args:
        weights: one per model, summing to one.

    Examples:
        >>> import torch, isthmus
        >>> isthmus.combine([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], "isotropic")
        {'w': tensor([0.5000, 0.5000])}
    """
    return Linear(weights)
