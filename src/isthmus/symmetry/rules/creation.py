"""Tensors made from nothing: constants are alike in every order, positions have names."""

from __future__ import annotations

from torch import fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, rule

aten = ops.aten


@rule(
    aten.full.default,
    aten.zeros.default,
    aten.ones.default,
    aten.empty.memory_format,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.scalar_tensor.default,
)
def constant(trace: Reading, node: fx.Node) -> Axes:
    """The same number everywhere."""
    return [trace.alike(n) for n in trace.shape(node)]


@rule(aten.arange.default, aten.arange.start, aten.arange.start_step, aten.linspace.default)
def positions(trace: Reading, node: fx.Node) -> Axes:
    """Numbers that name their position."""
    return [trace.fixed(n) for n in trace.shape(node)]
