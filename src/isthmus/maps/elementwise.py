"""Weights that meet a space one unit at a time, under maps that mix units.

A map (A, B) turns a matrix W into A_o W B_n. A weight that multiplies unit by unit is a diagonal matrix, and
A diag(w) B is diagonal again only for permutations and for groups of units (`Membership`). Elsewhere the diagonal
of it is taken, each row normalised by the sum of its coefficients: (A * B^T) w, a weighted mean of the multipliers of
the units that a merged unit stands for.

A batch norm right behind a layer needs no such projection: the layer can take over its scale.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from isthmus.program import Program
from isthmus.symmetry import SymmetryGraph, spaces_of

aten = torch.ops.aten

_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
_PRODUCTS = {"mul", "div", "prelu", "_prelu_kernel"}


def multipliers(graph: SymmetryGraph) -> frozenset[str]:
    """Keys of the weights that multiply unit by unit: scales of norms and layers, gates, depthwise kernels."""
    program = graph.program
    if not isinstance(program, Program):
        return frozenset()
    found: set[str] = set()
    for node in program.graph.nodes:
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        if node.op != "call_function" or node.name not in program.dynamic:
            continue
        if name.endswith("_norm"):
            found |= _keys(program, _argument(node, "weight"))
        elif name in _PRODUCTS:
            for operand in node.args[:2]:
                found |= _keys(program, operand)
        elif node.target in _CONVOLUTIONS:
            source, weight = list(node.all_input_nodes)[:2]
            if weight.name in program.weights:
                # A depthwise kernel makes the very units that it reads.
                key = program.weights[weight.name]
                read = {s for axis in graph.values.get(source.name, ()) for s in spaces_of(axis)}
                if key in graph.layout and spaces_of(graph.layout[key][0]) & read:
                    found.add(key)
    return frozenset(found)


@dataclass(frozen=True)
class Absorbable:
    """A batch norm right behind a layer that nothing else reads: what belongs to both, by key.

    Attributes:
        weight, bias: of the layer; bias None where it has none.
        scale, mean, variance: of the norm.
        eps: what it adds to its variance.
    """

    weight: str
    bias: str | None
    scale: str
    mean: str
    variance: str
    eps: float


def absorbable(graph: SymmetryGraph) -> Iterator[Absorbable]:
    """The batch norms whose scale the layer before them can take over."""
    program = graph.program
    if not isinstance(program, Program):
        return
    for node in program.graph.nodes:
        if node.target is not aten.batch_norm.default or node.args[5] is not False:
            continue
        layer = node.all_input_nodes[0]
        if not isinstance(layer, fx.Node) or len(layer.users) != 1:
            continue
        if layer.target not in {aten.linear.default, *_CONVOLUTIONS}:
            continue
        bias = next(iter(layer.args[2:]), None)
        owned = [layer.args[1], node.args[1], node.args[3], node.args[4], *([] if bias is None else [bias])]
        keys = [
            program.weights[n.name] for n in owned if isinstance(n, fx.Node) and n.name in program.weights
        ]
        alone = all(isinstance(n, fx.Node) and len(n.users) == 1 for n in owned)
        if not alone or len(keys) < len(owned) or set(keys) & set(program.tied.values()):
            continue
        weight, scale, mean, variance, *rest = keys
        eps = float(str(node.args[7]))
        yield Absorbable(weight, rest[0] if rest else None, scale, mean, variance, eps)


def absorb(
    graph: SymmetryGraph, weights: Mapping[str, Tensor], spaces: Collection[str]
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """Let layers take over the scales of the batch norms behind them, so that these multiply by one.

    The function stays: with c = scale / sqrt(variance + eps) the layer and the norm's mean are multiplied by c, the
    variance by c^2, and the norm's scale becomes sqrt(variance + eps), the deviation of what comes out of it.

    Args:
        graph: the symmetries.
        weights: a state dict.
        spaces: only norms on these spaces.

    Returns:
        The weights, and the keys of the scales that are deviations now.
    """
    result = dict(weights)
    deviations: set[str] = set()
    for norm in absorbable(graph):
        named = [norm.weight, norm.scale, norm.mean, norm.variance, *([norm.bias] if norm.bias else [])]
        if not all(key in weights and key in graph.layout for key in named):
            continue
        if not spaces_of(graph.layout[norm.scale][0]) & set(spaces):
            continue
        weight, variance = weights[norm.weight], weights[norm.variance].double()
        factor = weights[norm.scale].double() / (variance + norm.eps).sqrt()
        along = factor.view(-1, *[1] * (weight.ndim - 1))
        result[norm.weight] = (weight.double() * along).to(weight.dtype)
        for key in (norm.mean, *([norm.bias] if norm.bias else [])):
            result[key] = (weights[key].double() * factor).to(weights[key].dtype)
        scaled = variance * factor.square()
        result[norm.variance] = scaled.to(weights[norm.variance].dtype)
        result[norm.scale] = (scaled + norm.eps).sqrt().to(weights[norm.scale].dtype)
        deviations.add(norm.scale)
    return result, frozenset(deviations)


def _argument(node: fx.Node, name: str) -> object:
    """An argument of an operation by the name that its schema gives it."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    if name not in names:
        return None
    place = names.index(name)
    return node.args[place] if place < len(node.args) else node.kwargs.get(name)


def _keys(program: Program, operand: object) -> set[str]:
    """The weights that an operand is made of, if it is made of weights alone."""
    if not isinstance(operand, fx.Node) or operand.name in program.dynamic:
        return set()
    found: set[str] = set()
    todo = [operand]
    while todo:
        node = todo.pop()
        if node.name in program.weights:
            found.add(program.weights[node.name])
        todo += node.all_input_nodes
    return found
