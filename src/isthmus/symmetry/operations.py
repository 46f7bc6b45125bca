"""Names of operations, and what the families of them do to the axes of a tensor."""

from __future__ import annotations

from typing import cast

from torch import fx


def makes_zeros(node: fx.Node) -> bool:
    """Whether zeros enter the program here."""
    name = operation(node)
    return name in ("zeros", "zeros_like", "new_zeros") or (name in PADS and pads_zeros(node))


def pads_zeros(node: fx.Node) -> bool:
    """Whether padding puts in zeros, or copies of what is there."""
    if operation(node) == "constant_pad_nd":
        return len(node.args) < 3 or bool(node.args[2] == 0)
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return mode != "constant" or value is None or bool(value == 0)


def joined_axis(node: fx.Node) -> int | None:
    """The axis along which a concatenation puts its inputs side by side."""
    if operation(node) not in ("cat", "concat"):
        return None
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(cast("int", dim)) % len(node.meta["val"].shape)


def operation(node: fx.Node) -> str:
    """The name of the operation of a node, without its overload."""
    packet = getattr(node.target, "overloadpacket", None)
    return (packet or node.target).__name__ if node.op == "call_function" else ""  # type: ignore[union-attr]


SHAPES = frozenset(
    {"sym_size", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full"}
    | {"rand_like", "randn_like", "new_empty"}
)

COMPARISONS = frozenset({"gt", "lt", "ge", "le", "eq", "ne"})

#: Operations whose order of axes is not that of their input.
PERMUTES = frozenset({"permute", "transpose", "t", "movedim", "mT", "numpy_T", "swapaxes", "pixel_shuffle"})

#: Operations that leave every element in its place.
SAME = frozenset(
    {"contiguous", "clone", "detach", "alias", "dropout", "feature_dropout", "alpha_dropout"}
    | {"to", "_to_copy", "lift_fresh_copy"}
)

#: Operations whose other arguments only say a shape or a type.
LIKE = frozenset({"expand_as", "view_as", "reshape_as", "type_as"})

#: Operations that put several tensors into one.
JOINS = frozenset({"cat", "concat", "stack", "slice_scatter", "select_scatter"})

PADS = frozenset({"constant_pad_nd", "pad"})

MOVES = frozenset(
    SAME
    | PERMUTES
    | PADS
    | LIKE
    | JOINS
    | {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"}
    | {"broadcast_to", "repeat", "repeat_interleave", "tile"}
    | {"select", "slice", "narrow", "split", "split_with_sizes", "chunk", "tensor_split", "unbind"}
    | {"roll", "flip", "pixel_unshuffle", "channel_shuffle", "unfold", "im2col"}
    | {"index_select", "gather", "tril", "triu", "diagonal", "as_strided"}
)

LINEAR_REDUCTIONS = frozenset(
    {"mean", "sum", "cumsum", "avg_pool1d", "avg_pool2d", "avg_pool3d"}
    | {"adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "interpolate"}
    | {"upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"}
    | {"_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "upsample_linear1d", "upsample_trilinear3d"}
)

ORDERED_REDUCTIONS = frozenset(
    {"max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d"}
    | {"amax", "amin"}
)
