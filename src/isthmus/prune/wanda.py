"""Wanda: weights by activations. What carries little of its input goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, fx

from isthmus.features import Request, collect, feed, windows
from isthmus.program import Program
from isthmus.prune.layers import Layer
from isthmus.prune.selection import keep_largest
from isthmus.prune.table import PRUNERS, Choice
from isthmus.statistics.gradients import pieces


@PRUNERS.register(
    "wanda",
    needs=("data",),
    claims=("sparsity-exact", "unpruned-is-identity", "pruned-stays-pruned", "batching-free", "seeded"),
    costs="one pass over the data",
    source="Sun et al. 2024 (arXiv:2306.11695)",
)
def wanda(
    program: Program,
    weights: Mapping[str, Tensor],
    layers: Sequence[Layer],
    *,
    sparsity: float,
    data: Iterable[object],
    scope: Literal["layer", "row"] = "row",
    sequential: bool = False,
    limit: int | None = 512,
    microbatch: int = 32,
) -> Choice:
    """Prune the weights of the smallest |w| |x|, where |x| is the norm of the input that a weight is multiplied with.

    Args:
        program: the graph.
        weights: its state dict; it is not changed.
        layers: what to prune.
        sparsity: share of the weights to prune, 0 to 1.
        data: an iterable of inputs or (inputs, targets), read once per depth if `sequential`; targets are not used.
        scope: compared within each output unit ("row") or each layer ("layer"); norms of different layers' inputs are
            in different units.
        sequential: layer after layer, each looking at inputs that pruned layers have made. Otherwise all look at
            those of the unpruned network, in one pass: behind batch norms whose statistics pruning has made stale,
            the better (see experiments/pruning).
        limit: number of examples.
        microbatch: examples run at a time: a convolution's patches take up its input times the kernel's area.

    Raises:
        DataError: data that does not fit.

    Source: Sun et al. 2024 (arXiv:2306.11695), equation 1 and section 3. They prune linear layers, block after
        block (`sequential` goes layer after layer). A convolution's inputs are the columns of its patches, one norm per
        input channel and offset, zero padding included. A transposed convolution has one norm per input channel.
    """
    readings: dict[str, list[_Reading]] = {}
    left: dict[str, str] = {}
    for layer in layers:
        found = [_reading(program, program.nodes[value], layer) for value in layer.values]
        if any(reading is None for reading in found):
            left[layer.key] = "its input has no batch dimension"
        else:
            readings[layer.key] = [reading for reading in found if reading is not None]
    chosen = [layer for layer in layers if layer.key in readings]
    own, keep, examples = dict(weights), {}, 0
    for step in _steps(program, chosen, sequential):
        requests = dict.fromkeys(r.request for layer in step for r in readings[layer.key])
        small = (
            (piece.args, piece.kwargs)
            for batch in feed(data, "norms of inputs", limit)
            for _, piece in pieces(batch, microbatch)
        )
        features = collect(program, [own], (k if k else (a, None) for a, k in small), requests)
        examples = features.examples
        scores: dict[str, Tensor] = {}
        for layer in step:
            moments = [features[reading.request.place] for reading in readings[layer.key]]
            # Samples of all places where the weight is applied count alike.
            squares = sum(
                (
                    reading.columns(m.mean[0].square() + m.variance[0]) * m.samples
                    for reading, m in zip(readings[layer.key], moments, strict=True)
                ),
                torch.zeros((), device=own[layer.key].device),
            )
            scores[layer.key] = layer.stored(layer.rows(own[layer.key]).abs() * squares.sqrt())
        for key, kept in keep_largest(scores, own, step, sparsity, scope).items():
            keep[key] = kept
            own[key] = own[key] * kept
    return Choice(keep, left=left, notes={"examples": examples})


def _steps(program: Program, layers: Sequence[Layer], sequential: bool) -> Iterator[list[Layer]]:
    """Layers that are pruned at a time: those of one depth do not read each other."""
    if not sequential:
        yield list(layers)
        return
    depths = {layer.key: max(program.depth[value] for value in layer.values) for layer in layers}
    for depth in sorted(set(depths.values())):
        yield [layer for layer in layers if depths[layer.key] == depth]


class _Reading:
    """What one operation multiplies a weight with.

    Args:
        request: the statistics of its input.
        layer: of the weight.
        groups: of a convolution.
        repeat: offsets of the kernel that share an input channel's norm.
    """

    def __init__(self, request: Request, layer: Layer, groups: int, repeat: int):
        self.request, self.layer, self.groups, self.repeat = request, layer, groups, repeat

    def columns(self, squares: Float[Tensor, " _"]) -> Float[Tensor, "units inputs"]:
        """Mean squares of the input, beside the rows of the weight."""
        units = self.layer.shape[self.layer.out] * self.layer.groups
        each = squares.view(self.groups, -1).repeat_interleave(self.repeat, 1)
        return each.repeat_interleave(units // self.groups, 0)


def _reading(program: Program, node: fx.Node, layer: Layer) -> _Reading | None:
    if (shown := windows(program, node)) is not None:
        patches, groups = shown
        return _Reading(Request(_source(node, 0).name, 1, patches=patches), layer, groups, 1)
    kernel = layer.shape[2:]
    if "conv" in str(node.target):  # a transposed one, or one without a batch
        source, rank = _source(node, 0), len(kernel) + 2
        if len(program.size(source.name)) != rank:
            return None
        return _Reading(Request(source.name, 1), layer, layer.groups, torch.Size(kernel).numel())
    source = _source(node, 1 if node.target is torch.ops.aten.addmm.default else 0)
    left = source.name not in program.dynamic  # weight @ activation
    source = _source(node, 1) if left else source
    return _Reading(Request(source.name, len(program.size(source.name)) - 1 - left), layer, 1, 1)


def _source(node: fx.Node, index: int) -> fx.Node:
    source = node.args[index]
    assert isinstance(source, fx.Node)
    return source
