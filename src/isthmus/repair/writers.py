"""Where a layer's output is made, and whether a gain and a shift of it can be folded into its weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from isthmus.program import LINEAR, Program

aten = torch.ops.aten

_CONV = {
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
}
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
# What a weight may go through on its way without its axes being mixed.
_SAME_AXES = {
    *(aten.detach.default, aten.alias.default, aten.contiguous.default, aten.clone.default),
    *(aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default),
}

Shift = Literal["bias", "running_mean"]

#: Obstacle of a layer whose weight is no stored tensor.
COMPUTED = "its weight is computed from others before it is applied"


@dataclass(frozen=True)
class Writer:
    """A linear or conv operation that makes channels with a weight.

    Attributes:
        value: its output.
        axis: the channel axis of the output.
        weight: placeholder of the weight, as stored.
        out: axis of the stored weight that makes the channels; in a transposed convolution of
            several groups, the channels within a group (the groups are blocks of axis 0).
        groups: of a transposed convolution, else 1.
        bias: placeholder of the bias, if it has one.
        obstacle: why nothing can be folded into it; "" if something can.
    """

    value: str
    axis: int
    weight: str
    out: int
    groups: int
    bias: str | None
    obstacle: str


@dataclass(frozen=True)
class Fusable:
    """What of y -> gain * y + shift, per channel, the weights of the program can take up.

    Attributes:
        scale: whether the gain can.
        shift: where the shift goes: the layer's own "bias"; the "running_mean" of the batch norm that
            is the value's only reader; None for nowhere.
        reason: why not everything can; "" if it can.
    """

    scale: bool
    shift: Shift | None
    reason: str = ""


def fusable(program: Program, value: str) -> Fusable:
    """Whether a per-channel gain and shift of a value fold into the weights.

    Args:
        program: the graph.
        value: name of a value.
    """
    writer = writer_of(program, value)
    if writer is None:
        return Fusable(False, None, "it is not the output of a linear or conv operation with a weight")
    if writer.obstacle:
        return Fusable(False, None, writer.obstacle)
    if writer.bias is not None:
        return Fusable(True, "bias")
    readers = list(program.nodes[value].users)
    norm = statistics_of(program, readers[0]) if len(readers) == 1 else None
    if norm is not None and len(program.nodes[norm[0]].users) == 1:
        return Fusable(True, "running_mean")
    return Fusable(True, None, "it has no bias")


def statistics_of(program: Program, node: fx.Node) -> tuple[str, str] | None:
    """Placeholders of the running mean and variance that a batch norm normalises with."""
    if node.target is not aten.batch_norm.default or node.args[5] is not False:
        return None
    mean, variance = node.args[3], node.args[4]
    if not isinstance(mean, fx.Node) or not isinstance(variance, fx.Node):
        return None
    return (mean.name, variance.name) if {mean.name, variance.name} <= program.weights.keys() else None


def kept_apart(value: str) -> bool:
    """Whether a value is a branch's own in a program made by `keep_apart` (operations have no such names)."""
    return re.match(r"branch\d+_", value) is not None


def writer_of(program: Program, value: str) -> Writer | None:
    """How a value is made, if a linear or conv operation makes it from an activation and a weight."""
    node = program.nodes[value]
    if node.target not in LINEAR or value not in program.dynamic:
        return None
    rank = len(program.size(value))
    bias: object = None
    groups, obstacle = 1, ""
    if node.target is aten.linear.default:
        weight, out, axis, bias = node.args[1], 0, rank - 1, _argument(node, 2, "bias")
    elif node.target in _CONV or node.target is aten.convolution.default:
        weight, out, bias = node.args[1], 0, _argument(node, 2, "bias")
        axis = rank - _rank(program, weight) + 1
        if node.target is aten.convolution.default and node.args[6]:
            out, groups = 1, int(str(node.args[8]))
    elif node.target in _TRANSPOSED:
        weight, out, bias = node.args[1], 1, _argument(node, 2, "bias")
        axis = rank - _rank(program, weight) + 1
        groups = int(str(_argument(node, 6, "groups") or 1))
    elif node.target is aten.addmm.default:
        bias, first, weight = node.args[:3]
        out, axis = 1, 1
        if _static(program, first):
            return None  # weight @ activation + bias: the bias does not lie along the channels
        if any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
            obstacle = "its addmm has factors of its own"
    else:
        first, weight = node.args[:2]
        out, axis = 1, rank - 1
        if _static(program, first):
            weight, out, axis = first, 0, rank - 2
        if _rank(program, weight) != 2:
            return None  # a batch of matrices: no single axis of channels
    if not isinstance(weight, fx.Node) or not _static(program, weight):
        return None
    source, stored, alone = _trace(weight, out)
    if source.name not in program.weights or stored is None:
        obstacle = COMPUTED
        stored = out
    elif not alone:
        obstacle = f"its weight {program.weights[source.name]} is used at several places"
    if isinstance(bias, fx.Node) and not obstacle:
        if bias.name not in program.weights or _rank(program, bias) != 1:
            obstacle = "its bias is computed from others before it is added"
        elif len(bias.users) > 1:
            obstacle = f"its bias {program.weights[bias.name]} is used at several places"
    name = bias.name if isinstance(bias, fx.Node) else None
    return Writer(value, axis, source.name, stored, groups, name, obstacle)


def biases(program: Program) -> dict[str, str]:
    """Output of each linear or conv operation -> key of its bias, where that is a stored tensor of its own."""
    found: dict[str, str] = {}
    for value in program.nodes:
        writer = writer_of(program, value) if program.is_tensor(value) else None
        if writer is None or writer.bias is None or writer.bias not in program.weights:
            continue
        if len(program.nodes[writer.bias].users) == 1 and len(program.size(writer.bias)) == 1:
            found[value] = program.weights[writer.bias]
    return found


def levels(program: Program) -> dict[str, int]:
    """Output of each linear or conv operation -> its depth from 1, matrices between kept-apart parts not counted."""
    depths: dict[str, int] = {}
    for value in program.nodes:
        writer = writer_of(program, value) if program.is_tensor(value) else None
        if writer is not None and program.weights.get(writer.weight) not in program.bridges:
            depths[value] = program.depth[value]
    ranks = {depth: rank for rank, depth in enumerate(sorted(set(depths.values())), start=1)}
    return {value: ranks[depth] for value, depth in depths.items()}


def _argument(node: fx.Node, index: int, name: str) -> object:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def _rank(program: Program, node: object) -> int:
    return len(program.size(node.name)) if isinstance(node, fx.Node) else 0


def _static(program: Program, node: object) -> bool:
    """Whether a value comes from weights alone."""
    return isinstance(node, fx.Node) and node.name in program.learned and node.name not in program.dynamic


def _trace(node: fx.Node, axis: int) -> tuple[fx.Node, int | None, bool]:
    """Follow a weight back to its placeholder: that, the axis there, and whether nobody else reads it."""
    alone = True
    found: int | None = axis
    while node.op == "call_function":
        alone = alone and len(node.users) == 1
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return node, None, alone
        if found is not None:
            found = _axis_before(node, found)
        node = source
    return node, found, alone and len(node.users) == 1


def _axis_before(node: fx.Node, axis: int) -> int | None:
    if node.target in _SAME_AXES:
        return axis
    if node.target in (aten.t.default, aten.numpy_T.default):
        return 1 - axis
    rank = len(node.meta["val"].shape)
    if node.target is aten.transpose.int:
        first, second = (int(str(a)) % rank for a in node.args[1:3])
        return {first: second, second: first}.get(axis, axis)
    if node.target is aten.permute.default:
        order = node.args[1]
        assert isinstance(order, (list, tuple))
        return int(str(order[axis])) % rank
    return None
