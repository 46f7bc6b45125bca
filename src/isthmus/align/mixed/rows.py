"""What makes each unit of a space, as one row of numbers: its incoming weights, biases and norms."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.errors import InputError
from isthmus.maps import Map, Transport, positions_in
from isthmus.symmetry import Member, SymmetryGraph, spaces_of


def in_order(graph: SymmetryGraph, spaces: Sequence[str]) -> list[str]:
    """Spaces in the order in which the program first writes them."""
    first = {
        name: min(
            (i for i, axes in enumerate(graph.layout.values()) if any(name in spaces_of(a) for a in axes)),
            default=len(graph.layout),
        )
        for name in spaces
    }
    return sorted(spaces, key=first.__getitem__)


def rows(
    graph: SymmetryGraph,
    weights: Mapping[str, Tensor],
    space: str,
    maps: Mapping[str, Map],
    known: Collection[str] | None = None,
    *,
    products: bool = False,
) -> Float[Tensor, "units features"]:
    """Everything that writes a space, unit by unit, with what it reads turned by maps.

    A weight that reads the space as well (a recurrence, a layer that is used twice) is left out where there is another:
    what it reads is in no common order yet.

    Args:
        graph: the model's symmetries.
        weights: its state dict.
        space: the space; its own map is left out.
        maps: space -> map of what is read.
        known: weights that read other spaces than these are left out; all take part where not given.
        products: biases and norms are left out too, unless nothing else writes the space.

    Raises:
        InputError: nothing is left to tell the units by.
    """
    members = [m for m in graph.spaces[space].members if m.role == "writes" and m.key in weights]
    # Spaces on one axis with this one stay as they are, so that its units are where the graph says.
    beside = {name for m in members for name in spaces_of(graph.layout[m.key][m.axis])}
    read = {(m.key, m.axis): _across(graph, m) for m in members}
    usable = [
        m for m in members if known is None or read[m.key, m.axis] <= {*known, space} - (beside - {space})
    ]
    usable = [m for m in usable if space not in read[m.key, m.axis]] or usable
    if products:
        usable = [m for m in usable if weights[m.key].ndim > 1] or usable
    own = {name: m for name, m in maps.items() if name not in beside}
    keys = dict.fromkeys(m.key for m in usable)
    moved = Transport(graph, own).turned({key: weights[key] for key in keys})
    parts: list[Tensor] = []
    for member in usable:
        tensor = moved[member.key].double().movedim(member.axis, 0)
        index = positions_in(graph.layout[member.key][member.axis], space)
        # copies x units x rest: a space that an axis holds several times is told by all of them.
        parts.append(tensor[index].movedim(1, 0).flatten(1))
    if not parts:
        raise InputError(f"nothing that writes {space} could be compared")
    return torch.cat(parts, 1)


def _across(graph: SymmetryGraph, member: Member) -> set[str]:
    """The spaces on the other axes of a weight."""
    axes = enumerate(graph.layout[member.key])
    return {name for dim, axis in axes if dim != member.axis for name in spaces_of(axis)}
