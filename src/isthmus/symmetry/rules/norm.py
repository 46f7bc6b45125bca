"""Normalisation: affine parameters and running statistics go with the normalised channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, ops

from isthmus.symmetry import algebra
from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, given, rule
from isthmus.symmetry.rules.pointwise import broadcast
from isthmus.symmetry.terms import Atom, Term, size

aten = ops.aten


@rule(aten.batch_norm.default, aten.instance_norm.default)
def batch_norm(trace: Reading, node: fx.Node) -> Axes:
    """Per channel (dimension 1): scale, shift, running mean, running variance."""
    return _per_channel(trace, node.args[0], node.args[1:5])


def _per_channel(trace: Reading, x: object, vectors: Sequence[object]) -> Axes:
    axes = trace.axes(x)
    for vector in vectors:
        if isinstance(vector, fx.Node):
            trace.unify(axes[1], trace.axes(vector)[0])
    trace.mark([axes[1]], "batch_norm")
    return axes


@rule(
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_no_training.default,
    aten._batch_norm_no_update.default,
)
def native_batch_norm(trace: Reading, node: fx.Node) -> list[Axes]:
    """As batch_norm, with the mean and deviation that were used; some also return scratch."""
    axes = _per_channel(trace, node.args[0], node.args[1:5])
    used: list[Axes] = [[axes[1]] if value.numel() else [Atom(0)] for value in node.meta["val"][1:3]]
    scratch: list[Axes] = [[trace.fixed(n) for n in value.shape] for value in node.meta["val"][3:]]
    return [axes, *used, *scratch]


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


@rule(aten.native_layer_norm.default, aten._fused_rms_norm.default)
def native_layer_norm(trace: Reading, node: fx.Node) -> list[Axes]:
    """As layer_norm or rms_norm, with the statistics that were used."""
    x, shape, *affine = node.args
    count = len(list(shape))  # type: ignore[call-overload]
    scales = affine[:2] if node.target is aten.native_layer_norm.default else affine[:1]
    mark = "layer_norm" if node.target is aten.native_layer_norm.default else "rms_norm"
    axes = _over_last(trace, x, count, scales, mark)
    statistic = [*axes[:-count], *(Atom(1) for _ in range(count))]
    return [axes, *(list(statistic) for _ in node.meta["val"][1:])]


def _over_last(trace: Reading, x: object, count: int, affine: Sequence[object], mark: str) -> Axes:
    axes = trace.axes(x)
    for vector in affine:
        if vector is not None:
            trace.unify_all(zip(axes[-count:], trace.axes(vector), strict=True))
    trace.mix(axes, range(-count, 0))
    trace.mark(axes[-count:], mark)
    return axes


@rule(aten.group_norm.default)
def group_norm(trace: Reading, node: fx.Node) -> Axes:
    """Channels (dimension 1) are groups x within; statistics are shared inside a group."""
    x, groups, *affine = node.args
    return _groups(trace, x, int(str(groups)), affine[:2])


@rule(aten.native_group_norm.default)
def native_group_norm(trace: Reading, node: fx.Node) -> list[Axes]:
    """As group_norm, with the mean and deviation of each group."""
    x, weight, bias, _, _, _, groups, _ = node.args
    axes = _groups(trace, x, int(str(groups)), [weight, bias])
    per_group = [axes[0], trace.factor(axes[1], int(str(groups)))[0]]
    return [axes, per_group, list(per_group)]


def _grouped(trace: Reading, term: Term, groups: int) -> None:
    """Let no order cross a group.

    Where what was concatenated ends inside a group, that group keeps its place, and its units move within
    their part of it; the groups between are groups x within.
    """
    each = size(term) // groups
    ends = [0]
    for part in algebra.parts(term):
        ends.append(ends[-1] + size(part))
    cuts = {n for end in ends[1:] for n in (end // each * each, -(-end // each) * each)} - {0}
    if all(end % each == 0 for end in ends):
        trace.factor(term, groups)
        return
    pieces = algebra.cut_at(term, sorted(cuts))
    if pieces is None:
        trace.freeze([term])
        return
    for piece in pieces:
        if size(piece) > each:
            trace.factor(piece, size(piece) // each)


def _groups(trace: Reading, x: object, groups: int, affine: Sequence[object]) -> Axes:
    axes = trace.axes(x)
    if groups > 1:
        _grouped(trace, axes[1], groups)
    for vector in affine:
        if vector is not None:
            trace.unify(axes[1], trace.axes(vector)[0])
    trace.mark([axes[1]], "group_norm")
    return axes


@rule(aten._weight_norm.default, aten._weight_norm_interface.default)
def weight_norm(trace: Reading, node: fx.Node) -> Axes | list[Axes]:
    """A weight as direction and length; the length along one dimension."""
    axes, lengths = trace.axes(node.args[0]), trace.axes(node.args[1])
    dim = given(node, "dim") % len(axes)
    trace.mix(axes, [d for d in range(len(axes)) if d != dim])
    axes = broadcast(trace, axes, lengths)
    return axes if node.target is aten._weight_norm.default else [axes, lengths]
