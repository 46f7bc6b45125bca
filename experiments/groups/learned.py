"""Alignment by gradient: the element of the full group at which the midpoint itself is best.

Orders stay as a matching has found them; rotations, changes of basis, scales and rotary planes move along the
gradient of the midpoint's loss on training windows. Both networks keep their functions throughout: what is
learned is only where the one stands beside the other.

Source: the learned matching of Theus et al., Generalized linear mode connectivity for transformers,
arXiv:2506.22712, who learn the orders too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus
from isthmus.symmetry import Element, Gauge, around_ones

State = dict[str, Tensor]
BATCH, STEPS = 16, 300
#: Of Adam, on the elements and on the weights: the better of 3e-3 and 1e-2 by validation; as trained.
LR, TUNE = 1e-2, 1e-3


def learn(
    graph: isthmus.SymmetryGraph,
    model: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    windows: Sequence[tuple[Tensor, Tensor]],
    steps: int = STEPS,
    lr: float = LR,
    seed: int = 0,
) -> tuple[State, list[str]]:
    """Move the second of two networks within its group, to where the midpoint's loss is least.

    Args:
        graph: the symmetries of these weights.
        model: the architecture.
        states: the network that stays and the one that moves.
        windows: inputs and targets to learn on.
        steps: of Adam, 16 windows each.
        lr: its learning rate, falling linearly to zero.
        seed: of the windows' order.

    Returns:
        The moved network, and what the midpoint lost on the way.
    """
    ours, theirs = states
    free = {name: _start(graph, gauge) for name, gauge in graph.gauges.items() if gauge.kind != "sign"}
    losses: list[float] = []
    for x, y in _lessons(windows, steps, list(free.values()), lr, seed):
        # An element is applied in place, to copies of the weights.
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            moved = _element(graph, free).apply(graph, theirs)
            middle = {key: (ours[key] + moved[key]) / 2 for key in ours}
            loss = _loss(model, middle, x, y)
            loss.backward()
        losses.append(loss.item())
    with torch.no_grad():
        moved = _element(graph, free).apply(graph, {key: value.double() for key, value in theirs.items()})
        result = {key: value.to(theirs[key]) for key, value in moved.items()}
    return result, [f"learned in {steps} steps, midpoint {losses[0]:.3f} -> {losses[-1]:.3f} nats"]


def tuned(model: nn.Module, weights: Mapping[str, Tensor], windows: Sequence[tuple[Tensor, Tensor]]) -> State:
    """The control: all weights, free of any group, learn from as many windows as `learn` sees."""
    free = {key: value.clone().requires_grad_() for key, value in weights.items()}
    for x, y in _lessons(windows, STEPS, list(free.values()), TUNE, 0):
        _loss(model, free, x, y).backward()
    return {key: value.detach() for key, value in free.items()}


def _lessons(
    windows: Sequence[tuple[Tensor, Tensor]], steps: int, free: Sequence[Tensor], lr: float, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches, with a step of Adam after each."""
    moving = torch.optim.Adam(free, lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(moving, lambda step: 1 - step / steps)
    inputs, targets = (torch.cat(part) for part in zip(*windows, strict=True))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(inputs), (BATCH,), generator=generator)
        moving.zero_grad(set_to_none=True)
        yield inputs[rows], targets[rows]
        moving.step()
        schedule.step()


def _loss(model: nn.Module, weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    logits = torch.func.functional_call(model, dict(weights), x)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def _start(graph: isthmus.SymmetryGraph, gauge: Gauge) -> Tensor:
    """Numbers, all zero at the identity, that stand for an element of a gauge."""
    families = [graph.spaces[outer].size for outer in gauge.within]
    shape: tuple[int, ...] = (gauge.size,)
    if gauge.kind in ("orthogonal", "invertible"):
        shape = (gauge.size, gauge.size)
    elif gauge.kind == "centred":
        shape = (gauge.size - 1, gauge.size - 1)
    elif gauge.kind == "planes":
        shape = (2, gauge.turned // 2)
    return torch.zeros(*families, *shape, requires_grad=True)


def _element(graph: isthmus.SymmetryGraph, free: Mapping[str, Tensor]) -> Element:
    values: dict[str, Tensor] = {}
    for name, numbers in free.items():
        kind = graph.gauges[name].kind
        if kind in ("orthogonal", "centred"):
            rotation = torch.matrix_exp(numbers - numbers.mT)
            values[name] = around_ones(rotation) if kind == "centred" else rotation
        elif kind == "invertible":
            values[name] = torch.matrix_exp(numbers)
        elif kind == "planes":
            values[name] = torch.polar(numbers[..., 0, :].exp(), numbers[..., 1, :])
        else:
            values[name] = numbers.exp()
    return Element({}, values)
