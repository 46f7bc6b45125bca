"""How much an alignment lets a merged network keep: information loss and defect, space by space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from isthmus.align import Alignment, Joint, joint, mixable, observations
from isthmus.features import feed
from isthmus.maps import Permutation, Transport
from isthmus.measure.finding import Finding
from isthmus.program import home

#: Elementwise functions of one argument that bend: what maps do not pass through unchanged.
_AFFINE = {
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "clone",
    "_to_copy",
    "to",
    "dropout",
    "contiguous",
    "detach",
    "alias",
}


class Kept(NamedTuple):
    """What the maps of an alignment let a merged network keep; each has a value per space.

    Attributes:
        information: the share of what the models' units tell that can be read back, 1 for all.
        bound: the share that the best linear map to as many units keeps.
        defect: how far the maps are from passing through the activations, 0 for not at all.
    """

    information: Finding
    bound: Finding
    defect: Finding

    def __str__(self) -> str:
        if not self.bound.layers:
            return "information kept: not measured, for no space has units that can be mixed"
        return (
            f"information kept {self.information.value:.3f}, at most {self.bound.value:.3f} at these widths (PCA); "
            f"defect {self.defect.value:.3f} ({self.information.note})"
        )


def kept(
    alignment: Alignment,
    models: Sequence[Mapping[str, Tensor]],
    data: Iterable[object],
    *,
    weights: Sequence[float] | None = None,
    limit: int | None = None,
) -> Kept:
    """What the maps of an alignment lose, whatever the weights that are merged through them.

    With all models' units x side by side and covariance S, merged units are A x and are read back as B A x.

    Args:
        alignment: of any method.
        models: the models that were aligned.
        data: inputs to measure on, to be read more than once.
        weights: the models' weights in the merge; uniform where not given.
        limit: use at most this many examples.

    Returns:
        "information kept": 1 - tr((I - BA) S (I - BA)^T) / tr S per space, 1 where every model's units can be read
        back from the merged ones, negative where they are further from what they were than their mean is.
        "information bound": what the best map to as many units (PCA of S) would keep.
        "defect": mean |phi(A x) - A phi(x)| / mean |A phi(x)|, how far the maps are from passing through the
        activations phi behind which a space is seen; 0 where merged units have members that are equal.
        Each has the mean over spaces as its value, and the spaces as its layers.

    Source: derived here; the bound is the theorem of Eckart and Young.
    """
    count = len(alignment.transports)
    shares = [1 / count] * count if weights is None else list(weights)
    maps = alignment.weighted(shares)
    graphs = [transport.graph for transport in maps]
    own = [t.own(m) for t, m in zip(maps, models, strict=True)]
    spaces = mixable(alignment.graph)
    found, seen = joint(graphs, own, data, spaces, limit=limit)
    information: dict[str, float] = {}
    bound: dict[str, float] = {}
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, statistics in found.items():
        pairs[name] = _stacked(maps, shares, name)
        information[name], bound[name] = _information(statistics, *pairs[name])
    defects = _defects(alignment, own, data, pairs, limit)
    note = f"{seen.examples} examples"
    return Kept(
        _finding("information kept", information, "higher", (None, 1.0), note),
        _finding("information bound", bound, None, (0.0, 1.0), f"{note}; PCA at the merged widths"),
        _finding("defect", defects, "lower", (0.0, None), note),
    )


def _finding(
    name: str,
    layers: dict[str, float],
    better: str | None,
    bounds: tuple[float | None, float | None],
    note: str,
) -> Finding:
    mean = sum(layers.values()) / max(len(layers), 1)
    chosen = "higher" if better == "higher" else "lower" if better == "lower" else None
    return Finding(name, mean, better=chosen, bounds=bounds, layers=layers, note=note)


def _stacked(transports: Sequence[Transport], shares: Sequence[float], name: str) -> tuple[Tensor, Tensor]:
    """A and B of all models side by side."""
    forward, backward = [], []
    for transport, share in zip(transports, shares, strict=True):
        item = transport.maps.get(name)
        size = transport.graph.spaces[name].size
        # Orders have been applied already: what is watched are the models in their own, reordered coordinates.
        a = b = torch.eye(size, dtype=torch.float64)
        if item is not None and not isinstance(item, Permutation):
            a, b = item.matrices()
        forward.append(share * a)
        backward.append(b)
    return torch.cat(forward, 1), torch.cat(backward)


def _information(statistics: Joint, a: Tensor, b: Tensor) -> tuple[float, float]:
    covariance = statistics.covariance.double()
    total = covariance.trace().clamp(min=torch.finfo(torch.float64).tiny)
    rest = torch.eye(len(covariance), dtype=torch.float64) - b @ a
    lost = ((rest @ covariance) * rest).sum() / total
    values = torch.linalg.eigvalsh(covariance).clamp(min=0)
    best = values[-len(a) :].sum() / total
    return 1 - lost.item(), best.item()


def _defects(
    alignment: Alignment,
    own: Sequence[Mapping[str, Tensor]],
    data: Iterable[object],
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    limit: int | None,
) -> dict[str, float]:
    """The defect of each space whose activation can be told apart from what is before it."""
    graph = alignment.graph
    places: dict[str, tuple[str, str, int]] = {}
    for name, seen in observations(graph).items():
        if name in pairs and seen:
            value, axis = seen[-1]
            before = _before_activation(graph.program.nodes[value], graph.program.dynamic)
            whole = graph.values[value][axis].size == graph.spaces[name].size
            if before is not None and whole:
                places[name] = (before.name, value, axis)
            elif whole:
                places[name] = (value, value, axis)
    watched = {v for before, after, _ in places.values() for v in (before, after)}
    programs = [t.graph.program for t in alignment.transports]
    runners = [program.compile(sorted(watched)) for program in programs]
    again = {
        name: graph.program.compile([after], given=[before])
        for name, (before, after, _) in places.items()
        if before != after
    }
    homes, stays = [home(weights) for weights in own], alignment.reference
    off, size = dict.fromkeys(places, 0.0), dict.fromkeys(places, 0.0)
    with torch.no_grad():
        for batch in feed(data, "defect", limit):
            shown: list[Mapping[str, Tensor]] = []
            for runner, weights, place in zip(runners, own, homes, strict=True):
                outputs = runner(weights, batch.to(*place))
                assert isinstance(outputs, dict)
                shown.append(outputs)
            for name, (before, after, axis) in places.items():
                wanted = _merged(pairs[name][0], [s[after] for s in shown], axis)
                size[name] += _norms(wanted, axis)
                if before == after:
                    continue
                given = _merged(pairs[name][0], [s[before] for s in shown], axis)
                made = again[name](own[stays], batch.to(*homes[stays]), given={before: given})
                assert isinstance(made, dict)
                off[name] += _norms(made[after] - wanted, axis)
    return {name: off[name] / max(size[name], 1e-30) for name in places}


def _before_activation(node: fx.Node, dynamic: frozenset[str]) -> fx.Node | None:
    """The value that enters the activations right behind which a space is seen; None where there is none."""
    found: fx.Node | None = None
    while torch.Tag.pointwise in getattr(node.target, "tags", ()):
        inputs = [a for a in node.all_input_nodes if a.name in dynamic]
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        if len(inputs) != 1 or len(node.all_input_nodes) != 1 or name in _AFFINE:
            break
        node = found = inputs[0]
    return found


def _merged(a: Tensor, values: Sequence[Tensor], axis: int) -> Tensor:
    """A x along one axis."""
    stacked = torch.cat(list(values), axis).movedim(axis, -1)
    return (stacked @ a.mT.to(stacked)).movedim(-1, axis)


def _norms(value: Tensor, axis: int) -> float:
    """Sum over samples of the length along the axis."""
    return torch.linalg.vector_norm(value.double(), dim=axis).sum().item()
