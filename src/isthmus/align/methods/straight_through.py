"""Straight-through matching: orders that follow weights which learn to make the merged network good."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost, permutations
from isthmus.align.choices import check_choice
from isthmus.align.learned.labelled import Loss, Task, mean_of
from isthmus.align.orders.matching import Matching, cosines
from isthmus.errors import InputError
from isthmus.progress import track
from isthmus.symmetry import SymmetryGraph


@ALIGNMENTS.register(
    "straight-through",
    needs=("data", "targets"),
    claims=("function-kept", "planted-found", "planted-exact", "seeded"),
    costs="a matching and a training step per batch and epoch, for each model",
    source="Ainsworth et al., Git Re-Basin, arXiv:2209.04836, section 3.3",
)
def straight_through(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    data: Iterable[object] | None = None,
    reference: int = 0,
    loss: Loss = "cross-entropy",
    parametrisation: Literal["endpoint", "midpoint"] = "endpoint",
    projection: Literal["inner-product", "l2"] = "inner-product",
    epochs: int = 5,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    held_out: float = 0.2,
    max_sweeps: int = 100,
    seed: int = 0,
) -> Alignment:
    """Match units by what the merged network learns: a step of training, then the nearest order of the model.

    Free weights begin as the reference's and learn by gradient descent. Before each step the model is matched to
    them by weight matching, which begins where it last was. The loss is that of the merged network, half the
    reference and half the matched model; its gradient goes straight through the matching to the free weights. Of all
    orders met, those whose merged network has the lowest loss on held-out examples are returned; the first ones met
    are those of plain weight matching, so that on these examples it is never worse.

    Args:
        graph: the symmetries.
        models: state dicts; each is matched to the reference on its own.
        data: yields (inputs, targets); read once and kept in memory.
        reference: index of the model that stays.
        loss: "cross-entropy" of class indices, or a function of (outputs, targets or None) to a scalar tensor.
        parametrisation: whether the free weights stand for the model that is looked for ("endpoint", as in the
            paper), or for the merged network itself ("midpoint").
        projection: to which orders the free weights are projected: those of the largest inner product with them, or of
            the least distance ("l2") of what they stand for. For an endpoint these are the same, as reordering keeps
            lengths; a midpoint is matched itself, or twice itself less the reference.
        epochs: passes over the data.
        learning_rate: of gradient descent.
        momentum: of gradient descent.
        held_out: share of the examples, the last ones, that the orders are chosen on.
        max_sweeps: of each matching.
        seed: of the order of batches and of the spaces visited.

    Raises:
        DataError: the data is empty or has no targets.
        InputError: a choice that does not exist.

    Source: Git Re-Basin, section 3.3. The released code keeps the orders of the smallest loss on a training batch; we
        choose on held-out examples. Batch norms use the batch's statistics (the paper's networks have none).
    """
    if data is None:
        raise InputError("straight-through needs calibration data", hint="pass data=, of (inputs, targets)")
    check_choice("parametrisation", parametrisation, ("endpoint", "midpoint"))
    check_choice("projection", projection, ("inner-product", "l2"))
    if epochs < 1 or max_sweeps < 1 or learning_rate <= 0 or not 0 <= momentum < 1:
        raise InputError(
            f"epochs = {epochs}, max_sweeps = {max_sweeps}, learning_rate = {learning_rate}, momentum = {momentum}",
            hint="the first three must be positive, the last at least 0 and below 1",
        )
    task = Task(graph.program, data, loss, held_out, models[reference])
    transports, notes, stopped, diverged = [], [], 0, 0
    costs: list[Cost] = []
    for index, weights in enumerate(models):
        if index == reference:
            transports.append(permutations(graph, {}))
            continue
        learner = _Learner(
            graph,
            models[reference],
            weights,
            task,
            parametrisation == "midpoint",
            projection == "l2",
            max_sweeps,
        )
        learner.run(epochs, learning_rate, momentum, seed, f"straight-through, model {index}")
        transports.append(permutations(graph, learner.orders))
        rows = cosines(graph, models[reference], weights, learner.orders)
        costs += [Cost(index, *row, "mean cosine") for row in rows]
        notes.append(
            f"model {index}: {learner.steps} steps, {learner.met} orders met, held-out loss of the midpoint "
            f"{learner.first:.4g} by weight matching -> {learner.lowest:.4g}"
        )
        stopped += learner.unfinished
        diverged += learner.diverged
    problems = [f"{stopped} matchings stopped after {max_sweeps} sweeps"] if stopped else []
    problems += [f"{diverged} searches diverged: the learning rate is too high"] if diverged else []
    notes += problems
    settings = {
        "loss": loss if isinstance(loss, str) else "given",
        "parametrisation": parametrisation,
        "projection": projection,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "held_out": held_out,
        "max_sweeps": max_sweeps,
        "seed": seed,
        "examples": sum(b.size for b in task.batches),
        "examples_held_out": sum(b.size for b in task.held),
    }
    status = "; ".join(problems) or "converged"
    return Alignment(
        "straight-through", graph, tuple(transports), reference, tuple(costs), settings, tuple(notes), status
    )


class _Learner:
    """Free weights on their way, and the best orders that the model was in.

    Attributes:
        orders: the best so far.
        first, lowest: held-out loss of the midpoint by plain weight matching, and by the best orders.
        steps, met: how many were taken, and how many different orders were met.
        unfinished: matchings that did not converge.
        diverged: whether the free weights became no numbers; what was met before stays.
    """

    def __init__(
        self,
        graph: SymmetryGraph,
        ours: Mapping[str, Tensor],
        theirs: Mapping[str, Tensor],
        task: Task,
        midpoint: bool,
        l2: bool,
        max_sweeps: int,
    ):
        self.graph, self.task, self.midpoint, self.l2 = graph, task, midpoint, l2
        self.ours, self.theirs = _own(graph, ours), _own(graph, theirs)
        self.max_sweeps = max_sweeps
        learned = [
            k for k, w in self.ours.items() if w.is_floating_point() and k not in graph.program.buffers
        ]
        self.free = {key: self.ours[key].clone().requires_grad_() for key in learned}
        self.orders: dict[str, Tensor] = {}
        self.diverged = False
        self.steps = self.met = self.unfinished = 0
        self.first = self.lowest = float("inf")

    def run(self, epochs: int, rate: float, momentum: float, seed: int, label: str) -> None:
        """Match, take a step, and so on."""
        optimiser = torch.optim.SGD(self.free.values(), lr=rate, momentum=momentum)
        generator = torch.Generator().manual_seed(seed)
        order = [torch.randperm(len(self.task.batches), generator=generator).tolist() for _ in range(epochs)]
        matched = self._match(None, seed)
        moved = self._meet(matched)
        for at in track([i for epoch in order for i in epoch], label, unit="steps"):
            self.steps += 1
            optimiser.zero_grad(set_to_none=True)
            with torch.enable_grad():
                self.task(self._merged(moved, straight=True), self.task.batches[at]).backward()
            optimiser.step()
            if not all(bool(free.square().sum().isfinite()) for free in self.free.values()):
                self.diverged = True
                return
            again = self._match(matched, seed)
            if any(not torch.equal(again[name], matched[name]) for name in again):
                moved = self._meet(again)
            matched = again

    def _match(self, start: Mapping[str, Tensor] | None, seed: int) -> dict[str, Tensor]:
        """The orders that bring the model closest to the free weights."""
        target = {key: weight.detach() for key, weight in self.free.items()}
        if self.midpoint and self.l2:
            target = {key: 2 * weight - self.ours[key] for key, weight in target.items()}
        run = Matching(self.graph, {**self.ours, **target}, self.theirs, seed, start=start).run(
            self.max_sweeps
        )
        self.unfinished += not run.converged
        return run.orders

    def _meet(self, orders: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model in new orders, which are kept if they are the best."""
        moved = permutations(self.graph, orders).apply(self.theirs)
        loss = self.task.held_loss(self._merged(moved))
        self.met += 1
        if self.met == 1:
            self.first = loss
        if loss < self.lowest or not self.orders:
            self.orders, self.lowest = orders, loss
        return moved

    def _merged(self, moved: Mapping[str, Tensor], straight: bool = False) -> dict[str, Tensor]:
        """The midpoint; where it is to be learned from, with the free weights' gradients."""
        middle = mean_of([self.ours, moved])
        share = 1.0 if self.midpoint else 0.5
        if straight:
            middle |= {k: middle[k] + share * (free - free.detach()) for k, free in self.free.items()}
        return middle


def _own(graph: SymmetryGraph, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The program's weights, under its own keys."""
    found = graph.program.lookup(weights)
    return {graph.program.weights[name]: weight.detach() for name, weight in found.items()}
