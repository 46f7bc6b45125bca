"""Means of many models on a sphere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from isthmus.combine.blocks import BlockRule
from isthmus.combine.gram import FromGram, Per, lengths
from isthmus.combine.rules import rule
from isthmus.combine.task_vectors import refuse, wrong_choice
from isthmus.errors import InputError

_PER = ("tensor", "row", "filter", "column")


@rule(
    "karcher",
    takes=("base",),
    needs=("passes",),
    claims=("copies-give-the-model", "order-free", "streaming-equals-memory"),
    source="Karcher, Riemannian center of mass, CPAM 30, 1977; as mergekit's `karcher`",
)
def karcher(
    weights: Sequence[float], *, per: Per = "tensor", max_iter: int = 100, tol: float = 1e-7
) -> BlockRule:
    """The mean of directions on the sphere (the point that averages the arcs to the models), with the mean length.

    SLERP for any number of models: the gradient of the mean squared arc length is followed until it is
    zero. All of it happens in the span of the models, so one pass over them is enough.

    Args:
        weights: one per model, summing to one, none negative; uniform where not given.
        per: one sphere per "tensor", "row" of the last axis, "filter" or "column".
        max_iter: most steps, at least 1 (mergekit: 10).
        tol: stop where a step is shorter than this angle; > 0 (mergekit: 1e-5).

    Raises:
        InputError: options out of range, or a negative weight.

    Source:
        Karcher's definition 1.3 on the unit sphere. Models that are zero have no direction and count in the
        mean length only. mergekit runs ten steps in the dtype of the models.

    Examples:
        >>> import torch, isthmus
        >>> models = [{"w": torch.tensor(v)} for v in ([2.0, 0.0], [0.0, 2.0], [1.0, 1.0])]
        >>> isthmus.combine(models, "karcher")
        {'w': tensor([1.2761, 1.2761])}
    """
    refuse(
        "karcher",
        [
            *wrong_choice("per", per, _PER),
            *([] if max_iter >= 1 else [f"max_iter = {max_iter} is not at least 1"]),
            *([] if tol > 0 else [f"tol = {tol:g} is not above 0"]),
            *(
                []
                if min(weights) >= 0
                else [f"weights = {tuple(weights)}: an arc cannot count less than nothing"]
            ),
        ],
    )

    def factors(gram: Tensor) -> Tensor:
        return _karcher(gram, torch.tensor(weights, dtype=torch.float64), max_iter, tol)

    return FromGram(factors, per)


def _karcher(
    gram: Float64[Tensor, "*rows n n"], weights: Float64[Tensor, " n"], steps: int, tol: float
) -> Float64[Tensor, "*rows n"]:
    """The mean as factors of the models; every vector is held as its factors of the unit vectors."""
    length = lengths(gram)
    there = length > 0
    scale = torch.where(there, 1 / length.clamp_min(1e-300), 0.0)
    units = gram * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    share = torch.where(there, weights, 0.0)
    share = share / share.sum(-1, keepdim=True).clamp_min(1e-300)

    def norm(v: Tensor) -> Tensor:
        return ((v.unsqueeze(-2) @ units @ v.unsqueeze(-1)).squeeze(-1)).clamp_min(0).sqrt()

    first = torch.nn.functional.one_hot(there.to(torch.int8).argmax(-1), gram.shape[-1]).double()
    size = norm(share)
    mean = torch.where(size < tol, first, share / size.clamp_min(1e-300))
    for _ in range(steps):
        cos = (units @ mean.unsqueeze(-1)).squeeze(-1).clamp(-1, 1)
        angle = torch.acos(cos)
        ratio = torch.where(angle < tol, 1.0, angle / torch.sin(angle).clamp_min(1e-300))
        pull = share * torch.where(cos <= -1 + 1e-15, 0.0, ratio)  # the opposite point is pulled nowhere
        step = pull - (pull * cos).sum(-1, keepdim=True) * mean
        size = norm(step)
        if bool((size < tol).all()):
            break
        moved = torch.cos(size) * mean + torch.sin(size) * step / size.clamp_min(1e-300)
        mean = torch.where(size < tol, mean, moved / norm(moved).clamp_min(1e-300))
    return (length * weights).sum(-1, keepdim=True) * mean * scale


@rule(
    "multislerp",
    takes=("base",),
    needs=("passes",),
    weighing="coefficients",
    claims=("copies-give-the-model", "order-free", "streaming-equals-memory"),
    source="mergekit's `multislerp` (goddard.blog, Multi-SLERP)",
)
def multislerp(
    weights: Sequence[float], *, normalize: bool = True, per: Per = "tensor", eps: float = 1e-8
) -> BlockRule:
    """The normalised mean of the models' directions, with their mean length.

    mergekit's rule projects the directions onto the tangent space at their normalised mean, averages there
    and maps back. The average of those projections is zero, whatever the models, so that what is
    left is the normalised mean itself; `karcher` is the mean that the construction aims at.

    Args:
        weights: one per model, of any size; one each where not given.
        normalize: divide the weights by their sum (mergekit's `normalize_weights`).
        per: one sphere per "tensor", "row" of the last axis, "filter" or "column".
        eps: directions whose mean is shorter than this have none: two models are then averaged, more are
            an error.

    Raises:
        InputError: options out of range, weights that sum to zero, or directions that cancel.

    Examples:
        >>> import torch, isthmus
        >>> models = [{"w": torch.tensor(v)} for v in ([2.0, 0.0], [0.0, 4.0])]
        >>> isthmus.combine(models, "multislerp")
        {'w': tensor([2.1213, 2.1213])}
    """
    refuse(
        "multislerp",
        [
            *wrong_choice("per", per, _PER),
            *([] if eps > 0 else [f"eps = {eps:g} is not above 0"]),
            *(["the weights sum to 0"] if normalize and abs(sum(weights)) < 1e-12 else []),
        ],
    )
    share = torch.tensor(weights, dtype=torch.float64)
    share = share / share.sum() if normalize else share

    def factors(gram: Tensor) -> Tensor:
        length = lengths(gram)
        unit = share / (length + eps)  # factors of the mean direction
        size = (unit.unsqueeze(-2) @ gram @ unit.unsqueeze(-1)).squeeze(-1).clamp_min(0).sqrt()
        lost = size < eps
        everything_zero = (length <= 0).all(-1, keepdim=True)
        if len(weights) > 2 and bool((lost & ~everything_zero).any()):
            raise InputError(
                "multislerp: the models' directions cancel, so their mean has none", hint="change the weights"
            )
        mean = (length * share).sum(-1, keepdim=True) * unit / size.clamp_min(1e-300)
        return torch.where(lost, share, mean)

    return FromGram(factors, per)
