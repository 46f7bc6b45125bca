"""Simulated annealing: random swaps of units, judged by the network that they merge to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost, identity_orders, permutations
from isthmus.align.choices import check_choice
from isthmus.align.learned.labelled import Loss, Task, mean_of
from isthmus.align.learned.rerun import Kept, Rerun
from isthmus.align.orders.matching import Matching, cosines
from isthmus.errors import InputError
from isthmus.program import Batch, logits_of
from isthmus.progress import track
from isthmus.symmetry import SymmetryGraph, reorder
from isthmus.symmetry.elements import compose_orders, invert_orders

Orders = dict[str, Tensor]

#: The first and the last temperature of Entezari et al., in points of accuracy, and the steps between.
ENTEZARI = (25000.0, 2.5, 50000)

#: The energy of a merged network whose answers are not numbers: no move leads there, any leads away.
BROKEN = 1e30

#: Moves that are tried, and not made, to see how much one changes.
PROBES = 100


@ALIGNMENTS.register(
    "annealing",
    needs=("data", "targets"),
    claims=("function-kept", "planted-found", "planted-exact", "seeded"),
    costs="a run of the network behind the swap on up to `limit` examples, twice per move",
    source="Entezari et al., The role of permutation invariance in linear mode connectivity, arXiv:2110.06296",
)
def annealing(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    data: Iterable[object] | None = None,
    reference: int = 0,
    variant: Literal["scaled", "entezari"] = "scaled",
    energy: Literal["accuracy", "loss"] | None = None,
    over: Literal["average", "pairs"] | None = None,
    start: Literal["identity", "weight-matching"] | None = None,
    loss: Loss = "cross-entropy",
    steps: int | None = None,
    limit: int | None = 500,
    held_out: float | None = None,
    seed: int = 0,
) -> Alignment:
    """Match units by simulated annealing on the barrier of the merged network.

    A move swaps units; one that raises the energy is made with probability exp(-rise / temperature), and the
    temperature falls geometrically. The orders of the lowest energy met are returned. The energy is how much worse the
    merged network is than its parents are on average.

    Args:
        graph: the symmetries.
        models: state dicts; all move together, so that of several models the common average is matched.
        data: yields (inputs, targets); read once and kept in memory.
        reference: index of the model that stays.
        variant: "scaled": begins at weight matching; a move swaps two units of one space of one model, and only what
            depends on it is run again; the temperature falls from the standard deviation of what 100 tried moves (at
            most half of `steps`) change to a hundredth of it; the search ends where the merged network is as good as
            its parents. "entezari": as published: begins at the identity; a move swaps two units in every space of
            every model; the temperature falls from 25000 to 2.5, so that, energies being points of accuracy, nearly
            every move is made.
        energy: by how much the "loss" rises, or the "accuracy" falls, in points. None: "loss", or "accuracy" for
            "entezari".
        over: the merged network is the "average" of all models, or that of each of the "pairs", and their mean counts.
            None: "average", or "pairs" for "entezari".
        start: "identity" or "weight-matching". None: what the variant says.
        loss: "cross-entropy" of class indices, or a function of (outputs, targets or None) to a scalar tensor.
        steps: number of moves. None: two per unit and model, at most 2000; 50000 for "entezari".
        limit: use at most this many examples; None for all.
        held_out: share of these, the last ones, that are not annealed on: where the start merges to a lower loss on
            them, it is kept. None: 0.2, or 0 for "entezari".
        seed: of the moves.

    Raises:
        DataError: the data is empty or has no targets.
        InputError: a choice that does not exist.

    Source: Entezari et al. and their code. Its second version, the error of the average of all models on the first
        batch alone, is variant="entezari", over="average" with one batch as data.
    """
    if data is None:
        raise InputError("annealing needs calibration data", hint="pass data=, of (inputs, targets)")
    faithful = variant == "entezari"
    energy = energy or ("accuracy" if faithful else "loss")
    over = over or ("pairs" if faithful else "average")
    start = start or ("identity" if faithful else "weight-matching")
    for name, value, choices in (
        ("variant", variant, ("scaled", "entezari")),
        ("energy", energy, ("accuracy", "loss")),
        ("over", over, ("average", "pairs")),
        ("start", start, ("identity", "weight-matching")),
    ):
        check_choice(name, value, choices)
    units = sum(space.size for space in graph.spaces.values()) * (len(models) - 1)
    count = steps if steps is not None else ENTEZARI[2] if faithful else min(2 * units, 2000)
    if steps is not None and steps < 1:
        raise InputError(f"steps = {steps} must be at least 1")
    share = held_out if held_out is not None else 0.0 if faithful else 0.2
    task = Task(graph.program, data, loss, share, models[reference], limit=limit)
    state = _State(graph, models, task, energy, over == "pairs")
    if start == "weight-matching":
        state.begin(reference, seed)
    begun = list(state.orders)
    walk = _Walk(state, torch.Generator().manual_seed(seed))
    if faithful:
        walk.run(count, ENTEZARI[0], ENTEZARI[1], every=True)
    elif count:
        walk.anneal(count, [i for i in range(len(models)) if i != reference])
    kept = bool(share) and bool(walk.found) and state.held_loss(begun) < state.held_loss(walk.best)
    orders = _from_reference(graph, begun if kept else walk.best, reference)
    transports = [permutations(graph, {} if i == reference else own) for i, own in enumerate(orders)]
    costs = [
        Cost(i, *row, "mean cosine")
        for i, own in enumerate(orders)
        if i != reference
        for row in cosines(graph, models[reference], models[i], own)
    ]
    walked = f"{walk.first:.4g} at the start, {walk.lowest:.4g} after step {walk.found} of {walk.taken}"
    notes = [f"barrier in {energy} over {over}: {walked}; {walk.accepted} moves made"]
    notes += ["on held-out examples the start merges better: it is kept"] if kept else []
    late = not faithful and walk.lowest > state.least and walk.found > 0.95 * count
    if late:
        notes.append("the energy still fell when the steps ran out: not converged")
    settings = {
        "variant": variant,
        "energy": energy,
        "over": over,
        "start": start,
        "loss": loss if isinstance(loss, str) else "given",
        "steps": count,
        "limit": limit,
        "held_out": share,
        "examples": sum(batch.size for batch in task.batches),
        "seed": seed,
    }
    status = f"stopped after {count} steps" if late else "converged"
    return Alignment(
        "annealing", graph, tuple(transports), reference, tuple(costs), settings, tuple(notes), status
    )


@dataclass
class _Mean:
    """One merged network.

    Attributes:
        members: the models that it is the mean of.
        weights: its own.
        kept: activations that later runs begin at.
        barrier: how much worse it is than its members are on average.
    """

    members: tuple[int, ...]
    weights: dict[str, Tensor]
    kept: list[Kept]
    barrier: float


@dataclass
class _Move:
    """Other orders of some models.

    Attributes:
        orders: model -> its new orders.
        placed: model -> its weights in them.
        means: all merged networks, as they would be.
    """

    orders: Mapping[int, Orders]
    placed: Mapping[int, dict[str, Tensor]]
    means: list[_Mean]

    @property
    def energy(self) -> float:
        return sum(mean.barrier for mean in self.means) / len(self.means)


class _State:
    """The orders of all models, the merged networks and their energy."""

    def __init__(
        self,
        graph: SymmetryGraph,
        models: Sequence[Mapping[str, Tensor]],
        task: Task,
        energy: str,
        pairs: bool,
    ):
        self.graph, self.known, self.task, self.by_loss = graph, graph.spaces, task, energy == "loss"
        named = graph.program.weights
        self.models = [{named[n]: w.detach() for n, w in graph.program.lookup(m).items()} for m in models]
        self.inside = {
            name: [n for n, space in self.known.items() if name in space.within] for name in self.known
        }
        #: Space -> the weights that a swap of its units changes.
        self.keys = {
            name: {m.key for n in (name, *self.inside[name]) for m in self.known[n].members}
            for name in self.known
        }
        self.run = Rerun(graph.program, task.batches, self.keys, task.norms)
        self.orders: list[Orders] = [identity_orders(graph) for _ in models]
        self.placed = [dict(model) for model in self.models]
        self.parents = [self.run(model, self.judge)[0] for model in self.models]
        #: A barrier that is rounding.
        self.least = 1e-6 * max(self.parents)
        count = len(models)
        groups = itertools.combinations(range(count), 2) if pairs else [tuple(range(count))]
        self.means = [self._mean(tuple(members)) for members in groups]

    def judge(self, output: object, batch: Batch) -> Tensor:
        """The loss of some outputs, or their errors in per cent."""
        if self.by_loss:
            return self.task.of(output, batch)
        assert batch.targets is not None
        logits = logits_of(output)
        return 100 * (logits.argmax(-1) != batch.targets).double().mean()

    def begin(self, reference: int, seed: int) -> None:
        """Put every model where weight matching moves it."""
        for index, model in enumerate(self.models):
            if index != reference:
                self.orders[index] = Matching(self.graph, self.models[reference], model, seed).run(100).orders
                self.placed[index] = self._place(index, self.orders[index], self.graph.layout)
        self.means = [self._mean(mean.members) for mean in self.means]

    @property
    def energy(self) -> float:
        return sum(mean.barrier for mean in self.means) / len(self.means)

    def held_loss(self, orders: Sequence[Orders]) -> float:
        """The loss of the average of all models in some orders, on examples that nothing was fitted to."""
        layout = self.graph.layout
        return self.task.held_loss(mean_of([self._place(i, own, layout) for i, own in enumerate(orders)]))

    def swapped(self, orders: Orders, space: str, generator: torch.Generator) -> Orders:
        """The orders after a swap of two units; what is inside them goes with them."""
        order = orders[space].clone()
        outer = tuple(int(torch.randint(n, (), generator=generator)) for n in order.shape[:-1])
        pair = torch.randperm(order.shape[-1], generator=generator)[:2]
        order[outer][pair] = order[outer][pair.flip(0)]
        found = {**orders, space: order}
        for name in self.inside[space]:
            dim = self.known[name].within.index(space)
            index = torch.arange(order.shape[-1])
            index[pair] = pair.flip(0)
            found[name] = found[name].index_select(dim, index)
        return found

    def tried(self, moved: Mapping[int, Orders], part: str | None) -> _Move:
        """What other orders of some models lead to; `part` is the space that differs, if it is one."""
        keys = self.keys[part] if part is not None else set(self.graph.layout)
        placed = {index: self._place(index, orders, keys) for index, orders in moved.items()}
        means = [
            self._mean(mean.members, placed, part, keys, mean) if set(mean.members) & moved.keys() else mean
            for mean in self.means
        ]
        return _Move(moved, placed, means)

    def make(self, move: _Move) -> None:
        """Take a move."""
        for index, orders in move.orders.items():
            self.orders[index] = orders
            self.placed[index].update(move.placed[index])
        self.means = move.means

    def _mean(
        self,
        members: tuple[int, ...],
        moved: Mapping[int, Mapping[str, Tensor]] | None = None,
        part: str | None = None,
        keys: Collection[str] | None = None,
        before: _Mean | None = None,
    ) -> _Mean:
        weights = dict(before.weights if before is not None else self.models[members[0]])
        for key in weights if keys is None else weights.keys() & set(keys):
            if weights[key].is_floating_point():
                each = [(moved or {}).get(i, self.placed[i])[key] for i in members]
                weights[key] = torch.stack(each).mean(0)
        value, kept = self.run(weights, self.judge, part, None if before is None else before.kept)
        value = value if math.isfinite(value) else BROKEN
        barrier = value - sum(self.parents[i] for i in members) / len(members)
        return _Mean(members, weights, kept, barrier)

    def _place(self, index: int, orders: Orders, keys: Collection[str]) -> dict[str, Tensor]:
        """Some weights of one model in other orders; the rest of it as it is now."""
        layout = self.graph.layout
        return {
            **self.placed[index],
            **{k: reorder(self.models[index][k], layout[k], orders, self.known) for k in keys},
        }


class _Walk:
    """A walk over states that remembers the best.

    Attributes:
        best: orders of the lowest energy met.
        first, lowest: energy at the start, and the lowest.
        found, taken, accepted: the step that found the best, how many were taken, and how many moves made.
    """

    def __init__(self, state: _State, generator: torch.Generator):
        self.state, self.generator = state, generator
        self.best = list(state.orders)
        self.first = self.lowest = self.now = state.energy
        self.found = self.taken = self.accepted = 0

    def anneal(self, steps: int, movers: Sequence[int]) -> None:
        """From the spread of what moves change down to a hundredth of it; ends where nothing is left to gain."""
        if self.lowest <= self.state.least:
            return
        probes = range(min(PROBES, steps // 2 + 1))
        changes = [self._proposal(movers).energy - self.now for _ in probes]
        spread = float(torch.tensor(changes, dtype=torch.float64).std(correction=0))
        self.run(steps, max(spread, 1e-12), max(spread, 1e-12) / 100, movers=movers)

    def run(
        self, steps: int, hot: float, cold: float, movers: Sequence[int] = (), every: bool = False
    ) -> None:
        """Move, judge, accept or not; the temperature falls geometrically."""
        for step in track(range(1, steps + 1), "annealing", unit="moves"):
            temperature = hot * (cold / hot) ** ((step - 1) / max(steps - 1, 1))
            move = self._everywhere() if every else self._proposal(movers)
            rise = move.energy - self.now
            self.taken = step
            drawn = float(torch.rand((), generator=self.generator, dtype=torch.float64))
            if rise > 0 and drawn >= math.exp(-rise / temperature):
                continue
            self.accepted += 1
            self.state.make(move)
            self.now = move.energy
            if self.now < self.lowest:
                self.best, self.lowest, self.found = list(self.state.orders), self.now, step
            if self.lowest <= self.state.least and not every:
                return

    def _proposal(self, movers: Sequence[int]) -> _Move:
        """One swap in one space of one model; spaces are drawn by the number of their units."""
        state = self.state
        sizes = torch.tensor([float(state.orders[0][n].numel()) for n in state.known], dtype=torch.float64)
        space = list(state.known)[int(torch.multinomial(sizes, 1, generator=self.generator))]
        index = movers[int(torch.randint(len(movers), (), generator=self.generator))]
        return state.tried({index: state.swapped(state.orders[index], space, self.generator)}, space)

    def _everywhere(self) -> _Move:
        """A swap in every space of every model."""
        moved: dict[int, Orders] = {}
        for index, orders in enumerate(self.state.orders):
            moved[index] = orders
            for space in self.state.known:
                moved[index] = self.state.swapped(moved[index], space, self.generator)
        return self.state.tried(moved, None)


def _from_reference(graph: SymmetryGraph, orders: Sequence[Orders], reference: int) -> list[Orders]:
    """The same orders seen from a model that stays: all models turned together."""
    back = invert_orders(orders[reference], graph.spaces)
    return [compose_orders(own, back, graph.spaces) for own in orders]
