"""A program whose spaces have other sizes: what merging by growth makes of one model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx

from isthmus.errors import InputError
from isthmus.maps.elementwise import multipliers
from isthmus.program import Program
from isthmus.symmetry import Axis, Blocks, Interleaved, Leaf, SymmetryGraph, spaces_of
from isthmus.symmetry.axes import parts_of

aten = torch.ops.aten

#: Operations that are told the shape of their result.
_SHAPED = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default}
#: Operations that are told where to cut an axis.
_CUTTING = {
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.narrow.default,
    aten.chunk.default,
    aten.constant_pad_nd.default,
    aten.pad.default,
    aten.repeat_interleave.self_int,
    aten.pixel_shuffle.default,
}
_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}


def resized(graph: SymmetryGraph, sizes: Mapping[str, int]) -> Program:
    """The program of a model, for spaces of other sizes.

    Args:
        graph: the model's symmetries.
        sizes: space -> its new number of units; the others stay.

    Raises:
        InputError: an operation is told where to cut an axis that changes; all are listed.
    """
    source = graph.program
    changed = {name for name, size in sizes.items() if graph.spaces[name].size != size}
    if not changed or not isinstance(source, Program):
        return source
    stuck: list[str] = []
    depthwise = multipliers(graph)
    copy, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in source.graph.nodes:
        new = copies[node] = copy.node_copy(node, copies.__getitem__)
        axes = graph.values.get(node.name)
        shape = list(source.size(node.name)) if axes is not None else []
        if axes is not None:
            moved = [
                size_of(axis, sizes) if spaces_of(axis) & changed else n
                for axis, n in zip(axes, shape, strict=True)
            ]
            if moved != shape:
                fake = node.meta["val"]
                kept = [
                    m if m != n else fake.shape[d] for d, (m, n) in enumerate(zip(moved, shape, strict=True))
                ]
                new.meta = {**node.meta, "val": fake.new_empty(kept)}
            if node.target in _SHAPED:
                given = list(new.args[1])  # type: ignore[arg-type]
                told = [m if g == n else g for g, m, n in zip(given, moved, shape, strict=False)]
                new.args = (new.args[0], told, *new.args[2:])
            elif str(node.target).startswith(("aten.layer_norm", "aten.rms_norm")):
                count = len(list(new.args[1]))  # type: ignore[arg-type]
                new.args = (new.args[0], moved[-count:], *new.args[2:])
        if node.target in _CUTTING and any(
            spaces_of(axis) & changed
            for value in (node, *node.all_input_nodes)
            for axis in graph.values.get(value.name, ())
        ):
            stuck.append(f"{source.origin[node.name]}")
        if node.target in _CONVOLUTIONS and len(node.args) > 6:
            key = source.weights.get(node.args[1].name) if isinstance(node.args[1], fx.Node) else None
            if key in depthwise and spaces_of(graph.layout[key][0]) & changed:
                new.args = (*new.args[:6], size_of(graph.layout[key][0], sizes))
    if stuck:
        raise InputError(
            "the merged network has other widths, and these operations are told the old ones", stuck
        )
    shapes = {
        key: tuple(size_of(axis, sizes) for axis in graph.layout[key]) if key in graph.layout else shape
        for key, shape in source.shapes.items()
    }
    return replace(source, graph=copy, shapes=shapes)


def size_of(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Length of an axis whose spaces have other sizes."""
    if isinstance(axis, Leaf):
        return sizes.get(axis.space, axis.size) if axis.space else axis.size
    if isinstance(axis, Interleaved):
        return axis.size  # units that come in turn with others keep their number
    lengths = [size_of(part, sizes) for part in parts_of(axis)]
    if not isinstance(axis, Blocks):
        return sum(lengths)
    total = 1
    for length in lengths:
        total *= length
    return total
