"""Operations that say which index: where their answer is used, the dimension has names."""

from __future__ import annotations

import operator

from torch import fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, given, rule
from isthmus.symmetry.terms import Atom, size

aten = ops.aten


def _shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of the first result."""
    return tuple(int(n) for n in node.meta["val"][0].shape)


def _names_used(node: fx.Node) -> bool:
    """Whether anything reads the indices, the second result."""
    return any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users if user.users)


@rule(aten.max.dim, aten.min.dim, aten.median.dim, aten.mode.default, aten.kthvalue.default)
def extremum(trace: Reading, node: fx.Node) -> list[Axes]:
    """One value along a dimension, and its index."""
    axes = trace.axes(node.args[0])
    dim = given(node, "dim") % len(axes)
    if _names_used(node):
        trace.freeze([axes[dim]])
    trace.mix(axes, [dim])
    stays = len(_shape(node)) == len(axes)
    kept = [Atom(1) if i == dim else term for i, term in enumerate(axes) if stays or i != dim]
    return [kept, list(kept)]


@rule(aten.topk.default, aten.sort.default, aten.sort.stable, aten.cummax.default, aten.cummin.default)
def ranked(trace: Reading, node: fx.Node) -> list[Axes]:
    """Values by rank along a dimension, and their indices. Ranks have names."""
    axes = trace.axes(node.args[0])
    dim = given(node, "dim") % len(axes)
    if _names_used(node) or node.target in (aten.cummax.default, aten.cummin.default):
        trace.freeze([axes[dim]])
    trace.mix(axes, [dim])
    axes[dim] = trace.fixed(_shape(node)[dim])
    return [axes, list(axes)]


@rule(aten.argmax.default, aten.argmin.default, aten.argsort.default, aten.argsort.stable)
def argument(trace: Reading, node: fx.Node) -> Axes:
    """Indices along a dimension (of all, where none is named)."""
    axes, shape = trace.axes(node.args[0]), trace.shape(node)
    sorts = "argsort" in str(node.target)
    dim = given(node, "dim")
    if dim is None:
        trace.freeze(axes)
        return [Atom(1) for _ in shape]
    dim %= len(axes)
    trace.freeze([axes[dim]])
    trace.mix(axes, [dim])
    if sorts:
        axes[dim] = trace.fixed(size(axes[dim]))
        return axes
    return [Atom(1) if i == dim else t for i, t in enumerate(axes) if len(shape) == len(axes) or i != dim]


@rule(aten.one_hot.default)
def one_hot(trace: Reading, node: fx.Node) -> Axes:
    """A new last dimension, whose indices are what the numbers name."""
    return [*trace.axes(node.args[0]), trace.fixed(trace.shape(node)[-1])]


@rule(aten.bucketize.Tensor)
def bucketize(trace: Reading, node: fx.Node) -> Axes:
    """Into which interval each number falls."""
    trace.freeze(trace.axes(node.args[1]))
    return trace.axes(node.args[0])


@rule(aten.gather.default)
def gather(trace: Reading, node: fx.Node) -> Axes:
    """out[i, j] = x[index[i, j], j]"""
    x, dim, index = node.args[:3]
    axes, names = trace.axes(x), trace.axes(index)
    return _gathered(trace, axes, names, int(str(dim)))


@rule(aten.take_along_dim.default)
def take_along_dim(trace: Reading, node: fx.Node) -> Axes | None:
    """As gather, with the other dimensions broadcast."""
    x, index = node.args[:2]
    dim = given(node, "dim")
    if dim is None:
        return None
    axes = _gathered(trace, trace.axes(x), trace.axes(index), dim)
    return [o if size(i) == 1 else i for i, o in zip(axes, trace.axes(x), strict=True)]


def _gathered(trace: Reading, axes: Axes, names: Axes, dim: int) -> Axes:
    dim %= len(axes)
    trace.freeze([axes[dim], names[dim]])
    trace.mix(axes, [dim])
    for position, (ours, theirs) in enumerate(zip(axes, names, strict=True)):
        if position == dim:
            continue
        if size(ours) == size(theirs):
            trace.unify(ours, theirs)
        elif size(theirs) != 1:
            trace.freeze([ours, theirs])
        elif size(ours) != 1:
            # Only the first index is read.
            trace.freeze([ours])
    return names
