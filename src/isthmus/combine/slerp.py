"""Spherical interpolation of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from isthmus.combine.blocks import BlockRule
from isthmus.combine.gram import FromGram, Per, cosine
from isthmus.combine.rules import rule
from isthmus.combine.task_vectors import refuse, wrong_choice

_PER = ("tensor", "row", "filter", "column")


def _great_circle(
    t: float, gram: Float64[Tensor, "*rows 2 2"], threshold: float
) -> Float64[Tensor, "*rows 2"]:
    """sin((1-t) w) / sin w and sin(t w) / sin w; 1 - t and t where the angle is (almost) 0 or pi, or undefined."""
    cos = cosine(gram, 0, 1)
    zero = (gram[..., 0, 0] <= 0) | (gram[..., 1, 1] <= 0)
    straight = zero | (cos.abs() > threshold)
    angle = torch.acos(torch.where(straight, 0.0, cos))
    sin = torch.sin(angle)
    found = torch.stack([torch.sin((1 - t) * angle) / sin, torch.sin(t * angle) / sin], dim=-1)
    line = torch.tensor([1 - t, t], dtype=torch.float64)
    return torch.where(straight.unsqueeze(-1), line, found)


@rule(
    "slerp",
    takes=("base",),
    needs=("passes",),
    models=(2, 2),
    claims=("copies-give-the-model", "order-free", "streaming-equals-memory"),
    source="Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985, section 3.3",
)
def slerp(
    weights: Sequence[float], *, t: float | None = None, per: Per = "tensor", threshold: float = 0.9995
) -> BlockRule:
    """Two models along the great circle between them: (sin((1-t)w) W_1 + sin(tw) W_2) / sin w.

    w is the angle between them. Models of one initialisation are almost parallel, and then this is the
    average; with a base it is the task vectors that are interpolated, which is where it says something.

    Args:
        weights: 1 - t and t.
        t: how far to go from the first model to the second; in place of weights. Below 0 or above 1
            extrapolates.
        per: one angle per "tensor", "row" of the last axis, "filter" (all but the first axis) or "column"
            (along the first axis).
        threshold: where |cos w| is above it, the straight line is taken, in (0, 1].

    Raises:
        InputError: options out of range.

    Source:
        Section 3.3 for unit vectors; here, as in mergekit, lengths are not normalised. Where a tensor is zero
        there is no angle and the straight line is taken (mergekit takes a right angle).

    Examples:
        >>> import torch, isthmus
        >>> a, b = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
        >>> isthmus.combine([a, b], "slerp")
        {'w': tensor([0.7071, 0.7071])}
    """
    refuse(
        "slerp",
        [
            *wrong_choice("per", per, _PER),
            *([] if 0 < threshold <= 1 else [f"threshold = {threshold:g} is not in (0, 1]"]),
            *([] if t is None or math.isfinite(t) else [f"t = {t} is not finite"]),
        ],
    )
    way = weights[1] if t is None else t
    return FromGram(lambda gram: _great_circle(way, gram, threshold), per)


@rule(
    "nuslerp",
    takes=("base",),
    needs=("passes",),
    weighing="coefficients",
    models=(2, 2),
    claims=("copies-give-the-model", "order-free", "streaming-equals-memory"),
    source="mergekit's `nuslerp`",
)
def nuslerp(weights: Sequence[float], *, per: Per = "tensor") -> BlockRule:
    """SLERP of two models with t from any weights, straight only where they are parallel.

    Args:
        weights: of the two models, of any size: t = w_2 / (w_1 + w_2), one half where they sum to zero.
        per: one angle per "tensor" (mergekit's `nuslerp_flatten`), "row" of the last axis, "filter" or "column"
            (along the first axis: what mergekit calls `nuslerp_row_wise`).

    Raises:
        InputError: options out of range.

    Examples:
        >>> import torch, isthmus
        >>> a, b = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
        >>> isthmus.combine([a, b], "nuslerp", weights=[3.0, 3.0])
        {'w': tensor([0.7071, 0.7071])}
    """
    refuse("nuslerp", wrong_choice("per", per, _PER))
    whole = sum(weights)
    way = 0.5 if abs(whole) < 1e-6 else weights[1] / whole
    # Closer than this, sines of angles and angles are the same in float64, and 0/0 is near.
    return FromGram(lambda gram: _great_circle(way, gram, 1 - 1e-14), per)
