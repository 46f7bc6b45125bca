"""Reductions, softmax and pooling: any order along the dimension gives the same."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, ops

from isthmus.symmetry.reading import Reading
from isthmus.symmetry.rules import Axes, every, given, rule
from isthmus.symmetry.rules.pointwise import broadcast
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
    aten.norm.Scalar,
    aten.frobenius_norm.dim,
    aten.any.dim,
    aten.any.dims,
    aten.all.dim,
    aten.all.dims,
    aten.any.default,
    aten.all.default,
    aten.max.default,
    aten.min.default,
    aten.prod.default,
    aten.var.default,
    aten.std.default,
    aten.nansum.default,
    aten.nanmean.default,
    aten.count_nonzero.default,
    aten.count_nonzero.dim_IntList,
)
def reduction(trace: Reading, node: fx.Node) -> Axes:
    """The reduced dimensions disappear, or stay with size one."""
    return reduced(trace, trace.axes(node.args[0]), given(node, "dim"), len(trace.shape(node)))


def reduced(trace: Reading, axes: Axes, dims: object, rank: int) -> Axes:
    """The terms without the reduced dimensions (None or none named: all), or with size one in their place."""
    if dims is None or dims == []:
        chosen = set(range(len(axes)))
    else:
        listed = dims if isinstance(dims, (list, tuple)) else [dims]
        chosen = {int(str(d)) % len(axes) for d in listed}
    trace.mix(axes, chosen)
    if rank == len(axes):
        return [Atom(1) if i in chosen else term for i, term in enumerate(axes)]
    return [term for i, term in enumerate(axes) if i not in chosen]


@rule(aten.std_mean.correction, aten.std_mean.dim, aten.var_mean.correction, aten.var_mean.dim)
def moments(trace: Reading, node: fx.Node) -> list[Axes]:
    """Two reductions at once."""
    axes, shape = trace.axes(node.args[0]), node.meta["val"][0].shape
    kept = reduced(trace, axes, given(node, "dim"), len(shape))
    return [kept, list(kept)]


@rule(aten.aminmax.default)
def aminmax(trace: Reading, node: fx.Node) -> list[Axes]:
    """Least and largest along a dimension, or of all."""
    kept = reduced(trace, trace.axes(node.args[0]), given(node, "dim"), node.meta["val"][0].ndim)
    return [kept, list(kept)]


@rule(aten.cosine_similarity.default, aten.pairwise_distance.default)
def similarity(trace: Reading, node: fx.Node) -> Axes:
    """Two tensors compared along one dimension (named, or the last)."""
    axes = broadcast(trace, trace.axes(node.args[0]), trace.axes(node.args[1]))
    dim = given(node, "dim") if node.target is aten.cosine_similarity.default else -1
    return reduced(trace, axes, dim, len(trace.shape(node)))


@rule(
    aten.softmax.int,
    aten._softmax.default,
    aten._safe_softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
)
def softmax(trace: Reading, node: fx.Node) -> Axes:
    """Normalised along one dimension, in whatever order."""
    axes = trace.axes(node.args[0])
    trace.mix(axes, [int(str(node.args[1]))])
    return axes


#: Rank of the window -> operations whose channels go along, each with what is before its first digit.
_POOLS = {
    1: every(
        "max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "upsample_nearest1d", "_upsample_nearest_exact1d",
        "upsample_linear1d", "reflection_pad1d", "replication_pad1d",
    ),
    2: every(
        "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "upsample_nearest2d",
        "_upsample_nearest_exact2d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d",
        "_upsample_bicubic2d_aa", "reflection_pad2d", "replication_pad2d",
    ),
    3: every(
        "max_pool3d", "avg_pool3d", "adaptive_avg_pool3d", "_adaptive_avg_pool3d", "upsample_nearest3d",
        "_upsample_nearest_exact3d", "upsample_trilinear3d", "reflection_pad3d", "replication_pad3d",
    ),
}  # fmt: skip

#: The same, with the place of each maximum as a second result.
_PLACED = {
    1: every("max_pool1d_with_indices", "adaptive_max_pool1d"),
    2: every("max_pool2d_with_indices", "adaptive_max_pool2d"),
    3: every("max_pool3d_with_indices", "adaptive_max_pool3d"),
}


def _pool(rank: int) -> None:
    def windows(trace: Reading, node: fx.Node, shape: Sequence[int]) -> Axes:
        axes = trace.axes(node.args[0])
        trace.freeze(axes[-rank:])
        return [*axes[:-rank], *(trace.fixed(n) for n in shape[-rank:])]

    @rule(*_POOLS[rank])
    def pool(trace: Reading, node: fx.Node) -> Axes:
        """Windows over the last dimensions, channel by channel."""
        return windows(trace, node, trace.shape(node))

    @rule(*_PLACED[rank])
    def placed(trace: Reading, node: fx.Node) -> list[Axes]:
        """Windows over the last dimensions: the maximum, and where it is."""
        axes = windows(trace, node, [int(n) for n in node.meta["val"][0].shape])
        return [axes, list(axes)]


for _rank in _POOLS:
    _pool(_rank)
