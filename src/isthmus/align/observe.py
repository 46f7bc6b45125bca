"""Where a space is seen: the values of the program that represent it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import fx

from isthmus.errors import InputError
from isthmus.symmetry import SymmetryGraph, spaces_of

aten = torch.ops.aten

Where = Literal["post-activation", "post-norm", "pre-activation"]

_NORMS = {
    aten.batch_norm.default,
    aten.layer_norm.default,
    aten.group_norm.default,
    aten.rms_norm.default,
    aten.instance_norm.default,
}

#: Operations that a reader is looked behind: they change shape or resolution, not meaning.
_TRANSPARENT = {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.transpose.int,
    aten.contiguous.default,
    aten.clone.default,
    aten.dropout.default,
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.mean.dim,
    aten.slice.Tensor,
    aten.select.int,
    aten.to.dtype,
    aten.unsqueeze.default,
    aten.squeeze.dim,
}


def observations(
    graph: SymmetryGraph, *, at: Where = "post-activation", stream: Literal["last", "pooled"] = "last"
) -> dict[str, list[tuple[str, int]]]:
    """The values that represent each space, as (value, channel axis), in order of execution.

    "pre-activation": the outputs of the linear and conv operations that write it. "post-norm": those after
    the norm behind them, where there is one. "post-activation": what the operations that read it
    see, looked at before pooling and reshaping; spaces that no such operation reads (queries and
    keys) are seen where they are written, and so are heads and what is inside them; spaces that no such operation
    writes (a recurrent layer's, an embedding's), where they are read. Of several values a residual stream
    shows the last, or all of them "pooled".

    Raises:
        InputError: an unknown choice.
    """
    if at not in ("post-activation", "post-norm", "pre-activation"):
        raise InputError(f"at = {at!r} is none of 'post-activation', 'post-norm', 'pre-activation'")
    if stream not in ("last", "pooled"):
        raise InputError(f"stream = {stream!r} is neither 'last' nor 'pooled'")
    program = graph.program
    written: dict[str, list[tuple[str, int]]] = {name: [] for name in graph.spaces}
    normed: dict[str, list[tuple[str, int]]] = {name: [] for name in graph.spaces}
    read: dict[str, list[tuple[str, int]]] = {name: [] for name in graph.spaces}
    for node in program.graph.nodes:
        if node.name not in program.dynamic or node.op != "call_function":
            continue
        if program.applies_weight(node):
            _add(graph, written, node)
            source = next((a for a in node.all_input_nodes if a.name in program.dynamic), None)
            if source is not None:
                _add(graph, read, _behind(graph, source))
        elif node.target in _NORMS:
            _add(graph, normed, node)
    nested = {n for space in graph.spaces.values() if space.within for n in (space.name, *space.within)}
    result: dict[str, list[tuple[str, int]]] = {}
    for name in graph.spaces:
        if at == "post-activation":
            found = read[name] or written[name]
        elif at == "post-norm":
            found = normed[name] or written[name] or read[name]
        else:
            found = written[name] or read[name]
        if name in nested:
            # Heads and what is inside them: one value may show two inner spaces at once, another only one.
            result[name] = list(dict.fromkeys([*written[name], *found]))
        else:
            found = list(dict.fromkeys(found))
            result[name] = found[-1:] if stream == "last" else found
    return result


def _add(graph: SymmetryGraph, found: dict[str, list[tuple[str, int]]], node: fx.Node) -> None:
    axes = graph.values.get(node.name)
    if axes is None:
        return
    carriers = [dim for dim, axis in enumerate(axes) if spaces_of(axis)]
    if len(carriers) == 1:
        for name in spaces_of(axes[carriers[0]]):
            found[name].append((node.name, carriers[0]))


def _behind(graph: SymmetryGraph, node: fx.Node) -> fx.Node:
    """The value behind pooling and reshaping that carries the same spaces on a single axis."""
    wanted = {name for axis in graph.values[node.name] for name in spaces_of(axis)}
    best = node
    while node.target in _TRANSPARENT and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        axes = graph.values.get(node.name)
        if axes is None:
            break
        carriers = [axis for axis in axes if spaces_of(axis)]
        if {name for axis in carriers for name in spaces_of(axis)} != wanted:
            break
        if len(carriers) == 1:
            best = node
    return best
