"""Shifts beside maps: merged = A units + t, units = B merged + u.

A constant coordinate more would say the same of every matrix. Here t goes to what is added to a space after everything
that makes it, and W u to what is added behind each of its readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, fx

from isthmus.maps.elementwise import multipliers
from isthmus.maps.positions import positions_in
from isthmus.program import LINEAR, Program
from isthmus.symmetry import Leaf, SymmetryGraph, spaces_of

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Shift:
    """What is added to merged units, and to units that are read back from them.

    Attributes:
        written: t, of the merged units' number.
        read: u, of the model's units' number.
    """

    written: Float[Tensor, " target"]
    read: Float[Tensor, " source"]


@dataclass(frozen=True)
class Places:
    """Where a space's shifts go.

    Attributes:
        written: the key that is added to the space last.
        read: reader's key -> the key that takes W u, and whether it is subtracted (a norm's running mean).
    """

    written: str
    read: Mapping[str, tuple[str, bool]]


def places(graph: SymmetryGraph) -> dict[str, Places]:
    """Where each space's shifts go, for the spaces that can be shifted.

    A space can be where one layer makes it, nothing but a norm scales it, and all that reads it has a bias or is
    normalised by running statistics. A residual stream has several layers: its shift would be counted once for each.
    """
    program = graph.program
    if not isinstance(program, Program):
        return {}
    scales, taking = multipliers(graph), dict(_taking(program))
    found: dict[str, Places] = {}
    for name, space in graph.spaces.items():
        rank = {m.key: len(graph.layout[m.key]) for m in space.members}
        made = [m.key for m in space.members if m.role == "writes" and rank[m.key] > 1]
        scaled = [m.key for m in space.members if m.key in scales]
        added = [
            m.key for m in space.members if m.role == "writes" and rank[m.key] == 1 and m.key not in scales
        ]
        readers = {m.key for m in space.members if m.role == "reads"}
        simple = len(made) == 1 and made[0] not in scales and len(scaled) <= 1 and added
        simple = simple and all(isinstance(graph.layout[key][0], Leaf) for key in (*scaled, *added))
        if simple and readers and readers <= taking.keys():
            last = [key for key in graph.layout if key in added][-1]
            found[name] = Places(last, {key: taking[key] for key in readers})
    return found


def _taking(program: Program) -> list[tuple[str, tuple[str, bool]]]:
    """Keys of matrices, and the key that can take a constant at their output."""
    found: list[tuple[str, tuple[str, bool]]] = []
    for node in program.graph.nodes:
        if node.target not in LINEAR or len(node.args) < 2:
            continue
        weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
        if not isinstance(weight, fx.Node) or weight.name not in program.weights or len(weight.users) > 1:
            continue
        key, users = program.weights[weight.name], list(node.users)
        if isinstance(bias, fx.Node) and bias.name in program.weights and len(bias.users) == 1:
            found.append((key, (program.weights[bias.name], False)))
        elif bias is None and len(users) == 1 and users[0].target is aten.batch_norm.default:
            mean = users[0].args[3]
            if isinstance(mean, fx.Node) and mean.name in program.weights:
                found.append((key, (program.weights[mean.name], True)))
    return found


def read_shifted(
    graph: SymmetryGraph, weights: Mapping[str, Tensor], shifts: Mapping[str, Shift]
) -> dict[str, Tensor]:
    """Add W u behind every reader of the shifted spaces; a zero-padded conv gets all of it at its borders too."""
    result = dict(weights)
    known = places(graph) if shifts else {}  # a graph read from a file has no program to look for them in
    for name, shift in shifts.items():
        for key, (target, subtracted) in known[name].read.items():
            for dim, axis in enumerate(graph.layout[key]):
                if name not in spaces_of(axis):
                    continue
                index = positions_in(axis, name)
                weight = weights[key].double().movedim(dim, -1)
                taken = (weight[..., index] * shift.read.to(weight)).sum((-1, -2))
                taken = taken.flatten(1).sum(1) if taken.ndim > 1 else taken
                moved = result[target].double() + (-taken if subtracted else taken)
                result[target] = moved.to(weights[target].dtype)
    return result


def write_shifted(
    graph: SymmetryGraph, weights: Mapping[str, Tensor], shifts: Mapping[str, Shift]
) -> dict[str, Tensor]:
    """Add t to what makes the shifted spaces."""
    result = dict(weights)
    known = places(graph) if shifts else {}
    for name, shift in shifts.items():
        key = known[name].written
        own = result[key].double()
        result[key] = (own + shift.written.to(own)).to(weights[key].dtype)
    return result
