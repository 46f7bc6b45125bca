"""Weight matching of checkpoints that do not fit in memory: independent parts of the graph, one after another.

With the residual streams left as they are, what is inside one layer's attention or MLP shares no weight with what is
inside another. Each such part is matched for itself, from its own weights alone, and their pages are let go before the
next: the memory taken is that of the largest part, however many there are. If the streams move too, all layers
hang together and are swept over together, a weight at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from isthmus.align.alignment import Alignment, Cost, permutations
from isthmus.align.orders.full_groups import Residual, check_choices
from isthmus.align.orders.matching import Matching
from isthmus.progress import task
from isthmus.symmetry import SymmetryGraph, positions, spaces_of
from isthmus.symmetry.residual import residual_streams
from isthmus.weights import stored


def weight_matching_by_parts(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    reference: int = 0,
    seed: int = 0,
    max_sweeps: int = 100,
    residual: Residual = "identity",
    memory: float = 0.0,
    threads: int | None = None,
) -> Alignment:
    """Match units by their weights, in memory that does not grow with the number of layers.

    What it finds is what `weight-matching` finds: a part that is one space is matched exactly, other parts by the same
    ascent from the same start, with visits in an order of their own.

    Args:
        graph: the symmetries; also one that was loaded from a file.
        models: checkpoints, as `isthmus.weights.open` gives them: nothing is held of a weight that is not at hand.
        reference: index of the model that stays.
        seed: of the order in which spaces are visited.
        max_sweeps: give up a part after this many sweeps.
        residual: "identity" leaves residual streams as they are; "match" moves them too: one part, read several
            times over.
        memory: GiB of evidence that may be kept from sweep to sweep within a part.
        threads: how many to use; None for as many as torch does.

    Returns:
        An alignment by permutations. Spaces whose order along one dimension of a weight depends on the place
        along another are left as they are, with a note: such a weight cannot be reordered a run at a time.

    Raises:
        MismatchError: a weight of the graph is missing in a model, or has another shape.
        InputError: no such choice of `residual`.

    Source: Ainsworth et al., Git Re-Basin, arXiv:2209.04836, algorithm 1, applied to connected components.
    """
    check_choices("permutation", residual)
    held = dict.fromkeys(residual_streams(graph), "residual: identity") if residual == "identity" else {}
    crossed = dict.fromkeys(_crossed(graph), "its order depends on the place along another dimension")
    moving = graph.frozen(held | crossed) if held or crossed else graph
    pieces = list(parts(moving))
    transports, costs, notes, status = [], [], [], "converged"
    notes += [f"{name} stays: {why}" for name, why in crossed.items()]
    for index, weights in enumerate(models):
        orders: dict[str, Tensor] = {}
        if index != reference:
            start = objective = 0.0
            sweeps = 0
            with task(f"matching model {index}", total=len(pieces), unit="parts") as advance:
                for piece in pieces:
                    run = Matching(piece, models[reference], weights, seed, memory=memory, threads=threads)
                    run.run(max_sweeps)
                    orders |= run.orders
                    start, objective = start + run.start, objective + run.objective
                    sweeps = max(sweeps, run.sweeps)
                    if not run.converged:
                        status = f"stopped after {max_sweeps} sweeps"
                    costs += [Cost(index, *row, "mean cosine") for row in run.costs()]
                    _let_go(piece, (models[reference], weights))
                    advance(1)
            notes.append(
                f"model {index}: {len(pieces)} parts, at most {sweeps} sweeps, "
                f"objective {start:.6g} -> {objective:.6g}"
            )
        transports.append(permutations(graph, orders))
    settings: dict[str, object] = {
        "seed": seed,
        "max_sweeps": max_sweeps,
        "residual": residual,
        "memory": memory,
    }
    return Alignment(
        "weight-matching", graph, tuple(transports), reference, tuple(costs), settings, tuple(notes), status
    )


def parts(graph: SymmetryGraph) -> Iterator[SymmetryGraph]:
    """The graph cut into pieces, no weight of which carries a space of another piece.

    Args:
        graph: the symmetries.

    Yields:
        A graph with some of the spaces and the weights that carry them, in the order of the spaces.

    Examples:
        >>> import torch, isthmus
        >>> from isthmus.align.by_parts import parts
        >>> mlp = [torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)]
        >>> model = torch.nn.Sequential(*mlp, torch.nn.Softmax(1), torch.nn.Linear(4, 2))
        >>> graph = isthmus.trace(model, torch.randn(2, 4))
        >>> [list(part.spaces) for part in parts(graph)]
        [['0', '2']]
        >>> [list(part.spaces) for part in parts(graph.frozen({"2": "stays"}))]
        [['0']]
    """
    root = {name: name for name in graph.spaces}

    def find(name: str) -> str:
        while root[name] != name:
            root[name] = root[root[name]]
            name = root[name]
        return name

    carried = {
        key: sorted({n for axis in axes for n in spaces_of(axis)}) for key, axes in graph.layout.items()
    }
    for together in [*carried.values(), *([name, *space.within] for name, space in graph.spaces.items())]:
        for name in together[1:]:
            root[find(name)] = find(together[0])
    members: dict[str, list[str]] = {}
    for name in graph.spaces:
        members.setdefault(find(name), []).append(name)
    keys: dict[str, list[str]] = {}
    for key, names in carried.items():
        if names:
            keys.setdefault(find(names[0]), []).append(key)
    for top, names in members.items():
        yield replace(
            graph,
            spaces={name: graph.spaces[name] for name in names},
            layout={key: graph.layout[key] for key in keys.get(top, ())},
            values={},
            fixed=(),
        )


def _crossed(graph: SymmetryGraph) -> list[str]:
    """Spaces whose order along one dimension of some weight depends on the place along another."""
    found: dict[str, None] = {}
    for axes in graph.layout.values():
        for dim, axis in enumerate(axes):
            names = spaces_of(axis)
            elsewhere = {n for d, other in enumerate(axes) if d != dim for n in spaces_of(other)}
            for name in names:
                outer = set(graph.spaces[name].within) - names
                if outer & elsewhere:
                    found[name] = None
    return list(found)


def indices(graph: SymmetryGraph, orders: Mapping[str, Tensor], key: str) -> dict[int, Tensor]:
    """Old position of every new one along the dimensions of a weight that move.

    Args:
        graph: the symmetries.
        orders: of the spaces that move, none of them crossed.
        key: a weight of the graph.
    """
    axes = graph.layout[key]
    found: dict[int, Tensor] = {}
    for dim, axis in enumerate(axes):
        if spaces_of(axis) & orders.keys():
            index = positions(axes, dim, orders, graph.spaces)
            assert index.numel() == axis.size, f"{key}[{dim}] depends on another dimension"
            found[dim] = index.flatten()
    return found


def _let_go(graph: SymmetryGraph, models: Sequence[Mapping[str, Tensor]]) -> None:
    """Say that a part's pages need not stay."""
    aliases = graph.program.tied.items()
    for weights in models:
        for key in graph.layout:
            for name in (key, *(alias for alias, kept in aliases if kept == key)):
                if name in weights:
                    lies = stored(weights, name)
                    lies.drop(0, math.prod(lies.shape))
