"""Sinkhorn re-basin: orders found by gradient descent through doubly stochastic matrices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Literal

import torch
from torch import Tensor

from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost, identity_orders, permutations
from isthmus.align.choices import check_choice
from isthmus.align.learned.doubly_stochastic import sinkhorn_operator
from isthmus.align.learned.labelled import Loss, Task
from isthmus.align.learned.relaxed import Relaxation, Soft
from isthmus.align.orders.matching import Matching, cosines
from isthmus.errors import InputError
from isthmus.program import Batch
from isthmus.progress import track
from isthmus.symmetry import SymmetryGraph, reorder

Objective = Literal["l2", "l1", "midpoint", "random-point"]


@ALIGNMENTS.register(
    "sinkhorn",
    needs=(),
    claims=("function-kept", "planted-found", "planted-exact", "seeded"),
    costs="gradient steps with a dense matrix per space, and runs of the network where the objective is a task's",
    source="Pena et al., Re-basin via implicit Sinkhorn differentiation, arXiv:2212.12042",
)
def sinkhorn(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    data: Iterable[object] | None = None,
    reference: int = 0,
    objective: Objective = "l2",
    start: Literal["identity", "weight-matching"] = "identity",
    loss: Loss = "cross-entropy",
    steps: int = 200,
    patience: int = 25,
    learning_rate: float = 0.1,
    temperature: float = 1.0,
    noise: float = 0.1,
    rounds: int = 20,
    held_out: float = 0.2,
    seed: int = 0,
) -> Alignment:
    """Match units by gradient descent on soft orders: any differentiable loss of the moved model can be minimised.

    Each space has a free matrix, made doubly stochastic by the Sinkhorn operator (in the log domain, differentiated
    implicitly), and the model's weights are moved by these soft orders. The matrices follow the gradient of the
    objective (AdamW). After each step they are rounded to orders by assignment on the free matrix, and the orders of
    the lowest objective are returned: for distances that of the weights, for a task its loss on held-out examples.

    Args:
        graph: the symmetries.
        models: state dicts; each is matched to the reference on its own.
        data: yields (inputs, targets), for the objectives of a task; read once and kept in memory.
        reference: index of the model that stays.
        objective: "l2" or "l1": mean squared or absolute difference of all parameters. "midpoint": the task's loss half
            way between the reference and the moved model. "random-point": at a fresh point of the segment each step.
        start: free matrices begin at the "identity" or at what "weight-matching" finds, with noise.
        loss: of the task: "cross-entropy" of class indices, or a function of (outputs, targets or None) to a scalar.
        steps: of gradient descent, at most.
        patience: stop after so many steps without better orders.
        learning_rate: of AdamW.
        temperature: divides the free matrices: the lower, the nearer to orders.
        noise: standard deviation of what is added to the start.
        rounds: of the Sinkhorn operator.
        held_out: share of the examples, the last ones, that the orders are chosen on.
        seed: of the noise, of the points and of the order of batches.

    Raises:
        InputError: a choice that does not exist, or data is missing for an objective of a task.
        DataError: the data has no targets.

    Source: Pena et al.; their code's defaults (rate 0.1, 20 rounds, noise 0.1, temperature 1), with the model moved
        where theirs moves the reference, the best orders kept where theirs keeps the last, and heads relaxed together
        with what is inside them (`isthmus.align.learned.relaxed`). The segment is a convex combination: theirs
        divides by 1 - t. Batch norms use the batch's statistics.
    """
    check_choice("objective", objective, ("l2", "l1", "midpoint", "random-point"))
    check_choice("start", start, ("identity", "weight-matching"))
    if min(steps, patience, rounds) < 1 or min(learning_rate, temperature) <= 0 or noise < 0:
        raise InputError(
            f"steps = {steps}, patience = {patience}, rounds = {rounds}, learning_rate = {learning_rate}, "
            f"temperature = {temperature} and noise = {noise} must be positive"
        )
    of_task = objective in ("midpoint", "random-point")
    if of_task and data is None:
        raise InputError(
            f"the objective {objective!r} needs labelled data", hint="pass data=, of (inputs, targets)"
        )
    states = [_wide(model) for model in models]
    task = (
        Task(graph.program, data, loss, held_out, states[reference]) if of_task and data is not None else None
    )
    transports, costs, notes, late, diverged = [], [], [], 0, 0
    for index, weights in enumerate(states):
        if index == reference:
            transports.append(permutations(graph, {}))
            continue
        search = _Search(graph, states[reference], weights, objective, task, temperature, rounds, seed)
        search.begin(start, noise)
        search.run(steps, patience, learning_rate, f"sinkhorn, model {index}")
        transports.append(permutations(graph, search.orders))
        rows = cosines(graph, states[reference], weights, search.orders)
        costs += [Cost(index, *row, "mean cosine") for row in rows]
        notes.append(
            f"model {index}: {objective} {search.first:.4g} -> {search.lowest:.4g}, best after step {search.found}"
        )
        late += search.lowest > 0 and search.found + patience > steps
        diverged += search.diverged
    problems = [f"{late} models were still getting closer after {steps} steps"] if late else []
    problems += [f"{diverged} searches diverged: the learning rate is too high"] if diverged else []
    notes += problems
    settings = {
        "objective": objective,
        "start": start,
        "loss": loss if isinstance(loss, str) else "given",
        "steps": steps,
        "patience": patience,
        "learning_rate": learning_rate,
        "temperature": temperature,
        "noise": noise,
        "rounds": rounds,
        "held_out": held_out,
        "seed": seed,
    }
    status = "; ".join(problems) or "converged"
    return Alignment(
        "sinkhorn", graph, tuple(transports), reference, tuple(costs), settings, tuple(notes), status
    )


def _wide(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of one floating dtype, which gradients can be taken in: float32, or float64 where there is any."""
    wide = any(w.dtype == torch.float64 for w in weights.values())
    dtype = torch.float64 if wide else torch.float32
    return {key: w.to(dtype) if w.is_floating_point() else w for key, w in weights.items()}


class _Search:
    """Free matrices on their way, and the best orders that they were rounded to.

    Attributes:
        orders: the best so far.
        first, lowest: the objective of the first orders, and of the best.
        found: the step that found the best.
        diverged: whether the matrices became no numbers; the orders found before stay.
    """

    def __init__(
        self,
        graph: SymmetryGraph,
        ours: Mapping[str, Tensor],
        theirs: Mapping[str, Tensor],
        objective: Objective,
        task: Task | None,
        temperature: float,
        rounds: int,
        seed: int,
    ):
        self.graph, self.objective, self.task = graph, objective, task
        self.temperature, self.rounds, self.seed = temperature, rounds, seed
        self.relaxation = Relaxation(graph)
        self.generator = torch.Generator().manual_seed(seed)
        named = graph.program.weights
        self.ours = {named[n]: w.detach() for n, w in graph.program.lookup(ours).items()}
        self.theirs = {named[n]: w.detach() for n, w in graph.program.lookup(theirs).items()}
        silent = graph.program.buffers | graph.ones
        self.voting = [key for key in graph.layout if key not in silent]
        self.count = sum(self.ours[key].numel() for key in self.voting)
        self.like = next((self.ours[key] for key in self.voting), torch.zeros(()))
        self.free: Soft = {}
        self.orders: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}
        self.first = self.lowest = float("inf")
        self.found = 0
        self.diverged = False

    def begin(self, start: str, noise: float) -> None:
        """Set the free matrices: one per pair of outer units for what is inside heads."""
        orders = identity_orders(self.graph)
        if start == "weight-matching":
            orders = Matching(self.graph, self.ours, self.theirs, self.seed).run(100).orders
        for name in self.graph.spaces:
            shape = self.relaxation.shape(name)
            matrix = self.like.new_zeros(shape)
            index = orders[name].to(matrix.device)
            if name in self.relaxation.outer:
                # Whichever heads meet, what is inside them begins as it does where they meet now.
                matrix = matrix.scatter(-1, index[:, None, :, None].expand(*shape[:-1], 1), 1.0)
            else:
                matrix = matrix.scatter(-1, index[..., None], 1.0)
            drawn = torch.randn(shape, generator=self.generator, dtype=matrix.dtype)
            self.free[name] = (matrix + noise * drawn.to(matrix.device)).requires_grad_()
        self._keep(orders, 0)
        self.first = self.lowest

    def run(self, steps: int, patience: int, rate: float, label: str) -> None:
        """Follow the gradient; round after each step."""
        optimiser = torch.optim.AdamW(self.free.values(), lr=rate)
        batches = cycle(self._batches())
        for step in track(range(1, steps + 1), label, unit="steps"):
            if self.lowest == 0 or step - self.found > patience:
                break
            optimiser.zero_grad(set_to_none=True)
            with torch.enable_grad():
                self._soft_loss(next(batches)).backward()
            optimiser.step()
            if not all(bool(free.square().sum().isfinite()) for free in self.free.values()):
                self.diverged = True
                return
            with torch.no_grad():
                self._keep(self.relaxation.best(self.free), step)

    def _batches(self) -> Iterator[Batch | None]:
        if self.task is None:
            yield None
            return
        for at in torch.randperm(len(self.task.batches), generator=self.generator).tolist():
            yield self.task.batches[at]

    def _soft(self) -> Soft:
        """The doubly stochastic matrices; those inside pairs of outer units times what the pair has."""
        found = {n: sinkhorn_operator(free / self.temperature, self.rounds) for n, free in self.free.items()}
        for name, outer in self.relaxation.outer.items():
            found[name] = found[outer][..., None, None] * found[name]
        return found

    def _soft_loss(self, batch: Batch | None) -> Tensor:
        moved = self.relaxation.apply({key: self.theirs[key] for key in self.voting}, self._soft())
        if self.task is None or batch is None:
            return self._distance(moved)
        share = 0.5
        if self.objective == "random-point":
            share = float(torch.rand((), generator=self.generator))
        # Running statistics are not used: batch norms look at the batch.
        whole = dict(self.ours)
        for key in self.voting:
            whole[key] = torch.lerp(self.ours[key], moved.get(key, self.theirs[key]), share)
        return self.task(whole, batch)

    def _distance(self, moved: Mapping[str, Tensor]) -> Tensor:
        differences = [self.ours[key] - moved.get(key, self.theirs[key]) for key in self.voting]
        power = 2 if self.objective == "l2" else 1
        return torch.stack([d.abs().pow(power).sum() for d in differences]).sum() / self.count

    def _keep(self, orders: dict[str, Tensor], step: int) -> None:
        """Look at rounded orders, and keep them if they are the best."""
        if self.last and all(torch.equal(orders[n], o) for n, o in self.last.items()):
            return
        self.last = orders
        layout, known = self.graph.layout, self.graph.spaces
        moved = {
            k: reorder(w, layout[k], orders, known) if k in layout else w for k, w in self.theirs.items()
        }
        if self.task is None:
            value = float(self._distance(moved))
        else:
            middle = {
                k: torch.lerp(w, moved[k], 0.5) if w.is_floating_point() else w for k, w in self.ours.items()
            }
            value = self.task.held_loss(middle)
        if value < self.lowest or not self.orders:
            self.orders, self.lowest, self.found = orders, value, step
