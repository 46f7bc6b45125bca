"""Weight matching: one space at a time, the assignment that brings the weights closest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost, identity_orders, permutations
from isthmus.align.assignment import Evidence, agreement, inside, opened
from isthmus.errors import InputError
from isthmus.progress import track
from isthmus.symmetry import Axis, Leaf, Space, SymmetryGraph, reorder, spaces_of


@ALIGNMENTS.register(
    "weight-matching",
    needs=(),
    claims=("function-kept", "planted-found", "seeded"),
    source="Ainsworth et al., Git Re-Basin, arXiv:2209.04836, section 3.2",
)
def weight_matching(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    reference: int = 0,
    seed: int = 0,
    restarts: int = 1,
    max_sweeps: int = 100,
) -> Alignment:
    """Match units by their weights: coordinate ascent of the inner product of all parameters.

    For one space after another, in a fresh random order each sweep, the assignment that maximises
    the summed inner product of the reference's and the model's weights, all other spaces held where they are;
    until a sweep changes nothing. A local search: with several restarts the best is kept.

    Running statistics move with their channels but do not vote: they are no parameters, and their
    scale would drown the others. A space of heads or groups is matched together with what is
    inside each (the best order inside for every pair of heads).

    Args:
        graph: the symmetries.
        models: state dicts; each is matched to the reference on its own.
        reference: index of the model that stays.
        seed: of the order in which spaces are visited.
        restarts: number of seeds to try, seed, seed + 1, ...; the best objective wins.
        max_sweeps: give up after this many sweeps.

    Source: Git Re-Basin, algorithm 1; we differ in leaving running statistics out (as the
        paper does and some ports do not), and in matching two levels at once.
    """
    if restarts < 1 or max_sweeps < 1:
        raise InputError(f"restarts = {restarts} and max_sweeps = {max_sweeps} must be at least 1")
    transports, costs, notes = [], [], []
    status = "converged"
    for index, weights in enumerate(models):
        if index == reference:
            transports.append(permutations(graph, {}))
            continue
        runs = [
            Matching(graph, models[reference], weights, seed + restart).run(max_sweeps)
            for restart in range(restarts)
        ]
        best = max(runs, key=lambda run: run.objective)
        if not best.converged:
            status = f"stopped after {max_sweeps} sweeps"
        notes.append(
            f"model {index}: {best.sweeps} sweeps, objective {best.start:.6g} -> {best.objective:.6g}"
        )
        transports.append(permutations(graph, best.orders))
        costs += [Cost(index, *row, "mean cosine") for row in best.costs()]
    settings = {"seed": seed, "restarts": restarts, "max_sweeps": max_sweeps}
    return Alignment(
        "weight-matching", graph, tuple(transports), reference, tuple(costs), settings, tuple(notes), status
    )


class Matching:
    """One run of weight matching: the current orders of a model, and the ascent."""

    def __init__(
        self,
        graph: SymmetryGraph,
        reference: Mapping[str, Tensor],
        model: Mapping[str, Tensor],
        seed: int,
    ):
        self.graph, self.known = graph, graph.spaces
        voting = [key for key in graph.layout if key not in graph.program.buffers]
        found = graph.program.lookup(reference), graph.program.lookup(model)
        names = graph.program.keys
        self.ours = {key: _real(found[0][names[key]]) for key in voting}
        self.theirs = {key: _real(found[1][names[key]]) for key in voting}
        self.members = {
            name: list(dict.fromkeys((m.key, m.axis) for m in space.members if m.key in self.ours))
            for name, space in graph.spaces.items()
        }
        self.orders = identity_orders(graph)
        self.generator = torch.Generator().manual_seed(seed)
        self.start = self.objective = self._value(self.ours)
        self.sweeps = 0
        self.converged = False

    def run(self, max_sweeps: int, label: str = "weight matching") -> Matching:
        """Sweep until nothing changes."""
        names = list(self.known)
        while not self.converged and self.sweeps < max_sweeps:
            self.sweeps += 1
            order = torch.randperm(len(names), generator=self.generator).tolist()
            shown = track(order, f"{label}, sweep {self.sweeps}", unit="spaces")
            changed = [self._step(self.known[names[i]]) for i in shown]
            self.converged = not any(changed)
        self.objective = self._value(self.ours)
        return self

    def _step(self, space: Space) -> bool:
        """Solve one space; keep the solution where it is better."""
        evidence = self.evidence(space)
        order, orders = evidence.solve()
        if not evidence.inner:
            old = agreement(evidence.direct, self.orders[space.name]).sum().item()
            new = agreement(evidence.direct, order).sum().item()
            # The smallest step that counts, relative to what rounding can fake.
            if new <= old + 1e-7 * max(abs(old), abs(new)) + 1e-12:
                return False
            self.orders[space.name] = order
            return True
        keys = {key for name in (space.name, *orders) for key, _ in self.members[name]}
        before, saved = self._value(keys), dict(self.orders)
        self.orders |= {space.name: order, **orders}
        after = self._value(keys)
        if after <= before + 1e-7 * max(abs(before), abs(after)) + 1e-12:
            self.orders = saved
            return False
        return True

    def evidence(self, space: Space, orders: Mapping[str, Tensor] | None = None) -> Evidence:
        """Inner products of the reference's and the model's weights, unit by unit."""
        current = self.orders if orders is None else orders
        within = inside(space, self.known)
        sizes = [self.known[outer].size for outer in space.within]
        held = {n: o for n, o in current.items() if n != space.name and n not in within}
        sample = next(iter(self.ours.values()))
        direct = sample.new_zeros(*sizes, space.size, space.size)
        inner: dict[str, Tensor] = {}
        for key, axis in self.members[space.name]:
            axes = self.graph.layout[key]
            ours, theirs = self.ours[key], self.theirs[key]
            theirs = reorder(theirs, axes, held, self.known)
            if sum(space.name in spaces_of(a) for a in axes) > 1:
                # A weight that carries the space twice: its other axis stays in its present order.
                theirs = reorder(theirs, axes, {space.name: current[space.name]}, self.known, skip=axis)
                axes = [a if i == axis else Leaf(a.size) for i, a in enumerate(axes)]
            carried = [n for n in within if any(n in spaces_of(a) for a in axes)]
            if len(carried) == 1:
                _add_pairs(inner, carried[0], ours, theirs, axes, space.name)
                continue
            wanted = [*space.within, space.name]
            for mine, other in zip(opened(ours, axes, wanted), opened(theirs, axes, wanted), strict=True):
                direct += mine @ other.mT
        return Evidence(direct, inner)

    def _value(self, keys: Iterable[str]) -> float:
        """Inner product of the parameters under the present orders."""
        total = 0.0
        for key in keys:
            moved = reorder(self.theirs[key], self.graph.layout[key], self.orders, self.known)
            total += torch.dot(self.ours[key].flatten(), moved.flatten()).item()
        return total

    def costs(self) -> Iterable[tuple[str, float, float]]:
        """Per space: cosine of its writers' weights, before and after."""
        start = identity_orders(self.graph)
        for name, space in self.known.items():
            keys = {m.key for m in space.members if m.role == "writes" and m.key in self.ours}
            if keys:
                yield name, self._cosine(keys, start), self._cosine(keys, self.orders)

    def _cosine(self, keys: Iterable[str], orders: Mapping[str, Tensor]) -> float:
        dot = ours = theirs = 0.0
        for key in keys:
            a = self.ours[key]
            b = reorder(self.theirs[key], self.graph.layout[key], orders, self.known)
            dot += (a * b).sum().item()
            ours += a.square().sum().item()
            theirs += b.square().sum().item()
        return dot / max((ours * theirs) ** 0.5, 1e-30)


def _add_pairs(
    inner: dict[str, Tensor],
    name: str,
    ours: Tensor,
    theirs: Tensor,
    axes: Sequence[Axis],
    outer: str,
) -> None:
    """Add the similarities inside every pair of outer units that one weight shows."""
    wanted = [outer, name]
    for mine, other in zip(opened(ours, axes, wanted), opened(theirs, axes, wanted), strict=True):
        o, i, _ = mine.shape
        pairs = (mine.flatten(0, 1) @ other.flatten(0, 1).mT).view(o, i, o, i).permute(0, 2, 1, 3)
        inner[name] = inner[name] + pairs if name in inner else pairs


def _real(tensor: Tensor) -> Tensor:
    """At least float32: half precision would decide ties by rounding."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
