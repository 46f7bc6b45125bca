"""Model Breadcrumbs: task vectors without their smallest elements and without their outliers."""

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
from isthmus.combine.trimming import Middle, unit_interval

_CONVENTIONS = {
    "paper": {"density": 0.15, "gamma": 0.006, "per": "row", "lam": 0.2},
    "mergekit": {"density": 1.0, "gamma": 0.01, "per": "tensor", "lam": 1.0},
}

_SOURCE = "Davari and Belilovsky, Model Breadcrumbs, arXiv:2312.06795, section 3"


@rule(
    "breadcrumbs",
    needs=("base", "passes"),
    weighing="coefficients",
    claims=("order-free", "streaming-equals-memory"),
    source=_SOURCE,
)
def breadcrumbs(
    weights: Sequence[float],
    *,
    density: float | Sequence[float] | None = None,
    gamma: float | Sequence[float] | None = None,
    convention: Convention = "paper",
    per: Literal["row", "tensor"] | None = None,
    rescale: Literal["none", "norm"] = "none",
    divide: Divide = "none",
    lam: float | None = None,
) -> BlockRule:
    """Task vectors without their smallest elements and without their very largest, added up.

    Args:
        weights: one per model, of any size; one each where not given.
        density: the part that is kept, in (0, 1]; one number, or one per model. 0.15 in the paper, 1 in
            mergekit, where density 1 keeps the outliers too.
        gamma: the part of the largest that is dropped, in [0, 1); one number, or one per model. 0.006 in the
            paper, 0.01 in mergekit. Where fewer than gamma can be dropped (density + gamma > 1), fewer are.
        convention: "paper" or "mergekit"; it sets the options that are not given.
        per: ranks within each "row" of the last axis (the paper's code; its text says per layer) or within
            the "tensor" (mergekit).
        rescale: "norm" scales each trimmed task vector to its former sum of magnitudes (mergekit's
            `rescale: true`), "none" does not.
        divide: the sum is divided by the sum of the "weights", the "count" of models, or "none".
        lam: what the merged task vector is multiplied by: 0.2 in the paper, 1 in mergekit.

    Raises:
        InputError: options out of range, all of them listed.

    Examples:
        >>> import torch, isthmus
        >>> base, model = {"w": torch.zeros(4)}, {"w": torch.tensor([9.0, 1.0, -3.0, 2.0])}
        >>> options = {"density": 0.5, "gamma": 0.25, "convention": "mergekit"}
        >>> isthmus.combine([model], "breadcrumbs", base=base, options=options)
        {'w': tensor([ 0.,  0., -3.,  2.])}
    """
    given = {"density": density, "gamma": gamma, "per": per, "lam": lam}
    how = chosen("breadcrumbs", convention, _CONVENTIONS, given)
    trims = _trims("breadcrumbs", how, rescale, divide, len(weights))
    return TaskVectors(weights, trims, divide=divide, lam=how["lam"], norm=rescale == "norm")


@rule(
    "breadcrumbs-ties",
    needs=("base", "passes"),
    weighing="coefficients",
    claims=("order-free", "streaming-equals-memory"),
    source=f"{_SOURCE}, with the election of TIES; as mergekit's `breadcrumbs_ties`",
)
def breadcrumbs_ties(
    weights: Sequence[float],
    *,
    density: float | Sequence[float] | None = None,
    gamma: float | Sequence[float] | None = None,
    convention: Convention = "paper",
    per: Literal["row", "tensor"] | None = None,
    rescale: Literal["none", "norm"] = "none",
    vote: Literal["sum", "count"] = "sum",
    weighted_vote: bool = True,
    tie: Literal["plus", "majority"] = "plus",
    divide: Divide = "none",
    lam: float | None = None,
) -> BlockRule:
    """Breadcrumbs' task vectors; of each element, those with the elected sign.

    Args:
        weights: one per model, of any size; one each where not given.
        density: as for `breadcrumbs`.
        gamma: as for `breadcrumbs`.
        convention: as for `breadcrumbs`.
        per: as for `breadcrumbs`.
        rescale: as for `breadcrumbs`.
        vote: as for `ties`.
        weighted_vote: as for `ties`.
        tie: as for `ties`.
        divide: as for `ties`; mergekit's default is a sum.
        lam: as for `breadcrumbs`.

    Raises:
        InputError: options out of range, all of them listed.
    """
    given = {"density": density, "gamma": gamma, "per": per, "lam": lam}
    how = chosen("breadcrumbs-ties", convention, _CONVENTIONS, given)
    election = Election(vote, weighted_vote, tie)
    refuse("breadcrumbs-ties", election.wrong)
    return TaskVectors(
        weights,
        _trims("breadcrumbs-ties", how, rescale, divide, len(weights)),
        election=election,
        divide=divide,
        lam=how["lam"],
        norm=rescale == "norm",
    )


def _trims(name: str, how: dict[str, object], rescale: str, divide: str, count: int) -> list[Middle]:
    density, gamma, per = how["density"], how["gamma"], how["per"]
    densities = per_model(density, count, "density")  # type: ignore[arg-type]  # a float or several
    gammas = per_model(gamma, count, "gamma")  # type: ignore[arg-type]  # likewise
    refuse(
        name,
        [
            *unit_interval("density", densities),
            *unit_interval("gamma", gammas, zero=True, one=False),
            *wrong_choice("per", per, ("row", "tensor")),
            *wrong_choice("rescale", rescale, ("none", "norm")),
            *wrong_choice("divide", divide, ("weights", "count", "none")),
        ],
    )
    return [Middle(d, g, per == "row") for d, g in zip(densities, gammas, strict=True)]
