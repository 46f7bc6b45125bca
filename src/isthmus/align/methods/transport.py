"""OT fusion: units of one model are carried to those of another, also where there are more or fewer of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost
from isthmus.align.mixed.coupling import Coupling, Solver, couple, stopped
from isthmus.align.mixed.joint import (
    Joint,
    check_counted,
    check_rest,
    dead_units,
    joint,
    mixable,
    orders_of_the_rest,
)
from isthmus.align.mixed.rows import in_order, rows
from isthmus.align.observe import Where
from isthmus.errors import InputError, MismatchError
from isthmus.maps import Dense, Map, Permutation, Transport
from isthmus.maps.elementwise import absorb
from isthmus.symmetry import SymmetryGraph

Metric = Literal["euclidean", "squared", "cosine", "correlation"]
Mass = Literal["uniform", "l1", "l2"]


@ALIGNMENTS.register(
    "transport",
    claims=(
        "function-kept",
        "planted-found",
        "planted-exact",
        "copies-give-the-model",
        "batching-free",
        "seeded",
    ),
    costs="one pass over the data, or sweeps over the weights; a linear program per space",
    source="Singh and Jaggi, Model Fusion via Optimal Transport, arXiv:1910.05653",
)
def transport(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    data: Iterable[object] | None = None,
    reference: int = 0,
    graphs: Sequence[SymmetryGraph] | None = None,
    by: Literal["activations", "weights"] | None = None,
    metric: Metric = "euclidean",
    mass: Mass = "uniform",
    solver: Solver = "exact",
    regularization: float = 0.05,
    unbalanced: float | None = None,
    sweeps: int = 2,
    at: Where = "pre-activation",
    stream: Literal["last", "pooled"] = "pooled",
    limit: int | None = None,
) -> Alignment:
    """Carry each model's units to the reference's at the least cost; widths may differ.

    For each space the cost of carrying a unit to another is the distance of their activations on the same data, or of
    their weights. The cheapest plan T is an assignment where widths are equal and masses uniform, and the map then a
    permutation. Otherwise units are averaged and split: A is T normalised per target unit, B per source unit. The
    result has the reference's widths, wider or narrower. A residual stream has one map, of the summed costs of all that
    writes it. Biases and norms go along. They are no part of the cost: beside weights of one input each, a bias is as
    large as what a unit adds up over all of them, and outweighs them.

    Args:
        graph: the symmetries.
        models: state dicts; each is carried to the reference on its own.
        data: calibration data, for activations; labels are not used.
        reference: index of the model whose units the others' are carried to.
        graphs: one per model, where their widths differ.
        by: what costs are distances of; "activations" where there is data, else "weights".
        metric: "euclidean" (of the paper), "squared", "cosine", or "correlation" (centred; of activations only).
        mass: of a unit: "uniform", or in proportion to the "l1" or "l2" norm of its incoming weights.
        solver: "exact" or "sinkhorn"; see `isthmus.align.mixed.coupling`.
        regularization: of Sinkhorn, in parts of the largest cost.
        unbalanced: how much marginals count, in parts of the largest cost; None for marginals that hold.
        sweeps: by weights: spaces are solved in the order of the program, by what writes them from solved ones; a
            second sweep lets all of a residual stream vote.
        at: by activations: which value represents a space; see `activation-matching`.
        stream: by activations: where several values carry a space, only the "last", or all "pooled".
        limit: use at most this many examples.

    Raises:
        InputError: a bad option, no data for activations, or POT is needed and not installed.
        MismatchError: heads or groups of different numbers, which no plan can carry; or different widths along what
            the program sums over, where every unit counts.

    Source: sections 3 and 4. We differ in what the published code lacks: biases, norms, residual streams with one
        map, widths in both directions (B is not A transposed), and the output layer, which is not transported.
    """
    if by is None:
        by = "weights" if data is None else "activations"
    _check(by, metric, mass, sweeps, data)
    graphs = list(graphs or [graph] * len(models))
    spaces = mixable(graph, graphs if solver == "exact" and mass == "uniform" else ())
    check_rest(graphs, spaces)
    near = check_counted(graphs, spaces, ("sum",))
    maps, notes = orders_of_the_rest(
        graphs, models, spaces, data if by == "activations" else None, reference, limit
    )
    run = _Carrying(graphs, models, reference, maps, mass, metric, solver, regularization, unbalanced)
    settings: dict[str, object] = {
        "by": by,
        "metric": metric,
        "mass": mass,
        "solver": solver,
        "regularization": regularization if solver == "sinkhorn" else None,
        "unbalanced": unbalanced,
    }
    if by == "activations":
        assert data is not None
        found, seen = joint(graphs, models, data, spaces, at=at, stream=stream, limit=limit)
        for name, statistics in found.items():
            for index in run.others:
                run.settle(index, name, activation_cost(statistics, index, reference, metric))
        settings |= {"at": at, "stream": stream, "limit": limit, "examples": seen.examples}
        run.notes += dead_units(found, "are told apart by their means alone")
        run.leave([name for name in spaces if name not in found])
    else:
        run.by_weights(spaces, sweeps)
        settings["sweeps"] = sweeps
    transports = [Transport(own, m) for own, m in zip(graphs, run.alike(), strict=True)]
    costs, told = tuple(run.costs.values()), (*notes, *near, *run.notes)
    status = stopped(run.couplings)
    return Alignment("transport", graph, tuple(transports), reference, costs, settings, told, status)


def _check(by: str, metric: str, mass: str, sweeps: int, data: Iterable[object] | None) -> None:
    problems = [
        f"{name} = {value!r} is none of {', '.join(known)}"
        for name, value, known in (
            ("by", by, ("activations", "weights")),
            ("metric", metric, ("euclidean", "squared", "cosine", "correlation")),
            ("mass", mass, ("uniform", "l1", "l2")),
        )
        if value not in known
    ]
    if by == "weights" and metric == "correlation":
        problems.append("metric = 'correlation' is of activations")
    if sweeps < 1:
        problems.append(f"sweeps = {sweeps} must be at least 1")
    if problems:
        raise InputError("transport was given wrong options", problems)
    if by == "activations" and data is None:
        raise InputError(
            "transport by activations needs calibration data", hint="pass data=, or by='weights'"
        )


def activation_cost(
    statistics: Joint, model: int, reference: int, metric: Metric
) -> Float[Tensor, "source target"]:
    """Distances of a model's activations from the reference's, over the same samples, from joint moments.

    |x - y|^2 / samples = E x^2 + E y^2 - 2 E xy.
    """
    moments = statistics.covariance if metric == "correlation" else statistics.second
    rows, columns = statistics.rows(model), statistics.rows(reference)
    return distance(moments[rows, columns], moments.diagonal()[rows], moments.diagonal()[columns], metric)


def weight_cost(
    ours: Float[Tensor, "source features"], theirs: Float[Tensor, "target features"], metric: Metric
) -> Float[Tensor, "source target"]:
    """Distances of the rows of two matrices."""
    return distance(ours @ theirs.mT, ours.square().sum(1), theirs.square().sum(1), metric)


def distance(products: Tensor, ours: Tensor, theirs: Tensor, metric: Metric) -> Tensor:
    """Distances from inner products and squared lengths."""
    if metric in ("cosine", "correlation"):
        scale = torch.outer(ours.clamp(min=0), theirs.clamp(min=0)).sqrt()
        return 1 - torch.where(scale > 0, products / scale, 0.0)
    squared = (ours[:, None] + theirs - 2 * products).clamp(min=0)
    return squared if metric == "squared" else squared.sqrt()


class _Carrying:
    """The maps of all models, as they are found."""

    def __init__(
        self,
        graphs: Sequence[SymmetryGraph],
        models: Sequence[Mapping[str, Tensor]],
        reference: int,
        maps: list[dict[str, Map]],
        mass: Mass,
        metric: Metric,
        solver: Solver,
        regularization: float,
        unbalanced: float | None,
    ):
        self.graphs, self.reference, self.maps, self.mass = graphs, reference, maps, mass
        self.metric: Metric = metric
        self.how = {"solver": solver, "regularization": regularization, "unbalanced": unbalanced}
        self.others = [i for i in range(len(models)) if i != reference]
        everything = list(graphs[0].spaces)
        # Units are compared by what comes out of them: a layer with the scale of the batch norm behind it.
        self.weights = [absorb(g, m, everything)[0] for g, m in zip(graphs, models, strict=True)]
        self.costs: dict[tuple[int, str], Cost] = {}
        self.notes: list[str] = []
        self.couplings: list[Coupling] = []

    def settle(self, index: int, name: str, cost: Tensor) -> None:
        """Solve one space of one model."""
        ours, theirs = self._mass(index, name), self._mass(self.reference, name)
        coupling = couple(cost, ours, theirs, **self.how)  # type: ignore[arg-type]
        self.couplings.append(coupling)
        if not coupling.converged:
            self.notes.append(
                f"model {index}, {name}: Sinkhorn stopped with a marginal wrong by {coupling.error:.1%}"
            )
        self.maps[index][name] = coupling.map()
        mass = coupling.plan.sum().item()
        common = min(cost.shape)
        before = cost.diagonal()[:common].mean().item()
        self.costs[index, name] = Cost(
            index, name, -before, -coupling.cost / mass, f"minus {self.metric} cost"
        )

    def _mass(self, index: int, name: str) -> Tensor | None:
        if self.mass == "uniform":
            return None
        own = rows(self.graphs[index], self.weights[index], name, {})
        norms = own.abs().sum(1) if self.mass == "l1" else own.square().sum(1).sqrt()
        # A unit without weights must go somewhere too.
        return norms.clamp(min=1e-6 * norms.max().clamp(min=1e-30))

    def by_weights(self, spaces: Sequence[str], sweeps: int) -> None:
        """Sweep over the spaces in the order of the program."""
        ordered = in_order(self.graphs[self.reference], spaces)
        for index in self.others:
            done = {name for name in self.graphs[index].spaces if name not in spaces}
            for sweep in range(sweeps):
                for name in ordered:
                    known = set(self.graphs[index].spaces) if sweep else done
                    ours, theirs = (
                        rows(self.graphs[i], self.weights[i], name, maps, known, products=True)
                        for i, maps in ((index, self.maps[index]), (self.reference, {}))
                    )
                    self.settle(index, name, weight_cost(ours, theirs, self.metric))
                    done.add(name)

    def leave(self, names: Sequence[str]) -> None:
        """Spaces that no value shows stay, if they can."""
        problems = [
            f"{name}: {self.graphs[index].spaces[name].size} units, {self.graphs[self.reference].spaces[name].size} "
            "in the reference"
            for name in names
            for index in self.others
            if self.graphs[index].spaces[name].size != self.graphs[self.reference].spaces[name].size
        ]
        if problems:
            raise MismatchError("no value shows these spaces, so their units cannot be compared", problems)
        if names:
            self.notes.append(f"no value shows {', '.join(names)}: left in place")

    def alike(self) -> list[dict[str, Map]]:
        """The maps, of one kind per space: where one model's units are mixed, all models' are said densely."""
        for name in {n for m in self.maps for n, item in m.items() if isinstance(item, Dense)}:
            size = self.graphs[self.reference].spaces[name].size
            for index, own in enumerate(self.maps):
                item = own.get(name, Permutation(torch.arange(size))) if index != self.reference else None
                if item is None:
                    eye = torch.eye(size, dtype=torch.float64)
                    own[name] = Dense(eye, eye)
                elif isinstance(item, Permutation):
                    own[name] = Dense(*item.matrices())
        return self.maps
