"""Activation matching: units that answer alike on the same data are the same unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from isthmus import features
from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost, identity_orders, permutations
from isthmus.align.observe import Where, observations
from isthmus.align.orders.assignment import inside
from isthmus.align.orders.balance import balance
from isthmus.align.orders.channels import agreements, break_ties, evidence_of, solve
from isthmus.align.orders.full_groups import (
    FullMatching,
    Groups,
    Residual,
    allowed,
    check_choices,
    wide,
)
from isthmus.align.orders.matching import Matching
from isthmus.errors import InputError
from isthmus.maps import Permutation, Transport
from isthmus.symmetry import (
    DENSE,
    Axis,
    Blocks,
    Element,
    Gauge,
    Leaf,
    SymmetryGraph,
    leaves,
    spaces_of,
)
from isthmus.symmetry.residual import residual_streams

Similarity = Literal["correlation", "moment"]


@ALIGNMENTS.register(
    "activation-matching",
    needs=("data",),
    claims=("function-kept", "planted-found", "planted-exact", "batching-free"),
    costs="one pass over the data, an assignment per space",
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
    groups: Groups = "permutation",
    residual: Residual = "match",
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
        groups: "permutation" for the order of units alone; "full" for all that each space's group holds: scales
            are balanced, then rotations follow the covariance of activations (Procrustes), signs its sign
            where one sign alone turns them, and rotary planes the phases of queries and keys.
        residual: "identity" leaves residual streams as they are.
    """
    check_choices(groups, residual)
    if similarity not in ("correlation", "moment"):
        raise InputError(f"similarity {similarity!r} is neither 'correlation' nor 'moment'")
    if data is None:
        raise InputError("activation-matching needs calibration data", hint="pass data=")
    held = residual_streams(graph) if residual == "identity" else ()
    values = observations(graph, at=at, stream=stream)
    values = {name: [] if name in held else places for name, places in values.items()}
    chosen = sorted({place for places in values.values() for place in places})
    requests = [features.Request(value, axis, "reference") for value, axis in chosen]
    # Models are shown to `collect` with the reference first: its blocks are (0, i).
    others = [i for i in range(len(models)) if i != reference]
    ordered = [models[reference], *(models[i] for i in others)]
    limited = allowed(graph, held)
    frames = [Element()] * len(ordered)
    if groups == "full":
        frames = [balance(limited, wide(graph, weights)) for weights in ordered]
        ordered = [
            Transport(limited, {}, frame.values).apply(weights)
            for frame, weights in zip(frames, ordered, strict=True)
        ]
    turning = [g for g in limited.gauges.values() if groups == "full" and g.kind in (*DENSE, "planes")]
    turned = {name for g in turning for name in (g.within if g.kind == "planes" else (g.space,))}
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
            if turned & spaces_of(graph.values[place[0]][place[1]]):
                kind = moments.covariance  # a rotation mixes units, so each must count by its size
            matrices[place] = kind(0, column).cpu()
            dead += int((moments.variance[0] <= 0).sum() + (moments.variance[column] <= 0).sum())
        if groups == "full":
            run = FullMatching(limited, wide(graph, ordered[0]), wide(graph, ordered[column]), held=held)
            weights = Matching(limited, ordered[0], ordered[column], seed=0)
            element = _solve_in_full(limited, values, matrices, run, weights)
            element = frames[column].then(element, limited).then(frames[0].inverse(limited), limited)
            orders = dict(element.orders)
            maps = {name: Permutation(order) for name, order in orders.items()}
            transports[index] = Transport(graph, maps, element.values)
        else:
            orders = solve(graph, values, matrices, models[reference], models[index])
            transports[index] = permutations(graph, orders)
        costs += [
            Cost(index, *row, f"mean {similarity}") for row in agreements(graph, values, matrices, orders)
        ]
        if dead:
            notes.append(f"model {index}: {dead} dead units (no variance), matched by their weights")
    unseen = [name for name in graph.spaces if not values.get(name) and name not in held]
    if unseen:
        notes.append(f"no value shows {', '.join(unseen)}: left in place")
    settings = {
        "similarity": similarity,
        "at": at,
        "stream": stream,
        "limit": limit,
        "examples": found.examples,
        "groups": groups,
        "residual": residual,
        "values": ", ".join(sorted({value for value, _ in chosen})),
    }
    return Alignment(
        "activation-matching", graph, tuple(transports), reference, tuple(costs), settings, tuple(notes)
    )


def _solve_in_full(
    graph: SymmetryGraph,
    values: Mapping[str, Sequence[tuple[str, int]]],
    matrices: Mapping[tuple[str, int], Tensor],
    run: FullMatching,
    weights: Matching,
) -> Element:
    """One solution per space in its full group, outer spaces before what is inside them.

    What no activation shows by itself (queries inside a group) is settled by the weights, and so are ties.
    """
    known = graph.spaces
    orders = identity_orders(graph)
    chosen = Element()
    done: set[str] = set()
    phased: set[str] = set()
    for name in sorted(known, key=lambda n: len(known[n].within)):
        space = known[name]
        if not values.get(name) or name in done:
            continue
        planes = [gauge for gauge in run.planes if gauge.within == (name,)]
        # Queries and keys are seen before their phases are known: pair by pair of heads, or not at all.
        plain = [p for p in values[name] if not any(_holds(graph.values[p[0]][p[1]], g.size) for g in planes)]
        evidence = evidence_of(graph, space, plain, matrices, orders)
        if not any(gauge.kind in DENSE for n in (name, *evidence.inner) for gauge in run.gauges[n]):
            break_ties(evidence, weights.evidence(space, orders))
        solutions = [
            (n, run.best(n, *_signed(run, n, values[n], pairs))) for n, pairs in evidence.inner.items()
        ]
        for gauge in planes:
            pairs = [
                block
                for value, axis in values[name]
                for block in _heads(graph.values[value][axis], gauge, matrices[(value, axis)])
            ]
            if pairs:
                solutions.append((gauge.space, run.phases(gauge, sum(pairs[1:], pairs[0]))))
                phased.add(gauge.name)
        if solutions:
            found = run.heads(space, *_signed(run, name, plain, evidence.direct), solutions)
        else:
            found = run.best(name, *_signed(run, name, plain, evidence.direct)).element(name)
        done |= set(evidence.inner)
        orders |= found.orders
        chosen = Element({**chosen.orders, **found.orders}, {**chosen.values, **found.values})
    run.theirs = {**run.theirs, **chosen.apply(graph, run.theirs)}
    for gauge in run.planes:
        if gauge.name not in phased:
            chosen = chosen.then(run.settle(gauge), graph)
    for name in known:
        # Queries inside a group of heads: activations show them in bases that were not known yet.
        beside = (
            [n for n in inside(known[known[name].within[0]], known) if n != name]
            if known[name].within
            else []
        )
        if beside and not any(gauge.kind in DENSE for gauge in run.gauges[name]):
            chosen = chosen.then(run.settle(known[name]), graph)
    return chosen


def _holds(term: Axis, size: int) -> bool:
    """Whether an axis has a fixed run of a size: queries and keys inside their heads."""
    return any(leaf.space is None and leaf.size == size for leaf in leaves(term))


def _heads(term: Axis, gauge: Gauge, matrix: Tensor) -> list[Tensor]:
    """Similarities inside every pair of heads, (heads, heads, units, units), of an axis that is heads by units."""
    if not isinstance(term, Blocks) or len(term.factors) != 2:
        return []
    heads, units = term.factors
    if spaces_of(heads) != set(gauge.within) or not isinstance(heads, Leaf) or units != Leaf(gauge.size):
        return []
    whole = matrix.double().view(heads.size, units.size, heads.size, units.size)
    return [whole.permute(0, 2, 1, 3)]


def _signed(
    run: FullMatching, name: str, places: Sequence[tuple[str, int]], evidence: Tensor
) -> tuple[Tensor, dict[tuple[str, ...], Tensor]]:
    """Evidence as from weights that take a sign, where one sign alone turns what was looked at.

    A sign that a norm takes back is seen by no activation: it stays as it is.
    """
    seen = [
        gauge.name
        for gauge in run.gauges[name]
        if gauge.kind == "sign" and any(value in run.graph.answering(gauge.name) for value, _ in places)
    ]
    whole = len(seen) == 1 and all(value in run.graph.answering(seen[0]) for value, _ in places)
    if not whole:
        return evidence, {}
    return torch.zeros_like(evidence), {(seen[0],): evidence}
