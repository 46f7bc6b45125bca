"""A program whose spaces have other sizes: what merging by growth makes of one model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx

from isthmus.errors import InputError
from isthmus.maps.elementwise import multipliers
from isthmus.program import Program
from isthmus.symmetry import SHAPED, Axis, Blocks, Interleaved, Leaf, SymmetryGraph, counted, spaces_of
from isthmus.symmetry.axes import parts_of

aten = torch.ops.aten

_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}


def resized(graph: SymmetryGraph, sizes: Mapping[str, int]) -> Program:
    """The program of a model, for spaces of other sizes.

    Args:
        graph: the model's symmetries.
        sizes: space -> its new number of units; the others stay.

    Raises:
        InputError: an operation depends on a number of units that changes (`isthmus.symmetry.counted`); all are
            listed.
    """
    source = graph.program
    changed = {name for name, size in sizes.items() if graph.spaces[name].size != size}
    if not changed or not isinstance(source, Program):
        return source
    stuck = [
        f"{name}: {place}"
        for name, counts in counted(graph).items()
        if name in changed
        for place in dict.fromkeys(count.place for count in counts)
    ]
    if stuck:
        raise InputError(
            "the merged network has other widths, and these operations depend on how many units there are",
            stuck,
        )
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
            if (place := SHAPED.get(node.target)) is not None:
                given = list(new.args[place])  # type: ignore[arg-type]
                told = [m if g == n else g for g, m, n in zip(given, moved, shape, strict=True)]
                new.args = (*new.args[:place], told, *new.args[place + 1 :])
        if node.target in _CONVOLUTIONS and len(node.args) > 6:
            key = source.weights.get(node.args[1].name) if isinstance(node.args[1], fx.Node) else None
            if key in depthwise and spaces_of(graph.layout[key][0]) & changed:
                new.args = (*new.args[:6], size_of(graph.layout[key][0], sizes))
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
