"""Reductions, softmax and pooling: any order along the dimension gives the same."""

from __future__ import annotations

from torch import fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, rule
from isthmus.symmetry.terms import Atom

aten = ops.aten


@rule(
    aten.mean.dim,
    aten.mean.default,
    aten.sum.dim_IntList,
    aten.sum.default,
    aten.amax.default,
    aten.amin.default,
    aten.prod.dim_int,
    aten.var.correction,
    aten.var.dim,
    aten.std.correction,
    aten.std.dim,
    aten.logsumexp.default,
    aten.linalg_vector_norm.default,
    aten.norm.ScalarOpt_dim,
    aten.norm.ScalarOpt_dim_dtype,
    aten.any.dim,
    aten.all.dim,
    aten.any.default,
    aten.all.default,
)
def reduction(trace: Reading, node: fx.Node) -> Axes:
    """The reduced dimensions disappear, or stay with size one."""
    axes, shape = trace.axes(node.args[0]), trace.shape(node)
    named = node.target in (
        aten.linalg_vector_norm.default,
        aten.norm.ScalarOpt_dim,
        aten.norm.ScalarOpt_dim_dtype,
    )
    position = 2 if named else 1
    dims = node.args[position] if len(node.args) > position else node.kwargs.get("dim")
    if dims is None or dims == []:
        chosen = set(range(len(axes)))
    else:
        listed = dims if isinstance(dims, (list, tuple)) else [dims]
        chosen = {int(str(d)) % len(axes) for d in listed}
    trace.mix(axes, chosen)
    if len(shape) == len(axes):
        return [Atom(1) if i in chosen else term for i, term in enumerate(axes)]
    return [term for i, term in enumerate(axes) if i not in chosen]


@rule(aten.max.dim, aten.min.dim)
def extremum(trace: Reading, node: fx.Node) -> list[Axes]:
    """Values and indices; the indices name the dimension, so it freezes."""
    axes = trace.axes(node.args[0])
    dim = int(str(node.args[1])) % len(axes)
    trace.freeze([axes[dim]])
    kept = [term for i, term in enumerate(axes) if i != dim]
    if bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim")):
        kept = [Atom(1) if i == dim else term for i, term in enumerate(axes)]
    return [kept, kept]


@rule(
    aten.softmax.int,
    aten._softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
)
def softmax(trace: Reading, node: fx.Node) -> Axes:
    """Normalised along one dimension, in whatever order."""
    axes = trace.axes(node.args[0])
    trace.mix(axes, [int(str(node.args[1]))])
    return axes


_POOLS = {
    1: (
        aten.max_pool1d.default,
        aten.avg_pool1d.default,
        aten.adaptive_avg_pool1d.default,
        aten.upsample_nearest1d.vec,
        aten.upsample_linear1d.vec,
    ),
    2: (
        aten.max_pool2d.default,
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default,
        aten._adaptive_avg_pool2d.default,
        aten.upsample_nearest2d.vec,
        aten.upsample_nearest2d.default,
        aten.upsample_bilinear2d.vec,
        aten.upsample_bilinear2d.default,
        aten.upsample_bicubic2d.vec,
        aten.upsample_bicubic2d.default,
    ),
    3: (aten.max_pool3d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool3d.default),
}


def _pool(rank: int) -> None:
    @rule(*_POOLS[rank])
    def pool(trace: Reading, node: fx.Node) -> Axes:
        """Windows over the last dimensions, channel by channel."""
        axes, shape = trace.axes(node.args[0]), trace.shape(node)
        trace.freeze(axes[-rank:])
        return [*axes[:-rank], *(trace.fixed(n) for n in shape[-rank:])]


for _rank in _POOLS:
    _pool(_rank)
