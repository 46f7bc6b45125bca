"""DARE: drop elements of the task vectors at random, and rescale the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from isthmus.combine.blocks import BlockRule, per_model
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
from isthmus.combine.trimming import HELD, AtRandom, unit_interval

#: What makes up for what was dropped: dividing by the density, by the part of the magnitudes that is left, or
#: nothing.
Rescale = Literal["density", "norm", "none"]

_LINEAR = {
    "paper": {"rescale": "density", "divide": "none"},
    "mergekit": {"rescale": "norm", "divide": "none"},
    "peft": {"rescale": "density", "divide": "none"},
    "fusion-bench": {"rescale": "density", "divide": "none"},
}
_TIES = {
    "paper": {"rescale": "density", "divide": "weights", "weighted_vote": True},
    "mergekit": {"rescale": "norm", "divide": "none", "weighted_vote": True},
    "peft": {"rescale": "density", "divide": "count", "weighted_vote": False},
    "fusion-bench": {"rescale": "density", "divide": "none", "weighted_vote": True},
}


@rule(
    "dare-linear",
    needs=("base", "seed"),
    weighing="coefficients",
    claims=("seeded", "streaming-equals-memory"),
    source="Yu et al., Language models are super Mario, arXiv:2311.03099, equations 1-3",
)
def dare_linear(
    weights: Sequence[float],
    *,
    density: float | Sequence[float] = 0.1,
    convention: Convention = "paper",
    rescale: Rescale | None = None,
    divide: Divide | None = None,
    lam: float = 1.0,
) -> BlockRule:
    """Task vectors with elements dropped at random and the rest rescaled, added up.

    Args:
        weights: one per model, of any size; one each where not given.
        density: the probability of an element to be kept, in (0, 1]: 1 - p of the paper; one number, or one
            per model.
        convention: whose arithmetic; it sets the options below that are not given.
        rescale: divide what is kept by the "density" (paper, peft, fusion-bench), scale it to the former
            sum of magnitudes of its tensor ("norm": mergekit), or "none".
        divide: the sum is divided by the sum of the "weights" (`normalize` in mergekit), by the "count" of
            models, or by "none" (the default of all).
        lam: what the merged task vector is multiplied by.

    Raises:
        InputError: options out of range, all of them listed.

    Source:
        Equations 1 to 3. The mask of an element is drawn from (seed, tensor's name, model, position): other
        tools draw other masks, from a generator whose state depends on what was merged before.

    Examples:
        >>> import torch, isthmus
        >>> base, model = {"w": torch.zeros(8)}, {"w": torch.ones(8)}
        >>> isthmus.combine([model], "dare-linear", base=base, seed=1, options={"density": 0.5})
        {'w': tensor([0., 2., 2., 0., 0., 2., 2., 0.])}
    """
    how = chosen("dare-linear", convention, _LINEAR, {"rescale": rescale, "divide": divide})
    trims = _trims("dare-linear", density, how["rescale"], how["divide"], len(weights))
    return TaskVectors(weights, trims, divide=how["divide"], lam=lam, norm=how["rescale"] == "norm")


@rule(
    "dare-ties",
    needs=("base", "seed"),
    weighing="coefficients",
    claims=("seeded", "streaming-equals-memory"),
    source="Yu et al., Language models are super Mario, arXiv:2311.03099, with the election of TIES",
)
def dare_ties(
    weights: Sequence[float],
    *,
    density: float | Sequence[float] = 0.1,
    convention: Convention = "paper",
    rescale: Rescale | None = None,
    vote: Literal["sum", "count"] = "sum",
    weighted_vote: bool | None = None,
    tie: Literal["plus", "majority"] = "plus",
    divide: Divide | None = None,
    lam: float = 1.0,
) -> BlockRule:
    """Task vectors with elements dropped at random; of each element, those with the elected sign.

    Args:
        weights: one per model, of any size; one each where not given.
        density: the probability of an element to be kept, in (0, 1]; one number, or one per model.
        convention: whose arithmetic; it sets the options below that are not given.
        rescale: as for `dare-linear`.
        vote: as for `ties`.
        weighted_vote: as for `ties`.
        tie: as for `ties`.
        divide: as for `ties`: the mean by weights in the paper, by count in peft, a sum in mergekit.
        lam: what the merged task vector is multiplied by.

    Raises:
        InputError: options out of range, all of them listed.

    Examples:
        >>> import torch, isthmus
        >>> base, model = {"w": torch.zeros(8)}, {"w": torch.ones(8)}
        >>> isthmus.combine([model, model], "dare-ties", base=base, options={"density": 1.0})
        {'w': tensor([1., 1., 1., 1., 1., 1., 1., 1.])}
    """
    given = {"rescale": rescale, "divide": divide, "weighted_vote": weighted_vote}
    how = chosen("dare-ties", convention, _TIES, given)
    election = Election(vote, how["weighted_vote"], tie)
    refuse("dare-ties", election.wrong)
    trims = _trims("dare-ties", density, how["rescale"], how["divide"], len(weights))
    return TaskVectors(
        weights,
        trims,
        election=election,
        divide=how["divide"],
        lam=lam,
        norm=how["rescale"] == "norm",
    )


def _trims(
    name: str, density: float | Sequence[float], rescale: Rescale, divide: Divide, count: int
) -> list[AtRandom]:
    densities = per_model(density, count, "density")
    refuse(
        name,
        [
            *unit_interval("density", densities),
            *wrong_choice("rescale", rescale, ("density", "norm", "none")),
            *wrong_choice("divide", divide, ("weights", "count", "none")),
        ],
    )
    return [AtRandom(d, stream, rescale == "density", HELD // count) for stream, d in enumerate(densities)]
