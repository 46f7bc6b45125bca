"""Model Stock: how far from the base to the average, by the angle between the models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from isthmus.combine.blocks import BlockRule
from isthmus.combine.gram import FromGram, lengths
from isthmus.combine.rules import rule
from isthmus.combine.task_vectors import refuse, wrong_choice


@rule(
    "model-stock",
    needs=("base", "passes"),
    weighing="none",
    models=(2, None),
    claims=("copies-give-the-model", "order-free", "streaming-equals-memory"),
    source="Jang et al., Model Stock, arXiv:2403.19522, equation 7",
)
def model_stock(
    weights: Sequence[float],
    *,
    per: Literal["tensor", "row", "filter"] = "tensor",
    convention: Literal["paper", "mergekit"] = "paper",
) -> BlockRule:
    """Between base and average: base + r (mean - base), with r = n cos / (1 + (n - 1) cos).

    cos is the mean cosine between the task vectors. Models that agree are averaged; the less they do, the
    closer the result stays to the base.

    Args:
        weights: not used.
        per: one angle per "tensor", "row" of the last axis (mergekit's `filter_wise`) or "filter" (all but
            the first axis).
        convention: the mean cosine is brought into [0, 1] ("paper", where angles are acute), or used as
            it is, with products of norms of at least 1e-6 ("mergekit", which makes the result of task vectors
            shorter than 1e-3 stay nearer to the base than their angle says).

    Raises:
        InputError: options out of range.

    Source:
        Equation 7. The paper does not say how more than two models' angles are put together; their cosines
        are averaged, as in mergekit. Task vectors of zero have no angle: then r is 0.

    Examples:
        >>> import torch, isthmus
        >>> base, models = {"w": torch.zeros(2)}, [{"w": torch.tensor(v)} for v in ([4.0, 3.0], [3.0, 4.0])]
        >>> isthmus.combine(models, "model-stock", base=base)
        {'w': tensor([3.4286, 3.4286])}
    """
    refuse(
        "model-stock",
        [
            *wrong_choice("per", per, ("tensor", "row", "filter")),
            *wrong_choice("convention", convention, ("paper", "mergekit")),
        ],
    )
    count = len(weights)

    def factors(gram: Tensor) -> Tensor:
        length = lengths(gram)
        cosines: list[Tensor] = []
        for i, j in combinations(range(count), 2):
            product = length[..., i] * length[..., j]
            least = 1e-6 if convention == "mergekit" else 1e-300
            cosines.append((gram[..., i, j] / product.clamp_min(least)).clamp(-1, 1))
        cos = torch.stack(cosines).mean(0)
        if convention == "paper":
            cos = cos.clamp_min(0)
        below = 1 + (count - 1) * cos
        ratio = torch.where(below.abs() < 1e-6, 0.0, count * cos / below)
        return (ratio / count).unsqueeze(-1).expand(*ratio.shape, count)

    return FromGram(factors, per)
