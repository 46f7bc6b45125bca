"""What activations say about each space: similarities of channel axes, taken apart into units and pairs of units."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from isthmus.align.alignment import identity_orders
from isthmus.align.orders.assignment import Evidence, inside
from isthmus.align.orders.matching import Matching
from isthmus.symmetry import (
    Axis,
    Blocks,
    Concat,
    Interleaved,
    Leaf,
    Space,
    SymmetryGraph,
    positions,
    spaces_of,
)

#: A value of the program and its channel axis.
Place = tuple[str, int]


def solve(
    graph: SymmetryGraph,
    values: Mapping[str, Sequence[Place]],
    matrices: Mapping[Place, Tensor],
    reference: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The orders that activations speak for: one assignment per space, outer spaces before what is inside them.

    Args:
        graph: the symmetries.
        values: space -> the places that show it; a space without any stays.
        matrices: place -> similarity of the reference's channels (rows) and the model's, higher is better.
        reference: weights of the model that stays; where activations say nothing, weights decide.
        model: weights of the model that moves.
    """
    known = graph.spaces
    orders = identity_orders(graph)
    weights = Matching(graph, reference, model, seed=0)
    for name in sorted(known, key=lambda n: len(known[n].within)):
        space = known[name]
        if not values.get(name):
            continue
        evidence = evidence_of(graph, space, values[name], matrices, orders)
        break_ties(evidence, weights.evidence(space, orders))
        order, inner = evidence.solve()
        orders |= {name: order, **inner}
    return orders


def break_ties(evidence: Evidence, weights: Evidence) -> None:
    """Where activations say nothing (dead units), let the weights decide."""
    evidence.direct = evidence.direct + _hint(weights.direct, evidence.direct)
    for name, similarity in evidence.inner.items():
        if name in weights.inner:
            evidence.inner[name] = similarity + _hint(weights.inner[name], similarity)


def _hint(weights: Tensor, similarity: Tensor) -> Tensor:
    """Similarities of weights, so small beside those of activations that they only decide ties."""
    scale = 1e-9 * similarity.abs().max().item() / max(weights.abs().max().item(), 1e-30)
    return scale * weights.to(similarity)


def agreements(
    graph: SymmetryGraph,
    values: Mapping[str, Sequence[Place]],
    matrices: Mapping[Place, Tensor],
    orders: Mapping[str, Tensor],
) -> Iterable[tuple[str, float, float]]:
    """Per space: mean similarity of the units that are paired, under the identity and under the orders."""
    for name, places in values.items():
        before = after = 0.0
        count = 0
        for place in places:
            term, matrix = graph.values[place[0]][place[1]], matrices[place]
            touched = _touched(term, name)
            columns = positions([term], 0, orders, graph.spaces).flatten()
            paired = matrix[torch.arange(len(columns)), columns]
            before += matrix.diagonal()[touched].sum().item()
            after += paired[touched].sum().item()
            count += int(touched.sum())
        if count:
            yield name, before / count, after / count


def _touched(term: Axis, name: str) -> Tensor:
    """Which positions of an axis carry a space."""
    if isinstance(term, Leaf):
        return torch.full((term.size,), term.space == name)
    if isinstance(term, Concat):
        return torch.cat([_touched(part, name) for part in term.parts])
    if isinstance(term, Interleaved):
        return _touched(term.concatenated, name)[torch.tensor(term.gathered).argsort()]
    found = torch.zeros(1, dtype=torch.bool)
    for item in term.factors:
        found = (found[:, None] | _touched(item, name)).flatten()
    return found


def evidence_of(
    graph: SymmetryGraph,
    space: Space,
    places: Sequence[Place],
    matrices: Mapping[Place, Tensor],
    orders: Mapping[str, Tensor],
) -> Evidence:
    """What the places of a space say about its units, and about those inside each pair of them."""
    known = graph.spaces
    within = inside(space, known)
    sizes = [known[outer].size for outer in space.within]
    direct = torch.zeros(*sizes, space.size, space.size, dtype=torch.float64)
    inner: dict[str, Tensor] = {}
    for value, axis in places:
        term = graph.values[value][axis]
        held = {n: o for n, o in orders.items() if n != space.name and n not in within}
        # The model's columns are in the reference's order of everything that is settled.
        columns = positions([term], 0, held, known).flatten()
        matrix = matrices[(value, axis)].double()[:, columns]
        for name in within:
            # (outer, inside, outer', inside') -> every pair of outer units. Where another space is inside
            # too, its order is not known yet and would blur what is seen of this one.
            for block in _diagonal(matrix, term, [space.name, name], without={*within} - {name}):
                pairs = block.permute(0, 2, 1, 3)
                inner[name] = inner[name] + pairs if name in inner else pairs
        for block in _diagonal(matrix, term, [*space.within, space.name], without={*within}):
            direct += _per_outer(block, len(space.within))
    return Evidence(direct, inner)


def _per_outer(block: Tensor, count: int) -> Tensor:
    """(*outer, units, *outer', units') -> (*outer, units, units'), the diagonal over the outer ones."""
    rank = block.ndim // 2
    letters = "abcdefgh"[:count]
    rows, columns = letters + "x", letters + "y"
    assert len(rows) == rank
    return torch.einsum(f"{rows}{columns}->{letters}xy", block)


def _diagonal(
    matrix: Tensor, term: Axis, wanted: Sequence[str], without: Collection[str] = ()
) -> list[Tensor]:
    """Blocks (*wanted, *wanted) of a similarity between positions of an axis, summed over the rest.

    Products that carry a space of `without` give none.
    """
    if isinstance(term, Concat):
        found: list[Tensor] = []
        start = 0
        for part in term.parts:
            if set(wanted) <= spaces_of(part):
                piece = matrix[start : start + part.size, start : start + part.size]
                found += _diagonal(piece, part, wanted, without)
            start += part.size
        return found
    if isinstance(term, Interleaved):
        gathered = torch.tensor(term.gathered)
        return _diagonal(matrix[gathered][:, gathered], term.concatenated, wanted, without)
    factors = term.factors if isinstance(term, Blocks) else (term,)
    if any(not isinstance(f, Leaf) for f in factors):
        # A sum inside a product: open it part by part.
        index = next(i for i, f in enumerate(factors) if isinstance(f, Concat))
        concat = factors[index]
        assert isinstance(concat, Concat)
        found, start = [], 0
        sizes = [f.size for f in factors]
        opened = matrix.view(*sizes, *sizes)
        for part in concat.parts:
            piece = opened.narrow(index, start, part.size).narrow(len(sizes) + index, start, part.size)
            whole = Blocks((*factors[:index], part, *factors[index + 1 :]))
            start += part.size
            if set(wanted) <= spaces_of(whole):
                found += _diagonal(piece.reshape(whole.size, whole.size), whole, wanted, without)
        return found
    names = [f.space if isinstance(f, Leaf) else None for f in factors]
    if any(names.count(w) != 1 for w in wanted) or not set(without).isdisjoint(names):
        return []
    rows = "abcdefgh"[: len(factors)]
    columns = "".join(rows[i].upper() if names[i] in wanted else rows[i] for i in range(len(factors)))
    out = "".join(rows[names.index(w)] for w in wanted)
    sizes = [f.size for f in factors]
    return [torch.einsum(f"{rows}{columns}->{out}{out.upper()}", matrix.reshape(*sizes, *sizes))]
