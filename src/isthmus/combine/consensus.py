"""Consensus merging: keep what several tasks need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus.combine.blocks import Block, BlockRule, arithmetic, per_model, scratch, task_vector, widened
from isthmus.combine.rules import rule
from isthmus.combine.task_vectors import refuse

_SOURCE = "Wang et al., Localizing task information, arXiv:2405.07813"


class _Masked(BlockRule):
    """The multi-task vector where its masks allow.

    Args:
        weights: one per model.
        strictness: one per model: an element is needed by a task if its own task vector is larger than this
            times its distance from the multi-task vector.
        least: keep elements that so many tasks need; with `task`, those that this one needs.
        lam: what the result is multiplied by.
        task: index of the one task.
    """

    def __init__(
        self,
        weights: Sequence[float],
        strictness: Sequence[float],
        least: int,
        lam: float,
        task: int | None = None,
    ):
        self._weights = tuple(weights)
        self._strictness = tuple(strictness)
        self._least = least
        self._lam = lam
        self._task = task

    def write(self, block: Block) -> Tensor:
        assert block.base is not None
        dtype = arithmetic(block)
        base = widened(block.base, dtype, "base")
        vectors = [task_vector(m, base, dtype, f"vector {i}") for i, m in enumerate(block.models)]
        whole = scratch("merged", base, dtype).zero_()
        for weight, vector in zip(self._weights, vectors, strict=True):
            whole.add_(vector, alpha=weight)
        needed = scratch("needed", base, dtype).zero_()
        for i, (vector, strict) in enumerate(zip(vectors, self._strictness, strict=True)):
            if self._task is None or i == self._task:
                needed.add_(vector.abs() > (whole - vector).abs_().mul_(strict))
        return whole.mul_(torch.ge(needed, self._least, out=needed)).mul_(self._lam).add_(base)


@rule(
    "consensus",
    needs=("base",),
    weighing="coefficients",
    claims=("order-free", "streaming-equals-memory"),
    source=f"{_SOURCE}, equations 4 and 6",
)
def consensus(
    weights: Sequence[float],
    *,
    strictness: float | Sequence[float] = 0.4,
    least: int = 2,
    lam: float = 1.0,
) -> BlockRule:
    """The summed task vectors, without the elements that too few tasks need.

    Task i needs an element if |tau_i| > strictness |tau - tau_i|, where tau is the sum: its TALL mask.

    Args:
        weights: one per model, of any size; one each where not given.
        strictness: the papers' lambda of the masks, >= 0 (they choose 0.2 to 0.6 per task on validation
            data); one number, or one per model.
        least: how many tasks must need an element, from 1 to the number of models.
        lam: what the merged task vector is multiplied by; chosen on validation data.

    Raises:
        InputError: options out of range, all of them listed.

    Examples:
        >>> import torch, isthmus
        >>> base, models = {"w": torch.zeros(2)}, [{"w": torch.tensor(v)} for v in ([1.0, 0.1], [1.0, 3.0])]
        >>> isthmus.combine(models, "consensus", base=base)
        {'w': tensor([2., 0.])}
    """
    values = per_model(strictness, len(weights), "strictness")
    refuse(
        "consensus",
        [
            *(f"strictness = {v:g} is not at least 0" for v in dict.fromkeys(values) if not v >= 0),
            *([] if 1 <= least <= len(weights) else [f"least = {least} of {len(weights)} models"]),
        ],
    )
    return _Masked(weights, values, least, lam)


@rule(
    "tall-mask",
    needs=("base",),
    weighing="coefficients",
    claims=("streaming-equals-memory",),
    source=f"{_SOURCE}, equation 4",
)
def tall_mask(
    weights: Sequence[float], *, task: int = 0, strictness: float | Sequence[float] = 0.4, lam: float = 1.0
) -> BlockRule:
    """One task's model read back from the sum: the summed task vectors where this task needs them.

    Args:
        weights: one per model, of any size; one each where not given.
        task: index of the model, from 0.
        strictness: as for `consensus`.
        lam: what the masked task vector is multiplied by.

    Raises:
        InputError: options out of range, all of them listed.

    Examples:
        >>> import torch, isthmus
        >>> base, models = {"w": torch.zeros(2)}, [{"w": torch.tensor(v)} for v in ([1.0, 0.1], [1.0, 3.0])]
        >>> isthmus.combine(models, "tall-mask", base=base, options={"task": 1})
        {'w': tensor([2.0000, 3.1000])}
    """
    values = per_model(strictness, len(weights), "strictness")
    refuse(
        "tall-mask",
        [
            *(f"strictness = {v:g} is not at least 0" for v in dict.fromkeys(values) if not v >= 0),
            *([] if 0 <= task < len(weights) else [f"task = {task} of {len(weights)} models, from 0"]),
        ],
    )
    return _Masked(weights, values, 1, lam, task)
