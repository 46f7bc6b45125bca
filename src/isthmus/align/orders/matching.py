"""Coordinate ascent over spaces: one run of weight matching, and what comes of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from isthmus.align.alignment import identity_orders
from isthmus.align.orders.assignment import Evidence, Solver, best
from isthmus.align.orders.similarity import Similarity, Sums
from isthmus.align.orders.votes import Votes
from isthmus.align.orders.workers import Workers, workers
from isthmus.progress import task
from isthmus.symmetry import Space, SymmetryGraph

#: The smallest gain that counts, beside the norms of the weights that move: far above the rounding of float64.
LEAST = 1e-10

#: Bytes of evidence that spaces solved side by side may have together.
TOGETHER = 2**30


class Matching:
    """One run of weight matching: the current orders of a model, and the ascent.

    Args:
        graph: the symmetries.
        reference: weights of the model that stays.
        model: weights of the model that moves.
        seed: of the order in which spaces are visited.
        memory: GiB of evidence kept from sweep to sweep.
        threads: how many to use.
        solve: chooses the orders of a space, and of what is inside it, from the evidence.
        start: the orders to begin with; None for those that the model has.
    """

    def __init__(
        self,
        graph: SymmetryGraph,
        reference: Mapping[str, Tensor],
        model: Mapping[str, Tensor],
        seed: int,
        *,
        memory: float = 1.0,
        threads: int | None = None,
        solve: Solver = best,
        start: Mapping[str, Tensor] | None = None,
    ):
        self.graph, self.known = graph, graph.spaces
        self.votes = Votes(graph, reference, model)
        self.similarity = Similarity(self.votes, memory * 2**30)
        self.threads, self.solve = threads, solve
        self.orders = identity_orders(graph) | {n: o for n, o in (start or {}).items() if n in self.known}
        self.generator = torch.Generator().manual_seed(seed)
        self.start = self.objective = float("nan")
        self.sweeps = self.solved = 0
        self.converged = False
        self._dots: dict[str, tuple[float, float, float]] = {}
        self._after: dict[str, float] = {}
        # Space -> the orders that it was last solved for: it is solved again when one of them is another.
        self._seen: dict[str, dict[str, Tensor]] = {}

    def run(self, max_sweeps: int, label: str = "weight matching") -> Matching:
        """Sweep until nothing changes."""
        with workers(self.threads) as pool:
            dots = pool.map(self.votes.dots, self.votes.keys)
            self._dots = dict(zip(self.votes.keys, dots, strict=True))
            self.start = self.objective = sum(dot[0] for dot in dots)  # of the model as it came
            while not self.converged and self.sweeps < max_sweeps:
                self.sweeps += 1
                self.converged = not self._sweep(pool, f"{label}, sweep {self.sweeps}")
            moved = pool.map(lambda key: self.votes.dots(key, self.orders)[0], self.votes.keys)
            self._after = dict(zip(self.votes.keys, moved, strict=True))
            self.objective = sum(moved)
        return self

    def _sweep(self, pool: Workers, label: str) -> bool:
        """Visit every space once; whether any moved."""
        names = list(self.known)
        order = torch.randperm(len(names), generator=self.generator).tolist()
        changed = False
        with task(label, total=len(names), unit="spaces") as advance:
            for wave in self._waves([names[i] for i in order]):
                stale = [name for name in wave if not self._is_fresh(name)]
                advance(len(wave) - len(stale))
                for batch in self._batches(stale):
                    changed |= self._step(pool, batch)
                    advance(len(batch))
        return changed

    def _waves(self, names: Sequence[str]) -> list[list[str]]:
        """The same visits in rounds of spaces that do not depend on each other.

        A space comes in the round after the last of those before it that it shares a weight with: visiting
        round by round gives what visiting one by one does.
        """
        reads, writes = self.similarity.reads, self.similarity.writes
        latest: dict[str, int] = {}  # space -> the last round that reads or moves it
        moved: dict[str, int] = {}  # space -> the last round that moves it
        waves: list[list[str]] = []
        for name in names:
            after = [moved.get(n, -1) for n in reads[name]] + [latest.get(n, -1) for n in writes[name]]
            turn = max(after, default=-1) + 1
            if turn == len(waves):
                waves.append([])
            waves[turn].append(name)
            for n in reads[name] | writes[name]:
                latest[n] = max(latest.get(n, -1), turn)
            for n in writes[name]:
                moved[n] = max(moved.get(n, -1), turn)
        return waves

    def _batches(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Runs of spaces whose evidence fits into memory together."""
        batch: list[str] = []
        filled = 0
        for name in names:
            size = self.similarity.size(name)
            if batch and filled + size > TOGETHER:
                yield batch
                batch, filled = [], 0
            batch.append(name)
            filled += size
        if batch:
            yield batch

    def _is_fresh(self, name: str) -> bool:
        """Whether nothing that a space depends on has moved since it was solved."""
        seen = self._seen.get(name)
        return seen is not None and all(self.orders[n] is order for n, order in seen.items())

    def _step(self, pool: Workers, names: Sequence[str]) -> bool:
        """Solve spaces that do not depend on each other; keep each solution where it is better."""
        plans = {name: self.similarity.plan(name, self.orders) for name in names}
        tasks = [(name, shares) for name in names for shares in plans[name][1]]
        sums = pool.map(lambda item: self.similarity.add(*item, self.orders), tasks)
        by_name: dict[str, list[Sums]] = {name: [] for name in names}
        for (name, _), found in zip(tasks, sums, strict=True):
            by_name[name].append(found)

        def settle(name: str) -> dict[str, Tensor] | None:
            evidence = self.similarity.finish(name, plans[name][0], by_name.pop(name), self.orders)
            return self._better(self.solve(self.known[name], evidence))

        changed = False
        for name, better in zip(names, pool.map(settle, names), strict=True):
            self.solved += 1
            self._seen[name] = self.similarity.dependencies(name, self.orders)
            if better is not None:
                self.orders |= better
                changed = True
        return changed

    def _better(self, found: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The orders of a solution that differ from the present ones, if they gain in float64."""
        differ = {n: order for n, order in found.items() if not torch.equal(order, self.orders[n])}
        if not differ:
            return None
        keys = list(dict.fromkeys(m.key for n in differ for m in self.similarity.members[n]))
        norms = sum((self._dots[key][1] * self._dots[key][2]) ** 0.5 for key in keys)
        gain = self.votes.gain(keys, self.orders, {**self.orders, **differ})
        return differ if gain > LEAST * norms else None

    def evidence(self, space: Space, orders: Mapping[str, Tensor] | None = None) -> Evidence:
        """Inner products of the reference's and the model's weights, unit by unit."""
        return self.similarity.evidence(space.name, self.orders if orders is None else orders)

    def share(self, keys: Collection[str]) -> float:
        """Which part of the squared weights of both models some of the weights make up."""
        squares = {key: dot[1] + dot[2] for key, dot in self._dots.items()}
        return sum(squares.get(key, 0.0) for key in keys) / max(sum(squares.values()), 1e-300)

    def costs(self) -> Iterable[tuple[str, float, float]]:
        """Per space: cosine of its writers' weights, before and after."""
        return _cosines(self.graph, self._dots, self._after)


def cosines(
    graph: SymmetryGraph,
    reference: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    orders: Mapping[str, Tensor],
) -> Iterator[tuple[str, float, float]]:
    """Per space: cosine of its writers' weights in two models, before one of them is reordered and after."""
    votes = Votes(graph, reference, model)
    dots = {key: votes.dots(key) for key in votes.keys}
    return _cosines(graph, dots, {key: votes.dots(key, orders)[0] for key in votes.keys})


def _cosines(
    graph: SymmetryGraph, dots: Mapping[str, tuple[float, float, float]], after: Mapping[str, float]
) -> Iterator[tuple[str, float, float]]:
    for name, space in graph.spaces.items():
        keys = {m.key for m in space.members if m.role == "writes" and m.key in dots}
        if keys:
            before, ours, theirs = (sum(dots[key][i] for key in keys) for i in range(3))
            scale = max((ours * theirs) ** 0.5, 1e-30)
            yield name, before / scale, sum(after[key] for key in keys) / scale
