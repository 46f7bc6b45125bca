"""Activation matching: units that answer alike on the same data are the same unit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from isthmus import features
from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost, identity_orders, permutations
from isthmus.align.assignment import Evidence, inside
from isthmus.align.observe import Where, observations
from isthmus.align.weight_matching import Matching
from isthmus.errors import InputError
from isthmus.symmetry import Axis, Blocks, Concat, Leaf, Space, SymmetryGraph, positions, spaces_of

Similarity = Literal["correlation", "moment"]


@ALIGNMENTS.register(
    "activation-matching",
    needs=("data",),
    claims=("function-kept", "planted-found", "batching-free"),
    source="Ainsworth et al., Git Re-Basin, arXiv:2209.04836, section 3.1; Li et al., arXiv:1511.07543",
)
def activation_matching(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    data: Iterable[object] | None = None,
    reference: int = 0,
    similarity: Similarity = "correlation",
    at: Where = "post-activation",
    stream: Literal["last", "pooled"] = "last",
    limit: int | None = None,
) -> Alignment:
    """Match units by their activations: for each space one assignment, no search.

    Every model sees the same batches. A conv position and a token are samples. Ties between dead
    units (no variance, hence no correlation) are broken by the similarity of their weights.

    Args:
        graph: the symmetries.
        models: state dicts; each is matched to the reference on its own.
        data: calibration data; labels are not used.
        reference: index of the model that stays.
        similarity: "correlation" (Pearson; REPAIR and the CIFAR code of Git Re-Basin) or "moment" (the raw
            second moment E[z0 z1], the least-squares objective of the paper).
        at: which value represents a space: "post-activation" (what its readers see, before
            pooling), "post-norm" or "pre-activation" (what its writers make).
        stream: where several values carry a space (a residual stream): only the "last", or all
            "pooled".
        limit: use at most this many examples.
    """
    if similarity not in ("correlation", "moment"):
        raise InputError(f"similarity {similarity!r} is neither 'correlation' nor 'moment'")
    if data is None:
        raise InputError("activation-matching needs calibration data", hint="pass data=")
    values = observations(graph, at=at, stream=stream)
    chosen = sorted({place for places in values.values() for place in places})
    requests = [features.Request(value, axis, "reference") for value, axis in chosen]
    # Models are shown to `collect` with the reference first: its blocks are (0, i).
    others = [i for i in range(len(models)) if i != reference]
    ordered = [models[reference], *(models[i] for i in others)]
    found = features.collect(graph.program, ordered, data, requests, limit=limit)

    transports = [permutations(graph, {}) for _ in models]
    costs: list[Cost] = []
    notes: list[str] = []
    for column, index in enumerate(others, start=1):
        matrices: dict[tuple[str, int], Tensor] = {}
        dead = 0
        for place in chosen:
            moments = found[place]
            kind = moments.second if similarity == "moment" else moments.correlation
            matrices[place] = kind(0, column).cpu()
            dead += int((moments.variance[0] <= 0).sum() + (moments.variance[column] <= 0).sum())
        orders = _solve(graph, values, matrices, models[reference], models[index])
        transports[index] = permutations(graph, orders)
        costs += [
            Cost(index, *row, f"mean {similarity}") for row in _agreements(graph, values, matrices, orders)
        ]
        if dead:
            notes.append(f"model {index}: {dead} dead units (no variance), matched by their weights")
    unseen = [name for name in graph.spaces if not values.get(name)]
    if unseen:
        notes.append(f"no value shows {', '.join(unseen)}: left in place")
    settings = {
        "similarity": similarity,
        "at": at,
        "stream": stream,
        "limit": limit,
        "examples": found.examples,
        "values": ", ".join(sorted({value for value, _ in chosen})),
    }
    return Alignment(
        "activation-matching", graph, tuple(transports), reference, tuple(costs), settings, tuple(notes)
    )


def _solve(
    graph: SymmetryGraph,
    values: Mapping[str, Sequence[tuple[str, int]]],
    matrices: Mapping[tuple[str, int], Tensor],
    reference: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """One assignment per space, outer spaces before what is inside them."""
    known = graph.spaces
    orders = identity_orders(graph)
    weights = Matching(graph, reference, model, seed=0)
    for name in sorted(known, key=lambda n: len(known[n].within)):
        space = known[name]
        if not values.get(name):
            continue
        evidence = _evidence(graph, space, values[name], matrices, orders)
        _break_ties(evidence, weights.evidence(space, orders))
        order, inner = evidence.solve()
        orders |= {name: order, **inner}
    return orders


def _break_ties(evidence: Evidence, weights: Evidence) -> None:
    """Where activations say nothing (dead units), let the weights decide."""
    evidence.direct = evidence.direct + _hint(weights.direct, evidence.direct)
    for name, similarity in evidence.inner.items():
        if name in weights.inner:
            evidence.inner[name] = similarity + _hint(weights.inner[name], similarity)


def _hint(weights: Tensor, similarity: Tensor) -> Tensor:
    """Similarities of weights, so small beside those of activations that they only decide ties."""
    scale = 1e-9 * similarity.abs().max().item() / max(weights.abs().max().item(), 1e-30)
    return scale * weights.to(similarity)


def _agreements(
    graph: SymmetryGraph,
    values: Mapping[str, Sequence[tuple[str, int]]],
    matrices: Mapping[tuple[str, int], Tensor],
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
    found = torch.zeros(1, dtype=torch.bool)
    for item in term.factors:
        found = (found[:, None] | _touched(item, name)).flatten()
    return found


def _evidence(
    graph: SymmetryGraph,
    space: Space,
    places: Sequence[tuple[str, int]],
    matrices: Mapping[tuple[str, int], Tensor],
    orders: Mapping[str, Tensor],
) -> Evidence:
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
