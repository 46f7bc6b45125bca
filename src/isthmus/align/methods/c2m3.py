"""C2M3: all models at once to one universe, so that every cycle of maps is the identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost, identity_orders, permutations
from isthmus.align.learned.relaxed import Relaxation, Soft
from isthmus.errors import InputError
from isthmus.progress import task
from isthmus.symmetry import SymmetryGraph


@ALIGNMENTS.register(
    "c2m3",
    needs=(),
    claims=("function-kept", "planted-found", "planted-exact", "inverts", "seeded"),
    costs="tens of gradient steps and assignments per space, with a dense matrix for each model",
    source="Crisostomi et al., Cycle-Consistent Multi-Model Merging, arXiv:2405.17897, section 3",
)
def c2m3(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    reference: int = 0,
    max_rounds: int = 200,
    tolerance: float = 1e-6,
    patience: int = 5,
) -> Alignment:
    """Match all models to one common order of units at once, by Frank-Wolfe over soft orders.

    Every model i has one map P_i to the universe, and is mapped to model j by way of it, P_j^T P_i: whatever way one
    goes around, one comes back to the identity. What is maximised is the inner product of all pairs of moved models,
    over all parameters, all spaces of a model together (weight matching moves one space at a time). A step goes from a
    model's soft orders straight towards the orders that the gradient points to, as far as is best. Models join the
    universe one after another, each matched to the sum of those before it; then all take turns.

    Args:
        graph: the symmetries.
        models: state dicts, two or more; running statistics move but do not vote.
        reference: the model whose coordinates the universe's are: its map is the identity.
        max_rounds: give up after so many steps of a model that joins, and then of all of them.
        tolerance: a round that gains less than this part of the weights' squared lengths counts as none.
        patience: stop after so many of these in a row.

    Returns:
        An alignment by permutations, cycle-consistent by construction. Its costs are each model's agreement with the
        mean of the others.

    Source: Crisostomi et al., algorithm 1. We differ in four things. The universe is held in the reference's
        coordinates: the maps of all models may be turned together without changing the objective. Models join and step
        one after another (block-coordinate Frank-Wolfe, Lacoste-Julien et al., arXiv:1207.4747); in the source all step
        at once by one length, from the identity, where those not yet matched are noise to the others (with turns but
        without joining, orders planted in three models were found in 3 of 28 small networks, so in all of them).
        The line search is exact: along a step the objective is a polynomial of known degree, fitted through as
        many points (the source searches locally, with at most 20 evaluations). Heads and what is inside them are
        relaxed together, see `isthmus.align.learned.relaxed`.
    """
    if max_rounds < 1 or patience < 1 or tolerance < 0:
        raise InputError(
            f"max_rounds = {max_rounds}, patience = {patience} and tolerance = {tolerance} must be positive"
        )
    universe = Universe(graph, models, reference)
    run = universe.search(max_rounds, tolerance, patience)
    transports = [
        permutations(graph, {} if i == reference else orders) for i, orders in enumerate(run.orders)
    ]
    notes = [] if run.converged else [f"the last of {run.rounds} rounds still gained: not converged"]
    note = f"{run.rounds} rounds, objective {run.start:.6g} -> {run.soft:.6g} soft, {run.hard:.6g} as orders"
    settings = {"max_rounds": max_rounds, "tolerance": tolerance, "patience": patience}
    return Alignment(
        "c2m3",
        graph,
        tuple(transports),
        reference,
        tuple(universe.costs(run.orders)),
        settings,
        (note, *notes),
        "converged" if run.converged else f"stopped after {max_rounds} rounds",
    )


@dataclass(frozen=True)
class Run:
    """What a search found.

    Attributes:
        orders: of every model.
        start, soft, hard: the objective under the identity, under the soft orders and under those they round to.
        rounds: how many were taken, those of joining models included.
        converged: whether the gains came to an end each time.
    """

    orders: list[dict[str, Tensor]]
    start: float
    soft: float
    hard: float
    rounds: int
    converged: bool


class Universe:
    """The objective over all models' soft orders.

    Args:
        graph: the symmetries.
        models: state dicts.
        reference: the model that stays.
    """

    def __init__(self, graph: SymmetryGraph, models: Sequence[Mapping[str, Tensor]], reference: int):
        self.graph, self.reference = graph, reference
        self.relaxation = Relaxation(graph)
        names = graph.program.keys
        silent = graph.program.buffers | graph.ones
        self.models: list[dict[str, Tensor]] = []
        for model in models:
            found = graph.program.lookup(model)
            own = {key: found[names[key]].detach() for key in graph.layout if key not in silent}
            wide = torch.float64 if any(w.dtype == torch.float64 for w in own.values()) else torch.float32
            self.models.append({key: weight.to(wide) for key, weight in own.items()})
        self.like = next(iter(self.models[0].values()), torch.zeros(()))

    def moved(self, index: int, soft: Soft) -> dict[str, Tensor]:
        """The weights of one model that spaces touch, where soft orders put them."""
        return self.relaxation.apply(self.models[index], soft)

    def search(self, max_rounds: int, tolerance: float, patience: int) -> Run:
        """Frank-Wolfe from the identity: models join one after another, then all take turns."""
        identity = identity_orders(self.graph)
        start = objective(self.placed([identity for _ in self.models]))
        scale = sum(float(w.square().sum()) for model in self.models for w in model.values())
        soft = [self.relaxation.corner(identity, self.like) for _ in self.models]
        moved: dict[int, dict[str, Tensor]] = {}
        free = [i for i in range(len(soft)) if i != self.reference]
        converged = True
        rounds, value = 0, 0.0
        turns = [[index] for index in free] + ([free] if len(free) > 1 else [])
        with torch.no_grad(), task("c2m3", unit="rounds") as advance:
            moved[self.reference] = self.moved(self.reference, soft[self.reference])
            for movers in turns:
                moved |= {i: self.moved(i, soft[i]) for i in movers}
                value, idle, spent = objective(list(moved.values())), 0, 0
                while spent < max_rounds and idle < patience:
                    spent += 1
                    for index in movers:
                        others = _sum([m for i, m in moved.items() if i != index])
                        soft[index] = self._step(index, soft[index], others)
                        moved[index] = self.moved(index, soft[index])
                    after = objective(list(moved.values()))
                    idle = idle + 1 if after - value <= tolerance * scale else 0
                    value = after
                    advance(1)
                rounds += spent
                converged &= idle >= patience
        orders = [
            identity if i == self.reference else self.relaxation.best(matrices)
            for i, matrices in enumerate(soft)
        ]
        return Run(orders, start, value, objective(self.placed(orders)), rounds, converged)

    def placed(self, orders: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The weights that spaces touch, of every model, in hard orders."""
        with torch.no_grad():
            corners = [self.relaxation.corner(o, self.like) for o in orders]
            return [self.moved(i, corner) for i, corner in enumerate(corners)]

    def _step(self, index: int, soft: Soft, others: Mapping[str, Tensor]) -> Soft:
        """The best soft orders of one model on the way to the corner that its gradient points to."""
        leaves = {name: matrix.clone().requires_grad_() for name, matrix in soft.items()}
        with torch.enable_grad():
            _product(self.moved(index, leaves), others).backward()
        gradient = {n: torch.zeros_like(m) if m.grad is None else m.grad for n, m in leaves.items()}
        corner = self.relaxation.corner(self.relaxation.best(gradient), self.like)

        def between(t: float) -> Soft:
            return {name: torch.lerp(matrix, corner[name], t) for name, matrix in soft.items()}

        degree = max(self.relaxation.degree, 1)
        # Chebyshev's points: the fit loses no digits, whatever the degree.
        points = (1 - np.cos(np.pi * np.arange(degree + 1) / degree)) / 2
        with torch.no_grad():
            values = [float(_product(self.moved(index, between(float(t))), others)) for t in points]
        curve = np.polynomial.Chebyshev.fit(points, values, degree, domain=[0, 1])
        roots = np.atleast_1d(curve.deriv().roots())
        inside = [float(r.real) for r in roots if abs(r.imag) < 1e-9 and 0 < r.real < 1]
        return between(max([0.0, *inside, 1.0], key=lambda t: float(curve(t))))

    def costs(self, orders: Sequence[Mapping[str, Tensor]]) -> list[Cost]:
        """Each moved model's cosine with the mean of the others, over the weights that write a space."""
        before = self.placed([identity_orders(self.graph) for _ in orders])
        after = self.placed(orders)
        found: list[Cost] = []
        for index in range(len(orders)):
            if index == self.reference:
                continue
            for name, space in self.graph.spaces.items():
                keys = {m.key for m in space.members if m.role == "writes" and m.key in after[0]}
                if keys:
                    agreement = _cosine(before, index, keys), _cosine(after, index, keys)
                    found.append(Cost(index, name, *agreement, "mean cosine with the mean of the others"))
        return found


def objective(moved: Sequence[Mapping[str, Tensor]]) -> float:
    """The inner products of all pairs of moved models, summed."""
    whole = _sum(moved)
    own = sum(float(weight.square().sum()) for weights in moved for weight in weights.values())
    return (sum(float(weight.square().sum()) for weight in whole.values()) - own) / 2


def _sum(moved: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([weights[key] for weights in moved]).sum(0) for key in moved[0]}


def _product(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([(weight * theirs[key]).sum() for key, weight in ours.items()]).sum()


def _cosine(moved: Sequence[Mapping[str, Tensor]], index: int, keys: set[str]) -> float:
    ours = torch.cat([moved[index][key].flatten() for key in sorted(keys)])
    others = [m for i, m in enumerate(moved) if i != index]
    mean = torch.cat([torch.stack([m[key] for m in others]).mean(0).flatten() for key in sorted(keys)])
    return float(torch.dot(ours, mean) / (ours.norm() * mean.norm()).clamp_min(1e-30))
