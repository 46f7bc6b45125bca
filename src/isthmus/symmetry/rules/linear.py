"""Linear maps: contracted dimensions unify, the output takes the free ones."""

from __future__ import annotations

from torch import fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, given, rule
from isthmus.symmetry.rules.pointwise import broadcast
from isthmus.symmetry.terms import Product, size

aten = ops.aten


@rule(aten.linear.default)
def linear(trace: Reading, node: fx.Node) -> Axes:
    """y[..., o] = x[..., i] W[o, i] + b[o]"""
    x, weight, *rest = node.args
    axes, (out, inner) = trace.axes(x), trace.axes(weight)
    trace.unify(axes[-1], inner)
    trace.mix(axes, [-1])
    trace.reads(weight, 1)
    if rest and rest[0] is not None:
        trace.unify(trace.axes(rest[0])[0], out)
    return [*axes[:-1], out]


@rule(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default)
def matmul(trace: Reading, node: fx.Node) -> Axes:
    """z[..., m, n] = x[..., m, k] y[..., k, n]; vectors as torch.matmul takes them."""
    x, y = node.args
    left, right = trace.axes(x), trace.axes(y)
    inner = len(right) - 2 if len(right) > 1 else 0
    batch = broadcast(trace, left[:-2], right[:-2])
    trace.unify(left[-1], right[inner])
    trace.mix(left, [-1])
    trace.mix(right, [inner])
    factors = node.name not in trace.program.dynamic
    if not factors:  # of two factors of a weight, the second writes what the first reads
        trace.reads(y, inner)
    if factors or (len(left) == 2 and trace.program.linear_weight(node) is not None):
        trace.reads(x, len(left) - 1)
    return [*batch, *left[:-1][-1:], *(right[-1:] if len(right) > 1 else [])]


@rule(aten.addmm.default, aten.baddbmm.default)
def addmm(trace: Reading, node: fx.Node) -> Axes:
    """z = bias + x y"""
    bias, x, y = node.args[:3]
    left, right = trace.axes(x), trace.axes(y)
    batch = broadcast(trace, left[:-2], right[:-2])
    trace.unify(left[-1], right[-2])
    trace.mix(left, [-1])
    trace.mix(right, [-2])
    trace.reads(y, len(right) - 2)
    return broadcast(trace, trace.axes(bias), [*batch, left[-2], right[-1]])


@rule(
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
)
def conv(trace: Reading, node: fx.Node) -> Axes:
    """y[b, o, ...] = x[b, i, ...] * W[o, i within its group, ...] + b[o]"""
    groups = int(str(given(node, "groups")))
    return _conv(trace, node, groups, out_axis=0)


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def conv_transpose(trace: Reading, node: fx.Node) -> Axes:
    """As conv, with the weight's axes exchanged: W[i, o within its group, ...]"""
    groups = int(str(given(node, "groups")))
    return _conv(trace, node, groups, out_axis=1)


@rule(aten.convolution.default)
def convolution(trace: Reading, node: fx.Node) -> Axes:
    """Any of them, as decompositions write it."""
    return _conv(trace, node, int(str(given(node, "groups"))), out_axis=1 if given(node, "transposed") else 0)


@rule(aten.bilinear.default)
def bilinear(trace: Reading, node: fx.Node) -> Axes:
    """y[..., o] = x[..., i] W[o, i, j] z[..., j] + b[o]"""
    x, z, weight, bias = (*node.args, None)[:4]
    left, right, (out, first, second) = trace.axes(x), trace.axes(z), trace.axes(weight)
    trace.unify(left[-1], first)
    trace.unify(right[-1], second)
    trace.mix(left, [-1])
    trace.mix(right, [-1])
    trace.reads(weight, 1)
    trace.reads(weight, 2)
    if bias is not None:
        trace.unify(trace.axes(bias)[0], out)
    return [*broadcast(trace, left[:-1], right[:-1]), out]


@rule(aten.outer.default, aten.ger.default)
def outer(trace: Reading, node: fx.Node) -> Axes:
    """z[i, j] = x[i] y[j]"""
    return [trace.axes(node.args[0])[0], trace.axes(node.args[1])[0]]


@rule(aten.tensordot.default)
def tensordot(trace: Reading, node: fx.Node) -> Axes:
    """Named dimensions of two tensors contracted pairwise."""
    left, right = trace.axes(node.args[0]), trace.axes(node.args[1])
    ours = [int(str(d)) % len(left) for d in node.args[2]]  # type: ignore[union-attr]
    theirs = [int(str(d)) % len(right) for d in node.args[3]]  # type: ignore[union-attr]
    for i, j in zip(ours, theirs, strict=True):
        trace.unify(left[i], right[j])
        trace.reads(node.args[1], j)
    trace.mix(left, ours)
    trace.mix(right, theirs)
    kept = [t for i, t in enumerate(left) if i not in ours]
    return [*kept, *(t for j, t in enumerate(right) if j not in theirs)]


def _conv(trace: Reading, node: fx.Node, groups: int, out_axis: int) -> Axes:
    x, weight, *rest = node.args
    axes, kernel = trace.axes(x), trace.axes(weight)
    channel = len(axes) - (len(kernel) - 2) - 1
    spatial = _spatial(trace, node, axes[channel + 1 :], kernel[2:])
    trace.reads(weight, 1 - out_axis)
    if groups == 1:
        trace.unify(axes[channel], kernel[1 - out_axis])
        trace.mix(axes, [channel])
        out = kernel[out_axis]
    else:
        # One axis of the weight holds groups x within; the other only what is within a group.
        group, within = trace.factor(axes[channel], groups)
        outer, inner = trace.factor(kernel[0], groups)
        trace.unify(group, outer)
        trace.unify(within, kernel[1] if out_axis == 0 else inner)
        trace.mix([*axes[:channel], group, within, *axes[channel + 1 :]], [channel + 1])
        out = kernel[0] if out_axis == 0 else Product((outer, kernel[1]))
    bias = rest[0] if rest else node.kwargs.get("bias")
    if bias is not None:
        trace.unify(trace.axes(bias)[0], out)
    return [*axes[:channel], out, *spatial]


def _spatial(trace: Reading, node: fx.Node, places: Axes, kernel: Axes) -> Axes:
    """Places have names, but along dimensions where each is mapped by itself: one tap, no stride, no padding."""
    count, shape = len(places), trace.shape(node)[-len(places) :]

    def option(name: str) -> list[object]:
        value = given(node, name)
        listed = list(value) if isinstance(value, (list, tuple)) else [value]
        return listed * count if len(listed) == 1 else listed

    result: Axes = []
    options = zip(*map(option, ("stride", "padding")), strict=True)
    for place, taps, want, (stride, padding) in zip(places, kernel, shape, options, strict=True):
        alone = size(taps) == 1 and stride == 1 and padding in (0, "valid") and size(place) == want
        if not alone:
            trace.freeze([place])
        trace.freeze([taps])
        result.append(place if alone else trace.fixed(want))
    return result
