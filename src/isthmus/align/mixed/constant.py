"""Units that do not vary, and so correlate with none: which of two models' belong together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from isthmus.align.mixed.joint import Joint

#: How much weights count, beside the values that units have.
HINT = 1e-6

TINY = torch.finfo(torch.float64).tiny


def constants_paired(
    statistics: Joint, rows: Callable[[int], Float[Tensor, "units features"]], reference: int
) -> Float[Tensor, "units units"]:
    """Correlations, with one between constant units of different models that belong together.

    Such units (dead ReLUs) answer alike up to a number, so that one may stand for the other. Each finds at most one in
    every other model: that with its value, and of several the one with its weights. With all others they correlate 0.

    Args:
        statistics: of one space in all models.
        rows: index of a model -> its units as rows of numbers in common coordinates; asked for only where constant
            units of several models meet.
        reference: the model whose constant units the others' are assigned to first.
    """
    similarity = statistics.correlation
    order = sorted(range(len(statistics.sizes)), key=lambda index: index != reference)
    constant = statistics.covariance.diagonal() <= 0
    held = {index: constant[statistics.rows(index)].nonzero()[:, 0] for index in order}
    if sum(len(units) > 0 for units in held.values()) < 2:
        return similarity
    # Each kind of constant unit so far: its members' places, and what the first of them is.
    kinds: list[list[int]] = []
    values = weights = torch.zeros(0, dtype=torch.float64)
    for index in (index for index in order if len(held[index])):
        units = held[index] + statistics.rows(index).start
        own, features = statistics.mean[units].double(), rows(index)[held[index]].double().cpu()
        new = list(range(len(units)))
        if kinds:
            largest = torch.cat([own, values]).abs().max()
            cost = (own[:, None] - values).abs() / largest.clamp(min=TINY) + HINT * _distances(
                features, weights
            )
            for unit, kind in zip(*linear_sum_assignment(cost.numpy()), strict=True):
                similarity[kinds[kind], units[unit]] = similarity[units[unit], kinds[kind]] = 1.0
                kinds[kind].append(int(units[unit]))
                new.remove(unit)
            values, weights = torch.cat([values, own[new]]), torch.cat([weights, features[new]])
        else:
            values, weights = own, features
        kinds += [[int(units[unit])] for unit in new]
    return similarity


def _distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """Between rows, beside the largest; exact where rows are equal."""
    found = torch.cdist(ours, theirs, compute_mode="donot_use_mm_for_euclid_dist")
    return found / found.max().clamp(min=TINY)
