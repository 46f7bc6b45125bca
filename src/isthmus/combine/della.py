"""DELLA: drop elements of the task vectors at random, the small ones more often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from isthmus.combine.blocks import BlockRule, per_model
from isthmus.combine.by_rank import AtRandomByRank
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
from isthmus.combine.trimming import HELD, unit_interval

#: What makes up for what was dropped: dividing each element by its own probability to be kept, all by the part
#: of the magnitudes that is left, or nothing.
Rescale = Literal["probability", "norm", "none"]

_CONVENTIONS = {"paper": {"rescale": "probability"}, "mergekit": {"rescale": "norm"}}
_SOURCE = "Deep et al., DELLA-Merging, arXiv:2406.11617, section 3"


@rule(
    "della",
    needs=("base", "seed"),
    weighing="coefficients",
    claims=("seeded", "streaming-equals-memory"),
    source=_SOURCE,
)
def della(
    weights: Sequence[float],
    *,
    density: float | Sequence[float] = 0.5,
    epsilon: float | Sequence[float] = 0.15,
    convention: Convention = "paper",
    rescale: Rescale | None = None,
    vote: Literal["sum", "count"] = "sum",
    weighted_vote: bool = True,
    tie: Literal["plus", "majority"] = "plus",
    divide: Divide = "weights",
    lam: float = 1.0,
) -> BlockRule:
    """Task vectors with elements dropped at random, small ones more often; the mean with the elected sign.

    In each row the element of smallest magnitude is kept with probability density - epsilon, the largest with
    density + epsilon, and those between in equal steps by rank; of equal ones the earlier ranks lower. What is
    drawn is another element of the row to compare with, which has the same probabilities and needs no ranks; up to 64
    neighbours have theirs at one distance, so that their masks are independent only given that. Ranks are found
    only to divide by (rescale="probability"), which takes several times as long.

    Args:
        weights: one per model, of any size; one each where not given.
        density: the mean probability to be kept, in (0, 1]; one number, or one per model. 1 keeps everything.
        epsilon: how far the probabilities reach below and above it, in [0, min(density, 1 - density)); one
            number, or one per model.
        convention: "paper" or "mergekit"; it sets `rescale` where that is not given.
        rescale: divide what is kept by its own "probability" (paper), scale it to the former sum of magnitudes
            of its tensor ("norm": mergekit), or "none".
        vote: as for `ties`.
        weighted_vote: as for `ties`.
        tie: as for `ties`.
        divide: as for `ties`: the mean by weights in both.
        lam: what the merged task vector is multiplied by.

    Raises:
        InputError: options out of range, all of them listed.

    Source:
        Section 3, with the probabilities as the authors' code has them (from density - epsilon to density +
        epsilon; in the text epsilon is the whole width). A row is all that one output reads, so for a
        convolution a filter, and a vector is one row; mergekit ranks along axis 1 also where there are more
        than two.

    Examples:
        >>> import torch, isthmus
        >>> base, model = {"w": torch.zeros(1, 6)}, {"w": torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])}
        >>> options = {"density": 0.5, "epsilon": 0.25, "rescale": "none"}
        >>> isthmus.combine([model], "della", base=base, seed=5, options=options)
        {'w': tensor([[0., 2., 0., 4., 0., 6.]])}
    """
    how = chosen("della", convention, _CONVENTIONS, {"rescale": rescale})
    election = Election(vote, weighted_vote, tie)
    refuse("della", election.wrong)
    return TaskVectors(
        weights,
        _trims("della", density, epsilon, how["rescale"], divide, len(weights)),
        election=election,
        divide=divide,
        lam=lam,
        norm=how["rescale"] == "norm",
    )


@rule(
    "della-linear",
    needs=("base", "seed"),
    weighing="coefficients",
    claims=("seeded", "streaming-equals-memory"),
    source=f"{_SOURCE}, without the election",
)
def della_linear(
    weights: Sequence[float],
    *,
    density: float | Sequence[float] = 0.5,
    epsilon: float | Sequence[float] = 0.15,
    convention: Convention = "paper",
    rescale: Rescale | None = None,
    divide: Divide = "none",
    lam: float = 1.0,
) -> BlockRule:
    """Task vectors with elements dropped at random, small ones more often, added up.

    Args:
        weights: one per model, of any size; one each where not given.
        density: as for `della`.
        epsilon: as for `della`.
        convention: as for `della`.
        rescale: as for `della`.
        divide: the sum is divided by the sum of the "weights", the "count" of models, or "none".
        lam: what the merged task vector is multiplied by.

    Raises:
        InputError: options out of range, all of them listed.
    """
    how = chosen("della-linear", convention, _CONVENTIONS, {"rescale": rescale})
    trims = _trims("della-linear", density, epsilon, how["rescale"], divide, len(weights))
    return TaskVectors(weights, trims, divide=divide, lam=lam, norm=how["rescale"] == "norm")


def _trims(
    name: str,
    density: float | Sequence[float],
    epsilon: float | Sequence[float],
    rescale: Rescale,
    divide: Divide,
    count: int,
) -> list[AtRandomByRank]:
    densities = per_model(density, count, "density")
    widths = per_model(epsilon, count, "epsilon")
    refuse(
        name,
        [
            *unit_interval("density", densities),
            *unit_interval("epsilon", widths, zero=True),
            *(
                f"density {d:g} with epsilon {e:g}: probabilities from {d - e:g} to {d + e:g} are not in (0, 1)"
                for d, e in dict.fromkeys(zip(densities, widths, strict=True))
                if 0 < d < 1 and not (d - e > 0 and d + e < 1)
            ),
            *wrong_choice("rescale", rescale, ("probability", "norm", "none")),
            *wrong_choice("divide", divide, ("weights", "count", "none")),
        ],
    )
    return [
        AtRandomByRank(d, e, stream, rescale == "probability", HELD // count)
        for stream, (d, e) in enumerate(zip(densities, widths, strict=True))
    ]
