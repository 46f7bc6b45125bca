"""Alignments and models of several shapes, or of which parts are kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from isthmus.align.alignment import Alignment
from isthmus.errors import InputError
from isthmus.program import Program
from isthmus.symmetry import SymmetryGraph, spaces_of


def turned(alignment: Alignment | None) -> dict[str, list[int]]:
    """Value -> the axes along which the models keep coordinates of their own where they are kept apart.

    Maps that keep the function move a whole model, branches included. Those that mix units stand at the border between
    branches and the merged part alone: M and U of a branch are no inverses of each other, and would damage it.
    """
    if alignment is None or alignment.keeps_functions:
        return {}
    mixed = frozenset().union(*(t.mixed for t in alignment.transports))
    found = {
        value: [dim for dim, axis in enumerate(axes) if spaces_of(axis) & mixed]
        for value, axes in alignment.graph.values.items()
    }
    return {value: dims for value, dims in found.items() if dims}


def resizing(alignment: Alignment | None) -> dict[str, int]:
    """The spaces that have other sizes in the merged network than in the reference, and those sizes."""
    if alignment is None:
        return {}
    graph, maps = alignment.graph, alignment.transports[alignment.reference].maps
    return {name: m.target for name, m in maps.items() if m.target != graph.spaces[name].size}


def check_apart(alignment: Alignment | None) -> None:
    """Refuse alignments that nothing can be kept apart with.

    Raises:
        InputError: shifts, or maps between spaces of different widths.
    """
    if alignment is None or alignment.keeps_functions:
        return
    if any(t.shifts for t in alignment.transports):
        raise InputError("with a part kept apart, maps cannot be shifted", hint="align without affine=True")
    wide = sorted({name for t in alignment.transports for name, m in t.maps.items() if m.source != m.target})
    if wide:
        raise InputError(
            "of models of different widths nothing can be kept apart",
            [
                f"{name}: {', '.join(str(t.graph.spaces[name].size) for t in alignment.transports)}"
                for name in wide
            ],
            hint="merge all layers, or models of equal widths",
        )


def branches(
    program: Program,
    alignment: Alignment | None,
    states: Sequence[Mapping[str, Tensor]],
    aligned: Sequence[Mapping[str, Tensor]],
    shares: Sequence[float],
) -> dict[str, Tensor]:
    """The weights of a kept-apart program that belong to one model each, and the matrices at its borders.

    Args:
        program: of `keep_apart`, with the axes of `turned`.
        alignment: how the models are aligned.
        states: the models.
        aligned: the moved models.
        shares: the models' weights.
    """
    mine = aligned
    found: dict[str, Tensor] = {}
    if alignment is not None and turned(alignment):
        mine = [t.own(state) for t, state in zip(alignment.transports, states, strict=True)]
        maps = alignment.weighted(shares)
        dtype = next(t.dtype for t in states[0].values() if t.is_floating_point())
        for key, bridge in program.bridges.items():
            matrix = maps[bridge.branch].bridge(bridge.value, bridge.axis, bridge.enters)
            found[key] = matrix.to(dtype)
    for key, (branch, original) in program.sources.items():
        if branch is not None:
            found[key] = mine[branch][original].clone()
    return found


def common(graphs: Sequence[SymmetryGraph]) -> list[SymmetryGraph]:
    """Graphs of one structure, one per model, with the spaces that are free in all of them."""
    free = set.intersection(*(set(graph.spaces) for graph in graphs))
    return [
        graph.frozen({name: "fixed in another model" for name in graph.spaces if name not in free})
        for graph in graphs
    ]
