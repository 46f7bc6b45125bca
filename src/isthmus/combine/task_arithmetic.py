"""Task arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.combine.average import Accumulate, Linear
from isthmus.combine.blocks import BlockRule
from isthmus.combine.rules import rule
from isthmus.errors import InputError


@rule(
    "task-arithmetic",
    needs=("base",),
    weighing="coefficients",
    claims=("order-free", "streaming-equals-memory"),
    source="Ilharco et al., Editing models with task arithmetic, arXiv:2212.04089, section 2",
)
def task_arithmetic(
    weights: Sequence[float], *, lam: float = 1.0, normalize: bool = False, accumulate: Accumulate = "auto"
) -> BlockRule:
    """The base plus a multiple of the summed task vectors: base + lam * sum_i w_i (W_i - base).

    Args:
        weights: one per model, of any size and sign (a negative one forgets a task); one each where not
            given.
        lam: what the sum is multiplied by. The paper tunes one number for all tasks on validation data
            (0.3 for eight of them); mergekit calls it `lambda`.
        normalize: divide the sum by the sum of the weights.
        accumulate: dtype of the running sum, as for `average`.

    Raises:
        InputError: weights that sum to zero are to be normalised.

    Examples:
        >>> import torch, isthmus
        >>> base, models = {"w": torch.ones(2)}, [{"w": torch.zeros(2)}, {"w": torch.full((2,), 3.0)}]
        >>> isthmus.combine(models, "task-arithmetic", base=base, options={"lam": 0.5})
        {'w': tensor([1.5000, 1.5000])}
    """
    whole = sum(weights) if normalize else 1.0
    if abs(whole) < 1e-8:
        raise InputError("the models' weights are wrong", ["they sum to 0: nothing to divide by"])
    factors = [lam * w / whole for w in weights]
    return Linear(factors, base=1.0 - sum(factors), accumulate=accumulate)
