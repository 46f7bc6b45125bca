"""Writing into a part of a tensor: the part unifies with what is written, positions have names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, given, rule
from isthmus.symmetry.rules.pointwise import broadcast
from isthmus.symmetry.rules.shape import spread, taken
from isthmus.symmetry.terms import size

aten = ops.aten


@rule(aten.copy.default)
def copy(trace: Reading, node: fx.Node) -> Axes:
    """The second tensor in the shape of the first."""
    return spread(trace, trace.axes(node.args[1]), trace.shape(node))


@rule(aten.fill.Scalar, aten.fill.Tensor)
def fill(trace: Reading, node: fx.Node) -> Axes:
    """One number everywhere."""
    return [trace.alike(n) for n in trace.shape(node)]


@rule(aten.slice_scatter.default)
def slice_scatter(trace: Reading, node: fx.Node) -> Axes:
    """x with a range of one dimension replaced by the second tensor."""
    axes, source = trace.axes(node.args[0]), trace.axes(node.args[1])
    dim = given(node, "dim") % len(axes)
    start, step = given(node, "start") or 0, given(node, "step")
    have, count = size(axes[dim]), size(source[dim])
    if count == have:
        broadcast(trace, axes, source)
        return axes
    if not isinstance(start, int) or step != 1:
        return _replaced(trace, axes, source, [dim])
    start = max(start + have, 0) if start < 0 else start
    broadcast(trace, taken(trace, axes, dim, start, start + count), source)
    return axes


@rule(aten.select_scatter.default)
def select_scatter(trace: Reading, node: fx.Node) -> Axes | None:
    """x with one index of one dimension replaced by the second tensor."""
    axes, source = trace.axes(node.args[0]), trace.axes(node.args[1])
    dim, index = int(str(node.args[2])) % len(axes), node.args[3]
    if not isinstance(index, int):
        return None
    index %= size(axes[dim])
    part = taken(trace, axes, dim, index, index + 1)
    del part[dim]
    broadcast(trace, part, source)
    return axes


def _replaced(trace: Reading, axes: Axes, source: Axes, dims: Sequence[int]) -> Axes:
    """Positions along `dims` have names; the other dimensions unify."""
    trace.freeze(axes[d] for d in dims)
    trace.mix(axes, dims)
    for index, (ours, theirs) in enumerate(zip(axes, source, strict=True)):
        if index in dims or size(ours) != size(theirs):
            trace.freeze([ours, theirs])
        else:
            trace.unify(ours, theirs)
    return axes


@rule(
    aten.scatter.src,
    aten.scatter.value,
    aten.scatter.reduce,
    aten.scatter.value_reduce,
    aten.scatter_add.default,
    aten.scatter_reduce.two,
)
def scatter(trace: Reading, node: fx.Node) -> Axes:
    """out[index[i, j], j] = source[i, j]: the dimension written along has names, the others unify."""
    axes, dim = trace.axes(node.args[0]), int(str(node.args[1]))
    dim %= len(axes)
    for tensor in (n for n in node.args[2:] if isinstance(n, fx.Node) and trace.shape(n)):
        axes = _replaced(trace, axes, trace.axes(tensor), [dim])
    return axes


@rule(aten.index_add.default, aten.index_copy.default, aten.index_fill.int_Scalar, aten.index_reduce.default)
def index_add(trace: Reading, node: fx.Node) -> Axes:
    """Rows of the source go to named rows; the other dimensions unify."""
    axes, dim = trace.axes(node.args[0]), int(str(node.args[1]))
    dim %= len(axes)
    trace.freeze([axes[dim], *trace.axes(node.args[2])])
    trace.mix(axes, [dim])
    source = node.args[3]
    return _replaced(trace, axes, trace.axes(source), [dim]) if isinstance(source, fx.Node) else axes


@rule(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(trace: Reading, node: fx.Node) -> Axes | None:
    """x[indices] = values: indexed dimensions have names, the others unify with those of the values."""
    axes, indices, values = trace.axes(node.args[0]), list(node.args[1]), node.args[2]  # type: ignore[arg-type]
    indices += [None] * (len(axes) - len(indices))
    named = [item for item in indices if isinstance(item, fx.Node)]
    if any(item.meta["val"].dtype in (torch.bool, torch.uint8) for item in named):
        return None
    used = [i for i, item in enumerate(indices) if item is not None]
    for item in named:
        trace.freeze(trace.axes(item))
    trace.freeze(axes[i] for i in used)
    trace.mix(axes, used)
    rank = max(len(trace.shape(item)) for item in named)
    start = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    kept = [term for i, term in enumerate(axes) if i not in used]
    here = [*kept[:start], *[None] * rank, *kept[start:]]
    for ours, theirs in zip(reversed(here), reversed(trace.axes(values)), strict=False):
        if ours is None:
            trace.freeze([theirs])
        elif size(theirs) != 1:
            trace.unify(ours, theirs)
    return axes
