"""Residual blocks: where a branch is added to its skip, what is on the branch, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import fx
from torch._ops import OpOverload  # what a node's target is; torch has no public name for it

from isthmus.program import Program
from isthmus.repair.writers import Writer, kept_apart, writer_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Block:
    """A residual block.

    Attributes:
        output: the value that leaves it: the sum, or what one activation makes of it.
        axis: channel axis of the output; None where it cannot be told.
        branch: outputs of the linear and conv operations on its longer path, in order of execution. Where both
            paths are as long, both are branches.
        shortcut: those on the shorter one.
    """

    output: str
    axis: int | None
    branch: tuple[str, ...]
    shortcut: tuple[str, ...]


def residual_blocks(program: Program) -> tuple[Block, ...]:
    """The residual blocks of a program, in order of execution; those of which a part is kept apart are none.

    An addition ends a block if its two sides come from one value and at least one of them through a layer
    that the other does not pass.

    Args:
        program: of one model, or of a merged one.
    """
    order = {name: index for index, name in enumerate(program.nodes)}
    before: dict[str, int] = {}  # sets of values as bits: each value and all that it is computed from
    for name, node in program.nodes.items():
        bits = 1 << order[name]
        for source in node.all_input_nodes:
            bits |= before[source.name]
        before[name] = bits
    layers = [name for name in program.nodes if writer_of(program, name) is not None]
    found: list[Block] = []
    for node in program.graph.nodes:
        if getattr(node.target, "overloadpacket", None) is not aten.add:
            continue
        sides = [a for a in node.all_input_nodes if a.name in program.dynamic and program.is_tensor(a.name)]
        if len(sides) != 2:
            continue
        one, two = sides
        own = [
            tuple(n for n in layers if (before[a.name] & ~before[b.name]) >> order[n] & 1)
            for a, b in ((one, two), (two, one))
        ]
        shared = before[one.name] & before[two.name]
        fork = any(shared >> order[n] & 1 for n in program.dynamic)
        if own[0] == own[1] or not fork or any(kept_apart(n) for n in (*own[0], *own[1])):
            continue
        depths = [program.depth[a.name] for a in sides]
        if depths[0] == depths[1]:
            branch, shortcut = tuple(sorted((*own[0], *own[1]), key=order.__getitem__)), ()
        else:
            deeper = int(depths[1] > depths[0])
            branch, shortcut = own[deeper], own[1 - deeper]
        source = sides[depths.index(max(depths))]
        found.append(Block(_leaving(node).name, _channels(program, source), branch, shortcut))
    return tuple(found)


def place_of(program: Program, value: str) -> Writer | None:
    """How a value that can be repaired is made: by a layer, or as the output of a residual block."""
    if (writer := writer_of(program, value)) is not None:
        return writer
    for block in residual_blocks(program) if value in program.dynamic else ():
        if block.output == value and block.axis is not None:
            why = "it is the output of a residual block, and an identity skip takes no gain"
            return Writer(value, block.axis, "", 0, 1, None, why)
    return None


def _leaving(node: fx.Node) -> fx.Node:
    """The sum, or the activation that alone reads it."""
    (reader, *others) = node.users or (node,)
    pointwise = isinstance(reader.target, OpOverload) and torch.Tag.pointwise in reader.target.tags
    return reader if not others and pointwise and reader.all_input_nodes == [node] else node


def _channels(program: Program, node: fx.Node) -> int | None:
    """The channel axis of what a branch adds: that of its last layer, followed through permutations."""
    orders: list[list[int]] = []
    while (writer := writer_of(program, node.name)) is None:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.name not in program.dynamic:
            return None
        if node.target is aten.permute.default:
            rank = len(program.size(node.name))
            orders.append([axis % rank for axis in cast("list[int]", node.args[1])])
        elif program.size(node.name) != program.size(source.name):
            return None
        node = source
    axis = writer.axis
    for order in reversed(orders):
        axis = order.index(axis)
    return axis
