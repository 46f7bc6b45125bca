"""Optimal transport between two sets of units: which part of each goes where at the least cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from isthmus.errors import InputError
from isthmus.maps import Dense, Map, Permutation

Solver = Literal["exact", "sinkhorn"]


@dataclass(frozen=True, eq=False)
class Coupling:
    """How the mass of a model's units is spread over the reference's.

    Attributes:
        plan: T, not negative.
        cost: sum of T times the costs.
        error: largest difference between a marginal of T and what it should be, beside the largest mass; 0 where
            marginals are not asked for (unbalanced).
        iterations: of Sinkhorn; 0 for exact solvers.
    """

    plan: Float[Tensor, "source target"]
    cost: float
    error: float = 0.0
    iterations: int = 0

    @property
    def converged(self) -> bool:
        """Whether marginals are what they should be, to a part in a thousand."""
        return self.error <= 1e-3

    def map(self) -> Map:
        """A is T normalised per target, B is T normalised per source: each exact where units were only split or copied.

        Where every unit goes to one other, that is a permutation.

        Raises:
            InputError: a unit sends or gets no mass at all (unbalanced transport of too little weight).

        Source: Singh and Jaggi normalise for the target on both sides, which is the same for equal widths; for others
            it halves or doubles the signal.
        """
        plan = self.plan.double()
        rows, columns = plan.shape
        hits = plan > 0
        if empty := int((plan.sum(0) <= 0).sum() + (plan.sum(1) <= 0).sum()):
            raise InputError(
                f"{empty} of {rows + columns} units carry no mass",
                hint="more weight to the marginals (unbalanced), or more regularization",
            )
        if rows == columns and bool((hits.sum(0) == 1).all()) and bool((hits.sum(1) == 1).all()):
            return Permutation(hits.double().argmax(0))
        return Dense((plan / plan.sum(0)).mT.contiguous(), plan / plan.sum(1, keepdim=True))


def stopped(couplings: Sequence[Coupling]) -> str:
    """The status of a method that solved these."""
    late = sum(not coupling.converged for coupling in couplings)
    return f"{late} of {len(couplings)} couplings stopped early" if late else "converged"


def couple(
    cost: Float[Tensor, "source target"],
    ours: Float[Tensor, " source"] | None = None,
    theirs: Float[Tensor, " target"] | None = None,
    *,
    solver: Solver = "exact",
    regularization: float = 0.05,
    unbalanced: float | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-9,
) -> Coupling:
    """The cheapest way to carry the mass of one set of units to another.

    Args:
        cost: of carrying a unit of mass, pair by pair.
        ours: mass of each source unit, positive; uniform where not given. Scaled to sum to one.
        theirs: mass of each target unit, likewise.
        solver: "exact" is an assignment where numbers are equal and masses uniform, else a linear program (POT, the
            extra `ot`); "sinkhorn" adds an entropy, in the log domain, and gives a soft plan.
        regularization: the entropy's weight, in parts of the largest cost.
        unbalanced: weight of the marginals, in parts of the largest cost: mass may then be left behind, or made (by
            Sinkhorn only). None for marginals that hold.
        iterations: of Sinkhorn, at most.
        tolerance: Sinkhorn stops when no marginal is wrong by more than this part of the largest mass.

    Raises:
        InputError: costs that are no numbers, masses that are not positive, or a bad option.
    """
    cost = cost.double().cpu()
    uniform = ours is None and theirs is None
    a, b = _mass(ours, cost.shape[0]), _mass(theirs, cost.shape[1])
    if not bool(cost.isfinite().all()):
        raise InputError("a cost of transport is not finite")
    if solver not in ("exact", "sinkhorn"):
        raise InputError(f"solver {solver!r} is neither 'exact' nor 'sinkhorn'")
    if unbalanced is not None and (solver == "exact" or not unbalanced > 0):
        raise InputError("unbalanced transport takes a positive weight, and solver='sinkhorn'")
    if solver == "sinkhorn":
        if not regularization > 0:
            raise InputError(f"regularization = {regularization} is not positive")
        return _sinkhorn(cost, a, b, regularization, unbalanced, iterations, tolerance)
    if uniform and cost.shape[0] == cost.shape[1]:
        rows, columns = linear_sum_assignment(cost.numpy())
        plan = torch.zeros_like(cost)
        plan[rows, columns] = 1 / len(cost)
    else:
        plan = _exact(cost, a, b)
    return Coupling(plan, (plan * cost).sum().item())


def _mass(given: Tensor | None, count: int) -> Tensor:
    mass = torch.ones(count, dtype=torch.float64) if given is None else given.double().cpu()
    if not bool((mass > 0).all() and mass.isfinite().all()):
        raise InputError("every unit needs a mass, positive and finite")
    return mass / mass.sum()


def _exact(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
    try:
        import ot
    except ImportError as error:
        raise InputError(
            "exact transport between unequal widths or masses is solved by POT, which is not installed",
            hint="pip install 'isthmus[ot]', or solver='sinkhorn'",
        ) from error
    plan, log = ot.emd(a.numpy(), b.numpy(), cost.contiguous().numpy(), numItermax=1_000_000, log=True)
    if log["warning"]:
        raise InputError(f"exact transport was not solved: {log['warning']}", hint="solver='sinkhorn'")
    return torch.from_numpy(plan)


def _sinkhorn(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    regularization: float,
    unbalanced: float | None,
    iterations: int,
    tolerance: float,
) -> Coupling:
    """Sinkhorn's iterations on the dual potentials.

    Source: Cuturi 2013 (arXiv:1306.0895); in the log domain and unbalanced, Chizat et al. 2018 (arXiv:1607.05816).
    """
    largest = cost.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    scaled = -cost / (largest * regularization)
    power = 1.0 if unbalanced is None else unbalanced / (unbalanced + regularization)
    log_a, log_b = a.log(), b.log()
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    error, done = float("inf"), 0
    while done < iterations and error > tolerance:
        done += 1
        before = f
        f = power * (log_a - torch.logsumexp(scaled + g, 1))
        g = power * (log_b - torch.logsumexp(scaled + f[:, None], 0))
        if unbalanced is None:
            # Columns hold after their update, so what is wrong is in the rows.
            error = ((torch.logsumexp(scaled + g, 1) + f).exp() - a).abs().max().item() / a.max().item()
        else:
            error = (f - before).abs().max().item()
    plan = (scaled + f[:, None] + g).exp()
    return Coupling(plan, (plan * cost).sum().item(), error, done)
