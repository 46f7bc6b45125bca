"""Tensors made from nothing: constants are alike in every order, positions have names."""

from __future__ import annotations

from torch import fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, every, rule

aten = ops.aten


@rule(
    *every("full", "zeros", "ones", "new_zeros", "new_ones", "new_full", "scalar_tensor", "tensor"),
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.empty_permuted.default,
)
def constant(trace: Reading, node: fx.Node) -> Axes:
    """The same number everywhere."""
    return [trace.alike(n) for n in trace.shape(node)]


@rule(
    *every("arange", "linspace", "logspace", "tril_indices", "triu_indices", "hann_window", "hamming_window")
)
def positions(trace: Reading, node: fx.Node) -> Axes:
    """Numbers that name their position."""
    return [trace.fixed(n) for n in trace.shape(node)]


@rule(*every("eye"))
def eye(trace: Reading, node: fx.Node) -> Axes:
    """The identity: the same in any order that rows and columns share."""
    rows, columns = trace.shape(node)
    both = trace.new(rows)
    return [both, both] if rows == columns else [trace.fixed(rows), trace.fixed(columns)]
