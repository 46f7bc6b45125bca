"""ZipIt!: units that answer alike are one unit, also inside one model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost
from isthmus.align.mixed.constant import constants_paired
from isthmus.align.mixed.joint import (
    Joint,
    check_counted,
    check_rest,
    dead_units,
    joint,
    mixable,
    orders_of_the_rest,
)
from isthmus.align.mixed.rows import in_order, rows
from isthmus.align.mixed.zipping import memberships, zipped
from isthmus.align.observe import Where
from isthmus.errors import InputError
from isthmus.maps import Map, Transport
from isthmus.progress import task
from isthmus.symmetry import SymmetryGraph

Pairing = Literal["greedy", "optimal"]


@ALIGNMENTS.register(
    "zipit",
    needs=("data",),
    claims=("planted-exact", "batching-free", "seeded"),
    costs="one pass over the data, and d^2 per merge of two groups of a space of d units",
    source="Stoica et al., ZipIt! Merging Models from Different Tasks without Training, arXiv:2305.03053",
)
def zipit(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    data: Iterable[object] | None = None,
    reference: int = 0,
    graphs: Sequence[SymmetryGraph] | None = None,
    alpha: float = 0.3,
    beta: float = 0.125,
    pairing: Pairing = "greedy",
    at: Where = "post-activation",
    stream: Literal["last", "pooled"] = "last",
    limit: int | None = None,
) -> Alignment:
    """Zip units into groups by their correlation: across models, and within each of them.

    For each space the correlation of all models' units is zipped: the most correlated pair becomes one group, whose
    similarity to the others is the smaller of the two (complete linkage), until as many groups are left as the
    reference has units. A merged unit is the mean of its members, weighted by their models; every member is read from
    it. Where everything after a depth is kept apart (`preserve_last`) this is partial zipping.

    Args:
        graph: the symmetries.
        models: state dicts, of any number of models.
        data: calibration data; labels are not used.
        reference: the merged network has this model's widths, and where it can this model's order.
        graphs: one per model, where their widths differ.
        alpha: discount for each unit that two groups would hold together beyond what a group has on average (one per
            model where widths are equal), in 0..1; lower keeps groups small. Negative similarities are left alone.
        beta: how much each model may be merged with itself, in 0..1: at most
            int(beta * (all units - target units) / models) such merges per model and space, beside those that a wider
            model cannot do without. 0 is one-to-one, 1 as many as there are merges.
        pairing: "greedy", or "optimal": pairs with the largest total correlation (a maximum-weight matching that may
            pair units of one model; two models of equal widths; alpha and beta do not apply).
        at: which value represents a space; see `activation-matching`.
        stream: where several values carry a space, only the "last", or all "pooled".
        limit: use at most this many examples.

    Raises:
        InputError: a bad option, or "optimal" for other than two models of equal widths.
        MismatchError: different widths along what the program sums over, where every unit counts.

    Source: we differ from the published code in six ways. A model's weight stands in the rows of A, so that groups of
        one model's units keep their mass at any weights. The budget is what it says (theirs allows one merge too
        many), and counts each merge of two groups that both hold units of a model. With beta = 0 no group holds two
        units of one model. The discount never raises a similarity. Theirs counts from the second unit of a group,
        which is the same for two models; of more, it would discount the third copy of one and the same unit. Units
        that do not vary (dead on the data) correlate 0 with all in theirs, so that they are left over, and units
        that answer are merged within a model in their place; here those of several models that are most alike in
        value and weights count as one unit (correlation 1).
    """
    if data is None:
        raise InputError("zipit needs calibration data", hint="pass data=")
    _check(alpha, beta, pairing)
    graphs = list(graphs or [graph] * len(models))
    spaces = mixable(graph, graphs if beta == 0 and pairing == "greedy" else ())
    check_rest(graphs, spaces)
    near = check_counted(graphs, spaces, ("sum",))
    found, seen = joint(graphs, models, data, spaces, at=at, stream=stream, limit=limit)
    maps, notes = orders_of_the_rest(graphs, models, spaces, data, reference, limit)
    costs: list[Cost] = []
    with task("zipping", total=len(found), unit="spaces") as advance:
        for name in in_order(graph, list(found)):
            statistics, target = found[name], graph.spaces[name].size
            told = (
                graphs,
                models,
                maps,
                {n for n in graph.spaces if n not in spaces or n in maps[reference]},
            )
            similarity = constants_paired(statistics, partial(_rows, name, *told), reference)
            if pairing == "optimal":
                groups = _optimal(similarity, statistics.sizes, name)
            else:
                groups = zipped(similarity, statistics.sizes, target, alpha, beta, reference)
            for index, item in enumerate(memberships(groups, statistics.sizes, target, reference)):
                maps[index][name] = item
                if index != reference:
                    costs.append(_cost(index, name, statistics, groups, reference))
            advance(1)
    notes += near + dead_units(found, "correlate with none: told by values and weights")
    unseen = [name for name in spaces if name not in found]
    if unseen:
        notes.append(f"no value shows {', '.join(unseen)}: left in place")
    settings = {
        "alpha": alpha,
        "beta": beta,
        "pairing": pairing,
        "at": at,
        "stream": stream,
        "limit": limit,
        "examples": seen.examples,
    }
    transports = tuple(Transport(own, item) for own, item in zip(graphs, maps, strict=True))
    return Alignment("zipit", graph, transports, reference, tuple(costs), settings, tuple(notes))


def _check(alpha: float, beta: float, pairing: str) -> None:
    problems = [
        f"{name} = {value} lies outside 0..1"
        for name, value in (("alpha", alpha), ("beta", beta))
        if not 0 <= value <= 1
    ]
    if pairing not in ("greedy", "optimal"):
        problems.append(f"pairing {pairing!r} is neither 'greedy' nor 'optimal'")
    if problems:
        raise InputError("zipit was given wrong options", problems)


def _rows(
    name: str,
    graphs: Sequence[SymmetryGraph],
    models: Sequence[Mapping[str, Tensor]],
    maps: Sequence[Mapping[str, Map]],
    known: Collection[str],
    index: int,
) -> Tensor:
    """What a model's units are made of, as far as what they read is in common coordinates."""
    try:
        return rows(graphs[index], models[index], name, maps[index], known)
    except InputError:  # nothing is yet: units are told by their places
        return torch.arange(graphs[index].spaces[name].size)[:, None].double()


def _optimal(similarity: Tensor, sizes: Sequence[int], name: str) -> Tensor:
    """Pairs with the largest total similarity, whichever model they are of."""
    if len(sizes) != 2 or sizes[0] != sizes[1]:
        raise InputError(
            "the optimal pairing is of two models of equal widths",
            [f"{name}: {', '.join(map(str, sizes))} units"],
            hint="pairing='greedy' takes any",
        )
    import networkx as nx

    graph = nx.Graph()
    rows = similarity.tolist()
    # Every pair counts, also the negative ones: each unit must find one.
    graph.add_weighted_edges_from((i, j, rows[i][j]) for i in range(len(rows)) for j in range(i))
    groups = torch.arange(len(rows))
    for i, j in nx.max_weight_matching(graph, maxcardinality=True):
        groups[max(i, j)] = min(i, j)
    return groups


def _cost(index: int, name: str, statistics: Joint, groups: Tensor, reference: int) -> Cost:
    """Mean correlation of a model's units with the reference's of the same number, and with their groups."""
    correlation = statistics.correlation
    rows, theirs = statistics.rows(index), statistics.rows(reference)
    common = min(statistics.sizes[index], statistics.sizes[reference])
    before = correlation[rows, theirs].diagonal()[:common].mean().item()
    together = (groups[rows, None] == groups[None]).double()
    together[torch.arange(statistics.sizes[index]), torch.arange(rows.start, rows.stop)] = 0
    count = together.sum(1)
    inside = (correlation[rows] * together).sum(1) / count.clamp(min=1)
    return Cost(index, name, before, inside.mean().item(), "mean correlation")
