"""Mixtures of experts: rows in runs, each run with a matrix of its own."""

from __future__ import annotations

from torch import fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, rule
from isthmus.symmetry.rules.reduce import reduced

aten = ops.aten


# The second is what transformers runs where the first has no kernel.
@rule(aten._grouped_mm.default, "transformers.grouped_mm_fallback.default")
def grouped_mm(trace: Reading, node: fx.Node) -> Axes | None:
    """z[run of e] = x[run of e] W[e]: runs, and so experts, have names."""
    x, matrices, ends = node.args[:3]
    left, right = trace.axes(x), trace.axes(matrices)
    if len(left) != 2 or len(right) != 3:
        return None
    trace.freeze([left[0], right[0], *trace.axes(ends)])
    trace.unify(left[1], right[1])
    trace.reads(matrices, 1)
    return [left[0], right[2]]


@rule(aten.histc.default)
def histc(trace: Reading, node: fx.Node) -> Axes:
    """How many numbers fall into each bin, whatever their order."""
    reduced(trace, trace.axes(node.args[0]), None, 0)
    return [trace.fixed(n) for n in trace.shape(node)]
