"""Normalisation: affine parameters and running statistics go with the normalised channels."""

from __future__ import annotations

from torch import fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, rule

aten = ops.aten


@rule(aten.batch_norm.default, aten.instance_norm.default)
def batch_norm(trace: Reading, node: fx.Node) -> Axes:
    """Per channel (dimension 1): scale, shift, running mean, running variance."""
    axes = trace.axes(node.args[0])
    for vector in node.args[1:5]:
        if vector is not None:
            trace.unify(axes[1], trace.axes(vector)[0])
    trace.mark([axes[1]], "batch_norm")
    return axes


@rule(aten.layer_norm.default)
def layer_norm(trace: Reading, node: fx.Node) -> Axes:
    """Over the last dimensions, with an affine map of their shape."""
    x, shape, *affine = node.args
    return _over_last(trace, x, len(list(shape)), affine[:2], "layer_norm")  # type: ignore[call-overload]


@rule(aten.rms_norm.default)
def rms_norm(trace: Reading, node: fx.Node) -> Axes:
    """Over the last dimensions, with a scale of their shape."""
    x, shape, *affine = node.args
    return _over_last(trace, x, len(list(shape)), affine[:1], "rms_norm")  # type: ignore[call-overload]


def _over_last(trace: Reading, x: object, count: int, affine: list[object], mark: str) -> Axes:
    axes = trace.axes(x)
    for vector in affine:
        if vector is not None:
            for ours, theirs in zip(axes[-count:], trace.axes(vector), strict=True):
                trace.unify(ours, theirs)
    trace.mix(axes, range(-count, 0))
    trace.mark(axes[-count:], mark)
    return axes


@rule(aten.group_norm.default)
def group_norm(trace: Reading, node: fx.Node) -> Axes:
    """Channels (dimension 1) are groups x within; statistics are shared inside a group."""
    x, groups, *affine = node.args
    axes = trace.axes(x)
    if int(str(groups)) > 1:
        trace.factor(axes[1], int(str(groups)))
    for vector in affine[:2]:
        if vector is not None:
            trace.unify(axes[1], trace.axes(vector)[0])
    trace.mark([axes[1]], "group_norm")
    return axes
