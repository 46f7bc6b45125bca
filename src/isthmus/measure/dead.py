"""Dead units: what a layer reads that never varies."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from isthmus.features import Request, collect
from isthmus.measure.answers import Weights
from isthmus.measure.finding import Finding
from isthmus.measure.layers import batch_dim, readable
from isthmus.program import Program

#: A standard deviation this far below the size of what a layer reads is rounding.
SMALL = 1e-6


def dead_units(program: Program, weights: Weights, data: Iterable[object], *, split: str = "data") -> Finding:
    """Share of the units in front of each layer that are the same whatever the input.

    Looked at where a linear or conv operation reads them, behind norm, activation and pooling, so that a unit whose
    ReLU never opens is counted. A layer that reads nothing alive passes on its biases alone.

    Args:
        program: the architecture.
        weights: a state dict.
        data: yields inputs, or (inputs, targets). Targets are not used.
        split: what the data is, for the notes.

    Returns:
        The share of each reading layer; the value is the largest. A layer that reads the model's input is left out.

    Examples:
        >>> import torch
        >>> from isthmus.program import export
        >>> from torch import nn
        >>> net, x = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(9, 2)
        >>> with torch.no_grad():
        ...     _ = net[0].bias.copy_(torch.tensor([-9.0, -9.0, -9.0, 9.0]))
        >>> dead_units(export(net, x), net.state_dict(), [torch.randn(9, 2)]).value
        0.75
    """
    readers = {
        node.name: source
        for node in program.graph.nodes
        if node.users and node.name in program.dynamic and program.applies_weight(node)
        if (source := _read(program, node)) is not None
    }
    labels = readable(program, list(readers))
    requests = {name: _request(program, name, source) for name, source in readers.items()}
    features = collect(program, [weights], data, requests.values()) if requests else None
    layers: dict[str, float] = {}
    for name, request in requests.items():
        assert features is not None
        seen = features[request.place]
        size = (seen.variance[0] + seen.mean[0].square()).sqrt().max()
        layers[labels[name]] = float((seen.std[0] <= SMALL * size).double().mean())
    note = f"units that do not vary, where a layer reads them; {split}: {features.examples if features else 0} examples"
    return Finding("dead units", max(layers.values(), default=0.0), "1", "lower", (0.0, 1.0), layers, note)


def _read(program: Program, node: fx.Node) -> str | None:
    """The activation that a linear or conv operation reads, if a layer made it."""
    source = next(a.name for a in node.all_input_nodes if a.name in program.dynamic)
    known = program.is_tensor(source) and batch_dim(program, source) is not None
    return source if known and program.depth[source] > 0 else None


def _request(program: Program, name: str, source: str) -> Request:
    conv = "conv" in str(program.nodes[name].target)
    return Request(source, 1 if conv else len(program.size(source)) - 1)
