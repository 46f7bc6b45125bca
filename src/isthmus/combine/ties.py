"""TIES: trim, elect signs, mean of what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from isthmus.combine.blocks import BlockRule, Scope, per_model
from isthmus.combine.rules import rule
from isthmus.combine.task_vectors import (
    Convention,
    Divide,
    Election,
    TaskVectors,
    chosen,
    refuse,
    wrong_choice,
)
from isthmus.combine.trimming import Equals, Largest, unit_interval

_CONVENTIONS = {
    "paper": {
        "scope": "model",
        "equals": "rank-below",
        "weighted_vote": True,
        "tie": "majority",
        "divide": "weights",
        "rescale": "none",
        "lam": 1.0,
    },
    "mergekit": {
        "scope": "tensor",
        "equals": "first",
        "weighted_vote": True,
        "tie": "plus",
        "divide": "weights",
        "rescale": "none",
        "lam": 1.0,
    },
    "peft": {
        "scope": "tensor",
        "equals": "first",
        "weighted_vote": False,
        "tie": "plus",
        "divide": "count",
        "rescale": "none",
        "lam": 1.0,
    },
    "fusion-bench": {
        "scope": "model",
        "equals": "rank-below",
        "weighted_vote": True,
        "tie": "majority",
        "divide": "none",
        "rescale": "none",
        "lam": 0.3,
    },
}


@rule(
    "ties",
    needs=("base", "passes"),
    weighing="coefficients",
    claims=("order-free", "streaming-equals-memory"),
    source="Yadav et al., TIES-Merging, arXiv:2306.01708, algorithm 1",
)
def ties(
    weights: Sequence[float],
    *,
    density: float | Sequence[float] = 0.2,
    convention: Convention = "paper",
    scope: Scope | None = None,
    equals: Equals | None = None,
    vote: Literal["sum", "count"] = "sum",
    weighted_vote: bool | None = None,
    tie: Literal["plus", "majority"] | None = None,
    divide: Divide | None = None,
    rescale: Literal["none", "norm"] | None = None,
    lam: float | None = None,
) -> BlockRule:
    """Task vectors trimmed to their largest elements; of each element, the mean of those with the elected sign.

    Args:
        weights: one per model, of any size; one each where not given.
        density: the part of each task vector that is kept, in (0, 1]; one number, or one per model.
        convention: whose arithmetic; it sets the options below that are not given.
        scope: one threshold per model ("model": paper, fusion-bench) or one per tensor ("tensor": mergekit,
            peft).
        equals: of elements as large as the smallest one kept, keep the "first", so that exactly so many are
            kept (mergekit, peft), or "all", or all and one rank more ("rank-below": the paper's code).
        vote: the elected sign is that of the "sum" of the models' elements or of the "count" of their signs.
        weighted_vote: whether the weights count in the vote (not in peft).
        tie: the sign where the vote is even: "plus" (mergekit, peft) or the "majority" of all elected signs
            (paper, fusion-bench).
        divide: the sum of what agrees is divided by the "weights" of the models in it (paper, mergekit;
            `normalize` there), by their "count" (peft), or by "none": a sum (fusion-bench's default).
        rescale: "norm" scales each trimmed task vector to its former sum of magnitudes (mergekit's
            `rescale: true`), "none" does not.
        lam: what the merged task vector is multiplied by: 1, or 0.3 in fusion-bench.

    Raises:
        InputError: options out of range, all of them listed.

    Source:
        Algorithm 1 with weights of one. The paper gives the models no weights; where they are not one, they
        scale the task vectors before the vote, as in mergekit. peft applies them after it. mergekit
        and peft keep as many elements as "first", but which of several equal ones is not defined there.

    Examples:
        >>> import torch, isthmus
        >>> base = {"w": torch.zeros(4)}
        >>> a, b = {"w": torch.tensor([4.0, 1.0, 3.0, 0.0])}, {"w": torch.tensor([2.0, 0.1, -5.0, 0.2])}
        >>> isthmus.combine([a, b], "ties", base=base, options={"density": 0.5, "convention": "mergekit"})
        {'w': tensor([ 3.,  0., -5.,  0.])}
    """
    given = {
        "scope": scope,
        "equals": equals,
        "weighted_vote": weighted_vote,
        "tie": tie,
        "divide": divide,
        "rescale": rescale,
        "lam": lam,
    }
    how = chosen("ties", convention, _CONVENTIONS, given)
    densities = per_model(density, len(weights), "density")
    election = Election(vote, how["weighted_vote"], how["tie"])
    refuse(
        "ties",
        [
            *unit_interval("density", densities),
            *election.wrong,
            *wrong_choice("scope", how["scope"], ("tensor", "model")),
            *wrong_choice("equals", how["equals"], ("first", "all", "rank-below")),
            *wrong_choice("divide", how["divide"], ("weights", "count", "none")),
            *wrong_choice("rescale", how["rescale"], ("none", "norm")),
        ],
    )
    return TaskVectors(
        weights,
        [Largest(d, how["equals"]) for d in densities],
        election=election,
        divide=how["divide"],
        lam=how["lam"],
        norm=how["rescale"] == "norm",
        scope=how["scope"],
    )


@rule(
    "magnitude-prune",
    needs=("base", "passes"),
    weighing="coefficients",
    claims=("order-free", "streaming-equals-memory"),
    source="peft's `magnitude_prune`",
)
def magnitude_prune(
    weights: Sequence[float],
    *,
    density: float | Sequence[float] = 0.2,
    scope: Scope = "tensor",
    equals: Equals = "first",
    lam: float = 1.0,
) -> BlockRule:
    """Task vectors trimmed to their largest elements and added up: TIES without the election.

    Args:
        weights: one per model, of any size; one each where not given.
        density: the part of each task vector that is kept, in (0, 1]; one number, or one per model.
        scope: one threshold per "tensor", or one for all of a "model".
        equals: as for `ties`.
        lam: what the merged task vector is multiplied by.

    Raises:
        InputError: options out of range, all of them listed.

    Examples:
        >>> import torch, isthmus
        >>> base, model = {"w": torch.zeros(4)}, {"w": torch.tensor([4.0, 1.0, -3.0, 0.0])}
        >>> isthmus.combine([model], "magnitude-prune", base=base, options={"density": 0.5})
        {'w': tensor([ 4.,  0., -3.,  0.])}
    """
    densities = per_model(density, len(weights), "density")
    refuse(
        "magnitude-prune",
        [
            *unit_interval("density", densities),
            *wrong_choice("scope", scope, ("tensor", "model")),
            *wrong_choice("equals", equals, ("first", "all", "rank-below")),
        ],
    )
    return TaskVectors(weights, [Largest(d, equals) for d in densities], lam=lam, scope=scope)
