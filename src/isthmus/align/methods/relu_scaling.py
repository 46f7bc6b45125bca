"""ReLU scaling: an order and a positive scale per unit, fitted together to what the units answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus import features
from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost, permutations
from isthmus.align.choices import check_choice
from isthmus.align.learned.doubly_stochastic import sinkhorn_operator
from isthmus.align.observe import observations
from isthmus.align.orders.balance import balance
from isthmus.align.orders.channels import Place, agreements, solve
from isthmus.align.orders.full_groups import wide
from isthmus.errors import InputError
from isthmus.features import Moments
from isthmus.maps import Permutation, Transport
from isthmus.symmetry import Axis, Element, Gauge, SymmetryGraph, exposed, positions

#: The smallest cosine at which two units answer alike: far above rounding.
ALIKE = 1e-6

#: A fit whose last step gains a smaller part of the loss than this has come to its end.
SETTLED = 1e-4

Fit = Literal["norms", "least-squares", "sinkhorn"]


@ALIGNMENTS.register(
    "relu-scaling",
    needs=("data",),
    claims=("function-kept", "planted-found", "planted-exact", "inverts", "batching-free", "seeded"),
    costs="one pass over the data, an assignment per space; with fit='sinkhorn' hundreds of gradient steps",
    source="Godfrey et al., On the symmetries of deep learning models, arXiv:2205.14258, sections 3 and 5",
)
def relu_scaling(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    data: Iterable[object] | None = None,
    reference: int = 0,
    fit: Fit = "norms",
    stream: Literal["last", "pooled"] = "last",
    limit: int | None = None,
    steps: int = 200,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> Alignment:
    """Match units by their activations up to a positive scale, and give them the reference's scale.

    Behind a ReLU a unit may be multiplied by d > 0 if what reads it is divided by d. For each space with this freedom
    (a "positive" gauge that its activations answer to) the order and the scales that bring the model's activations y to
    the reference's x are found together; spaces without it are only reordered, to least E|x - P y|^2. Scales that
    nothing answers to (a batch norm takes them back) are then set by `balance`: both models' weights made shortest.

    Args:
        graph: the symmetries.
        models: state dicts; each is matched to the reference on its own.
        data: calibration data; labels are not used.
        reference: index of the model that stays.
        fit: "norms": units are as alike as the cosine of their activations, and d makes both equally loud
            (sqrt(E x^2 / E y^2)): Procrustes in this group. "least-squares": the P and d > 0 that minimise
            E|x - P D y|^2, exactly: an assignment on (E x y)^2 / E y^2 and d = E x y / E y^2. "sinkhorn": the same loss
            over doubly stochastic matrices and scales, by gradient descent, rounded; then d as for least squares.
        stream: where several values carry a space (a residual stream): only the "last", or all "pooled".
        limit: use at most this many examples.
        steps: of the Sinkhorn fit.
        learning_rate: of the Sinkhorn fit (Adam).
        seed: of where the Sinkhorn fit starts.

    Returns:
        An alignment whose transports hold orders and scales; both keep each model's function.

    Source: Godfrey et al., whose stitching layer is such a P D, learned by projected gradients through Sinkhorn with a
        reward for being near a corner; the loss here is that of the activations, from their second moments alone.
        Their data also passes through the rest of the network; ours needs no pass beyond the one over `data`.
    """
    check_choice("fit", fit, ("norms", "least-squares", "sinkhorn"))
    if data is None:
        raise InputError("relu-scaling needs calibration data", hint="pass data=")
    if steps < 1 or learning_rate <= 0:
        raise InputError(f"steps = {steps} and learning_rate = {learning_rate} must be positive")
    values = observations(graph, stream=stream)
    free = _freedoms(graph, observations(graph, stream="pooled"))
    scaled = {place for freedom in free for place in freedom.places}
    chosen = sorted({place for places in values.values() for place in places} | scaled)
    others = [i for i in range(len(models)) if i != reference]
    ordered = [models[reference], *(models[i] for i in others)]
    requests = [
        features.Request(v, axis, "joint" if fit == "sinkhorn" else "reference") for v, axis in chosen
    ]
    found = features.collect(graph.program, ordered, data, requests, limit=limit)

    transports = [permutations(graph, {}) for _ in models]
    costs: list[Cost] = []
    notes: list[str] = []
    late = 0
    for column, index in enumerate(others, start=1):
        seen = {place: _Pair.of(found[place], column) for place in chosen}
        fitted = {
            place: pair.similarity(fit, place in scaled, steps, learning_rate, seed)
            for place, pair in seen.items()
        }
        matrices = {place: matrix for place, (matrix, _) in fitted.items()}
        late += sum(not settled for _, settled in fitted.values())
        orders = solve(graph, values, matrices, models[reference], models[index])
        scales, silent = _scales(graph, free, seen, orders, fit, stream == "last")
        element = _balanced(graph, Element(orders, scales), models[reference], models[index])
        maps = {name: Permutation(order) for name, order in element.orders.items()}
        transports[index] = Transport(graph, maps, element.values)
        cosines = {place: pair.cosine for place, pair in seen.items()}
        costs += [Cost(index, *row, "mean cosine") for row in agreements(graph, values, cosines, orders)]
        if scales:
            low, high = (
                min(float(s.min()) for s in scales.values()),
                max(float(s.max()) for s in scales.values()),
            )
            notes.append(f"model {index}: {len(scales)} scales fitted, {low:.3g} to {high:.3g}")
        if silent:
            notes.append(f"model {index}: {silent} units answer nothing alike, their scale stays")
    if not free:
        notes.append("no space has a positive scale that its activations answer to: only orders were matched")
    if unseen := [name for name in graph.spaces if not values.get(name)]:
        notes.append(f"no value shows {', '.join(unseen)}: left in place")
    settings = {
        "fit": fit,
        "stream": stream,
        "limit": limit,
        "examples": found.examples,
        "steps": steps,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    status = f"{late} Sinkhorn fits were still improving after {steps} steps" if late else "converged"
    return Alignment(
        "relu-scaling", graph, tuple(transports), reference, tuple(costs), settings, tuple(notes), status
    )


def _balanced(
    graph: SymmetryGraph, element: Element, reference: Mapping[str, Tensor], model: Mapping[str, Tensor]
) -> Element:
    """An element, and then the scales that no activation showed: both models at their shortest weights."""
    unseen = {gauge.name for gauge in _positive(graph)} - element.values.keys()
    rest = replace(
        graph, refused={**graph.refused, **dict.fromkeys(graph.gauges.keys() - unseen, "not balanced")}
    )
    if not rest.gauges:
        return element
    ours, theirs = wide(graph, reference), element.apply(graph, wide(graph, model))
    return element.then(balance(rest, theirs), graph).then(balance(rest, ours).inverse(graph), graph)


@dataclass(frozen=True)
class _Pair:
    """Second moments of one value in the reference and in a model; float64, on the CPU."""

    ours: Float[Tensor, " n"]
    theirs: Float[Tensor, " n"]
    both: Float[Tensor, "n n"]
    joint: Float[Tensor, "n n"] | None

    @staticmethod
    def of(moments: Moments, column: int) -> _Pair:
        ours, theirs = ((moments.variance[i] + moments.mean[i].square()).double().cpu() for i in (0, column))
        joint = moments.second(column, column).cpu() if moments.request.blocks == "joint" else None
        return _Pair(ours, theirs, moments.second(0, column).double().cpu(), joint)

    @property
    def cosine(self) -> Float[Tensor, "n n"]:
        size = torch.outer(self.ours, self.theirs).sqrt()
        return torch.where(size > 0, self.both / size, 0.0)

    def similarity(
        self, fit: Fit, scaled: bool, steps: int, rate: float, seed: int
    ) -> tuple[Float[Tensor, "n n"], bool]:
        """What pairing each two units takes off the residual; without a scale, the inner product does.

        Returns:
            The similarity, and whether it is settled: a search may have ended too early.
        """
        if not scaled:
            return self.both, True
        if fit == "norms":
            return self.cosine, True
        if fit == "least-squares":
            return torch.where(self.theirs > 0, self.both.clamp_min(0).square() / self.theirs, 0.0), True
        return self._soft(steps, rate, seed)

    def _soft(self, steps: int, rate: float, seed: int) -> tuple[Float[Tensor, "n n"], bool]:
        """The doubly stochastic A of least E|x - A D y|^2 / E|x|^2, minus a tenth of |A| / |I|: nearly a corner."""
        assert self.joint is not None
        n = len(self.ours)
        total = self.ours.sum().clamp_min(1e-300)
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(n, n, generator=generator, dtype=torch.float64).requires_grad_()
        log = torch.zeros(n, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([scores, log], lr=rate)
        value = before = math.inf
        for step in range(steps):
            log.requires_grad_(step >= steps // 2)  # orders first, as in the source; then the scales as well
            matrix = sinkhorn_operator(scores) * log.exp()
            loss = (((matrix @ self.joint) * matrix).sum() - 2 * (matrix * self.both).sum()) / total
            loss = loss - 0.1 * sinkhorn_operator(scores).norm() / n**0.5
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            before, value = value, loss.item()
        return scores.detach(), abs(before - value) <= SETTLED * abs(value)


@dataclass(frozen=True)
class _Freedom:
    """A positive scale of a space, and the places at which its activations show it.

    Attributes:
        gauge: the freedom.
        places: where it is seen, in order of execution.
        power: of the scale that these values are multiplied by.
    """

    gauge: Gauge
    places: tuple[Place, ...]
    power: Fraction

    def views(self, vector: Tensor, term: Axis) -> Iterable[Tensor]:
        """A vector along a channel axis as (*outer units, units, rest), writable."""
        outer = len(self.gauge.within) + 1
        for _, view in exposed(vector, [term], 0, self.gauge.space, self.gauge.within):
            yield view.flatten(outer) if view.ndim > outer else view[..., None]


def _positive(graph: SymmetryGraph) -> list[Gauge]:
    """The scales of units; a whole group has none of its own where its units have theirs."""
    positive = [gauge for gauge in graph.gauges.values() if gauge.kind == "positive"]
    outer = {name for gauge in positive for name in gauge.within}
    return [gauge for gauge in positive if gauge.space not in outer]


def _freedoms(graph: SymmetryGraph, values: Mapping[str, Sequence[Place]]) -> list[_Freedom]:
    """The positive gauges that activations answer to where weights read them.

    What a weight reads is multiplied by the scale to the power that the weight divides it by.
    """
    found: list[_Freedom] = []
    for gauge in _positive(graph):
        readers = {(m.key, m.axis) for m in graph.spaces[gauge.space].members if m.role == "reads"}
        powers = {-slot.power for slot in gauge.slots if (slot.key, slot.axis) in readers}
        answering = graph.answering(gauge.name)
        places = tuple(place for place in values.get(gauge.space, ()) if place[0] in answering)
        if len(powers) == 1 and places:
            found.append(_Freedom(gauge, places, powers.pop()))
    return found


def _scales(
    graph: SymmetryGraph,
    free: Sequence[_Freedom],
    seen: Mapping[Place, _Pair],
    orders: Mapping[str, Tensor],
    fit: Fit,
    last: bool,
) -> tuple[dict[str, Tensor], int]:
    """The scale of every unit in its new place, per gauge, and how many units have none.

    A place that shows several scales (behind a depthwise convolution) gives the last of them, the others being known.
    """
    found: dict[str, Tensor] = {}
    silent = 0
    known: list[_Freedom] = []
    waiting = list(free)
    while ready := [f for f in waiting if _own(f, waiting)]:
        for freedom in ready:
            places = _own(freedom, waiting)
            tops, bottoms = [], []
            for place in places[-1:] if last else places:
                pair, term = seen[place], graph.values[place[0]][place[1]]
                columns = positions([term], 0, orders, graph.spaces).flatten()
                scale = torch.ones_like(pair.theirs)
                for other in known:
                    for view in other.views(scale, term) if place in other.places else ():
                        view.mul_((found[other.gauge.name] ** float(other.power))[..., None])
                paired = pair.both[torch.arange(len(columns)), columns] * scale
                under = pair.theirs[columns] * scale.square()
                # Units that answer nothing alike, or opposite, say nothing about their scale.
                alike = paired > ALIKE * (pair.ours * under).sqrt()
                over = torch.where(alike, pair.ours if fit == "norms" else paired, 0.0)
                tops += [view.sum(-1) for view in freedom.views(over, term)]
                bottoms += [view.sum(-1) for view in freedom.views(under, term)]
            top, bottom = torch.stack(tops).sum(0), torch.stack(bottoms).sum(0)
            says = (top > 0) & (bottom > 0)
            ratio = torch.where(says, top / bottom.clamp_min(1e-300), 1.0)
            root = Fraction(1, 2) if fit == "norms" else Fraction(1)
            found[freedom.gauge.name] = ratio ** float(root / freedom.power)
            silent += int((~says).sum())
        known += ready
        waiting = [f for f in waiting if f not in ready]
    return found, silent


def _own(freedom: _Freedom, waiting: Sequence[_Freedom]) -> list[Place]:
    """The places that show no other scale that is still to be found."""
    return [p for p in freedom.places if not any(p in f.places for f in waiting if f is not freedom)]
