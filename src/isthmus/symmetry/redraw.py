"""Weights on which a symmetry can be checked: in general position, and nowhere saturated."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from isthmus.errors import InputError
from isthmus.program import Batch, Program
from isthmus.symmetry.graph import SymmetryGraph


def redraw(
    graph: SymmetryGraph,
    program: Program,
    weights: Mapping[str, Tensor],
    batch: Batch,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Weights at a scale at which each path contributes: nothing zero, nothing tiny, nothing saturated.

    Args:
        graph: says which weights move; the others keep their values.
        program: the graph's, in float64.
        weights: the model's own, for what is not redrawn.
        batch: inputs on which running statistics are taken.
        generator: of the weights drawn.

    Raises:
        InputError: a buffer is needed that only the model can supply.
    """
    matrices = {program.linear_weight(node) for node in program.graph.nodes}
    result: dict[str, Tensor] = {}
    for name, key in program.weights.items():
        shape = program.size(name)
        if key in graph.ones:
            result[key] = torch.ones(shape, dtype=torch.float64)
        elif key not in graph.layout:
            if key not in weights and program.nodes[name].users:
                raise InputError(
                    "the graph has a buffer that only the model itself can supply",
                    [key],
                    hint="pass the model: graph.verify(model, example)",
                )
            # What nothing reads may hold anything.
            known = weights[key] if key in weights else torch.zeros(shape)
            result[key] = double(known)
        elif name in matrices and len(shape) > 1:
            fan_in = math.prod(shape[1:])
            result[key] = torch.randn(shape, generator=generator, dtype=torch.float64) * math.sqrt(2 / fan_in)
        elif len(shape) > 1 and max(shape) != math.prod(shape):
            result[key] = torch.randn(shape, generator=generator, dtype=torch.float64)
        else:
            result[key] = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    return _with_statistics(program, result, batch)


def _with_statistics(program: Program, weights: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """The weights with running statistics near those of the batch, so that no depth lets activations grow.

    Behind activations that grow, every softmax picks one and every gate is open or shut: what is before them is
    not seen by the output.
    """
    norms = {
        node.name: node
        for node in program.graph.nodes
        if node.target is torch.ops.aten.batch_norm.default
        and all(isinstance(a, fx.Node) and program.weights.get(a.name) in weights for a in node.args[3:5])
        and int(node.meta["val"].numel()) > int(node.meta["val"].shape[1])  # else there is no variance
    }
    if not norms:
        return weights
    result = dict(weights)
    readers: dict[str, list[fx.Node]] = {}
    for node in norms.values():
        readers.setdefault(node.all_input_nodes[0].name, []).append(node)

    def measure(name: str, value: Tensor) -> None:
        dims = [d for d in range(value.ndim) if d != 1]
        variance, mean = torch.var_mean(value, dims, correction=0)
        for node in readers[name]:
            keys = [program.weights[a.name] for a in node.args[3:5] if isinstance(a, fx.Node)]
            # What was drawn, from 0.5 to 1.5, says how far off they are.
            result[keys[0]] = mean + (weights[keys[0]] - 1) * variance.sqrt()
            result[keys[1]] = weights[keys[1]] * (variance + 0.01 * variance.mean() + 1e-6)

    with torch.no_grad():
        program.compile(taps=readers, batch_statistics=norms)(weights, batch, tap=measure)
    return result


def double(tensor: Tensor) -> Tensor:
    """On the processor, floating values in float64."""
    return tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else tensor.dtype)
