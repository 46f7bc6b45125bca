"""The shortest weights of the same function: what a scale or a basis is free to be, it is made to be.

Scales, changes of basis and the sizes of rotary planes change how long the weights are and not what they compute.
On each such orbit the summed square of all weights is convex in the logarithm of the scales, so it has one
shortest point, up to rotations: there, what writes a unit is as long as what reads it. Two models that differ by such a
transformation have the same shortest point, up to permutations, signs and rotations, which are what is
left to match.

Source: Kempf and Ness, The length of vectors in representation spaces, 1979, for the shortest points; Neyshabur et
al., Path-SGD, arXiv:1506.02617, for balanced ReLU networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from isthmus.symmetry import Element, Gauge, SymmetryGraph, exposed

#: Sweeps over all gauges after which the balance is taken as it is.
SWEEPS = 200

#: Smallest share of its largest eigenvalue at which a direction counts as written or read.
FULL = 1e-9

#: The largest relative change of a scale that is rounding.
STILL = 1e-10


def balance(graph: SymmetryGraph, weights: Mapping[str, Tensor], sweeps: int = SWEEPS) -> Element:
    """The element that makes the weights shortest.

    Args:
        graph: whose gauges are used: "positive", "invertible" and "planes".
        weights: key -> tensor, in float64 for an exact result; buffers do not count.
        sweeps: give up after this many rounds.

    Returns:
        An element without orders. A scale that nothing opposes (before a batch norm) is chosen such that
        each unit has length one.
    """
    found = [g for g in graph.gauges.values() if g.kind in ("positive", "invertible", "planes")]
    # A scale per outer unit is nothing new where each unit inside has one of its own, in the same weights.
    chosen = [g for g in found if not any(_covers(other, g) for other in found)]
    current = {key: weights[key] for key in _keys(chosen) if key in weights}
    total = Element()
    for _ in range(sweeps):
        largest = 0.0
        for gauge in chosen:
            value, change = _step(graph, gauge, current)
            largest = max(largest, change)
            part = Element({}, {gauge.name: value})
            moved = part.apply(graph, current)
            current.update(moved)
            total = total.then(part, graph)
        if largest < STILL:
            break
    return total


def _covers(inner: Gauge, outer: Gauge) -> bool:
    """Whether scales of units inside hold those of the units that they are inside."""
    same = inner.kind == outer.kind == "positive" and set(inner.slots) == set(outer.slots)
    return same and outer.space in inner.within


def _keys(gauges: list[Gauge]) -> list[str]:
    return list(dict.fromkeys(slot.key for gauge in gauges for slot in gauge.slots))


def _step(graph: SymmetryGraph, gauge: Gauge, weights: Mapping[str, Tensor]) -> tuple[Tensor, float]:
    """The best value of one gauge, the others held, and how far it is from doing nothing."""
    if gauge.kind == "invertible":
        value = _middle(*_grams(graph, gauge, weights))
        eye = torch.eye(gauge.size, dtype=value.dtype, device=value.device)
        return value, float((value - eye).abs().max())
    lengths = _lengths(graph, gauge, weights)
    scale = _opposed(lengths)
    if gauge.kind == "planes":
        return torch.complex(scale, torch.zeros_like(scale)), float((scale - 1).abs().max())
    for lowest, highest in _limits(graph, gauge, weights):
        scale = scale.clamp(lowest, highest)
    return scale, float((scale - 1).abs().max())


def _lengths(graph: SymmetryGraph, gauge: Gauge, weights: Mapping[str, Tensor]) -> dict[float, Tensor]:
    """Power -> summed squares of all that takes the gauge with this power, per unit or plane."""
    found: dict[float, Tensor] = {}
    for slot in gauge.slots:
        if slot.key not in weights or slot.key in graph.program.buffers:
            continue
        axes = graph.layout[slot.key] if gauge.axes is None else gauge.axes[slot.key]
        views = exposed(weights[slot.key], axes, slot.axis, gauge.space, gauge.within)
        for occurrence, view in views:
            if occurrence != slot.occurrence:
                continue
            outer = len(gauge.within)
            squares = view.double().square()
            squares = squares.flatten(outer + 1).sum(-1) if view.ndim > outer + 1 else squares
            if gauge.kind == "planes":
                squares = squares[..., : gauge.turned]
                split = squares.unflatten(-1, (2, -1) if gauge.pairing == "halves" else (-1, 2))
                squares = split.sum(-2 if gauge.pairing == "halves" else -1)
            power = float(slot.power)
            found[power] = found[power] + squares if power in found else squares
    return found


def _opposed(lengths: Mapping[float, Tensor]) -> Tensor:
    """The positive d that minimises sum_p d^(2 p) n_p, per unit, by Newton's method on log d."""
    sample = next(iter(lengths.values()))
    up = {p: n for p, n in lengths.items() if p > 0}
    down = {p: n for p, n in lengths.items() if p < 0}
    high = sum(up.values(), torch.zeros_like(sample))
    low = sum(down.values(), torch.zeros_like(sample))
    if not up or not down:
        # Nothing opposes: each unit gets length one.
        power, total = next(iter((up or down).items()))
        return torch.where(total > 0, total.clamp_min(1e-300) ** (-0.5 / power), torch.ones_like(total))
    log = torch.zeros_like(sample)
    for _ in range(60):
        first = sum(2 * p * torch.exp(2 * p * log) * n for p, n in lengths.items())
        second = sum(4 * p * p * torch.exp(2 * p * log) * n for p, n in lengths.items())
        assert isinstance(first, Tensor)
        assert isinstance(second, Tensor)
        step = (first / second.clamp_min(1e-300)).clamp(-1, 1)
        log = log - step
        if float(step.abs().max()) < 1e-14:
            break
    # A unit that nothing writes, or nothing reads, has no balance.
    return torch.where((high > 0) & (low > 0), torch.exp(log), torch.ones_like(log))


def _limits(
    graph: SymmetryGraph, gauge: Gauge, weights: Mapping[str, Tensor]
) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """The smallest or largest scale that leaves each running variance positive."""
    for slot in gauge.slots:
        if not slot.offset or slot.key not in weights:
            continue
        views = exposed(weights[slot.key], graph.layout[slot.key], slot.axis, gauge.space, gauge.within)
        for occurrence, view in views:
            if occurrence == slot.occurrence:
                limit = (slot.offset / (view.double() + slot.offset)) ** (1 / float(slot.power))
                # One scale for all variances that a unit has.
                limit = limit.reshape(*limit.shape[: len(gauge.within) + 1], -1)
                if slot.power > 0:
                    yield limit.amax(-1) * (1 + 1e-6), None
                else:
                    yield None, limit.amin(-1) * (1 - 1e-6)


def _grams(graph: SymmetryGraph, gauge: Gauge, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Products of units with units, of what takes the matrix and of what takes its inverse."""
    found: dict[bool, Tensor] = {}
    for slot in gauge.slots:
        for occurrence, view in exposed(
            weights[slot.key], graph.layout[slot.key], slot.axis, gauge.space, gauge.within
        ):
            if occurrence == slot.occurrence:
                outer = len(gauge.within)
                flat = view.double()
                flat = flat.flatten(outer + 1) if flat.ndim > outer + 1 else flat[..., None]
                product = flat @ flat.mT
                writes = slot.power > 0
                found[writes] = found[writes] + product if writes in found else product
    # What nothing writes, or nothing reads, has no balance.
    none = torch.zeros_like(next(iter(found.values())))
    return found.get(True, none), found.get(False, none)


def _middle(writes: Tensor, reads: Tensor) -> Tensor:
    """The symmetric A with A S A = A^-1 R A^-1: the root of the geometric mean of S^-1 and R.

    Where some direction is never written or never read, stretching it costs nothing and there is no shortest
    point: then nothing is done.
    """

    def root(matrix: Tensor, power: float) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        least = values.amax(-1, keepdim=True).clamp_min(1e-300) * 1e-14
        return (vectors * values.clamp_min(least)[..., None, :] ** power) @ vectors.mT

    half, back = root(writes, 0.5), root(writes, -0.5)
    value = root(back @ root(half @ reads @ half, 0.5) @ back, 0.5)
    values = torch.stack([torch.linalg.eigvalsh(matrix) for matrix in (writes, reads)])
    full = (values.amin(-1) > FULL * values.amax(-1)).all(0)
    return torch.where(full[..., None, None], value, torch.eye(value.shape[-1]).to(value))
