"""Orders of heads, groups and streams in models whose other widths differ: by what they answer on the same data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from isthmus import features
from isthmus.align.alignment import identity_orders
from isthmus.align.observe import observations
from isthmus.align.orders.channels import evidence_of
from isthmus.symmetry import SymmetryGraph


def orders_across(
    graphs: Sequence[SymmetryGraph],
    models: Sequence[Mapping[str, Tensor]],
    rest: Sequence[str],
    data: Iterable[object],
    reference: int,
    limit: int | None = None,
) -> tuple[list[dict[str, Tensor]], list[str]]:
    """Activation matching of the spaces that are equally wide in models that are not.

    It is told by correlation alone: weights that meet other widths cannot break ties.

    Args:
        graphs: one per model, of one structure.
        models: state dicts.
        rest: the spaces, of one size in all models.
        data: calibration data; labels are not used.
        reference: index of the model that stays.
        limit: use at most this many examples.

    Returns:
        Orders of each model, none of the reference, and the spaces that no value shows.
    """
    graph = graphs[reference]
    alone = graph.frozen({name: "of another width" for name in graph.spaces if name not in rest})
    places = {
        name: [(v, axis) for v, axis in seen if len({g.values[v][axis].size for g in graphs}) == 1]
        for name, seen in observations(alone).items()
        if name in rest
    }
    chosen = sorted({place for seen in places.values() for place in seen})
    others = [i for i in range(len(models)) if i != reference]
    shown = [reference, *others]
    requests = [features.Request(value, axis, "reference") for value, axis in chosen]
    moments = features.collect(
        [graphs[i].program for i in shown], [models[i] for i in shown], data, requests, limit=limit
    ).moments
    found: list[dict[str, Tensor]] = [{} for _ in models]
    for column, index in enumerate(others, start=1):
        matrices = {place: moments[place].correlation(0, column).cpu() for place in chosen}
        orders = identity_orders(alone)
        for name in sorted(rest, key=lambda n: len(alone.spaces[n].within)):
            if places.get(name):
                evidence = evidence_of(alone, alone.spaces[name], places[name], matrices, orders)
                order, inner = evidence.solve()
                orders |= {name: order, **inner}
        found[index] = {name: orders[name] for name in rest}
    return found, [name for name in rest if not places.get(name)]
