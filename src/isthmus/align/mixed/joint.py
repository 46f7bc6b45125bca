"""All models' units of a space side by side: what methods that mix units look at.

A *mixable* space is one whose units may be added up: nothing has an order per unit of it, no weight holds it in a
product with another space, no weight of it is used in several ways, and none is computed from parameters by what is
not linear. Heads, groups and what is inside them are not, nor is a stream whose embedding is the head as well, or what
weight norm writes: they can only change their order, and `orders_of_the_rest` finds it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus import features
from isthmus.align.methods.activation_matching import activation_matching
from isthmus.align.methods.weight_matching import weight_matching
from isthmus.align.mixed.unequal import orders_across
from isthmus.align.observe import Where, observations
from isthmus.errors import InputError, MismatchError
from isthmus.maps import Map, Permutation, positions_in
from isthmus.symmetry import Blocks, Count, SymmetryGraph, counted, spaces_of
from isthmus.symmetry.axes import parts_of
from isthmus.symmetry.counting import Kind


def mixable(graph: SymmetryGraph, orders: Sequence[SymmetryGraph] = ()) -> tuple[str, ...]:
    """The spaces whose units may be mixed, outer ones and nested ones left out.

    Args:
        graph: the symmetries.
        orders: every model's, for a method whose maps between as many units are orders, which pass however weights
            are computed: such spaces are then among them too.
    """
    computed = {
        name for name in graph.computed if not orders or len({own.spaces[name].size for own in orders}) > 1
    }
    outer = {name for space in graph.spaces.values() for name in space.within}
    mixed = {
        name
        for axes in graph.layout.values()
        for term in (*axes, *(part for axis in axes for part in parts_of(axis)))
        if isinstance(term, Blocks) and len(spaces_of(term)) > 1
        for name in spaces_of(term)
    }
    # Both axes of one weight written: a table of units by units, which no single row of A weighs.
    for key, axes in graph.layout.items():
        written = [
            spaces_of(axis)
            for dim, axis in enumerate(axes)
            if spaces_of(axis)
            and not any(
                (m.key, m.axis) == (key, dim) and m.role == "reads"
                for name in spaces_of(axis)
                for m in graph.spaces[name].members
            )
        ]
        if len(written) > 1:
            mixed |= set().union(*written)
    mixed |= _shared(graph)
    return tuple(
        name
        for name, space in graph.spaces.items()
        if not space.within and name not in outer and name not in mixed and name not in computed
    )


def _shared(graph: SymmetryGraph) -> set[str]:
    """The spaces of weights that operations use in different ways, as an embedding that is the head as well.

    What one of them writes another reads. A weight takes A for the one and B for the other, which are the same for
    orders alone.
    """
    program, keys = graph.program, set[str]()
    for name, key in program.weights.items():
        node = program.nodes[name]
        ways = {(u.target, tuple(i for i, a in enumerate(u.args) if a is node)) for u in node.users}
        keys |= {key} if len(ways) > 1 else set()
    return {space for key in keys for axis in graph.layout.get(key, ()) for space in spaces_of(axis)}


@dataclass(frozen=True, eq=False)
class Joint:
    """Means and covariance of one space's units in N models, stacked.

    Attributes:
        sizes: number of units of each model.
        mean: of every unit, model after model.
        covariance: of every unit with every other.
        samples: how many it was measured on: examples x positions.
    """

    sizes: tuple[int, ...]
    mean: Float[Tensor, " units"]
    covariance: Float[Tensor, "units units"]
    samples: int

    def rows(self, model: int) -> slice:
        """Where a model's units are."""
        start = sum(self.sizes[:model])
        return slice(start, start + self.sizes[model])

    def block(self, i: int, j: int) -> Float[Tensor, "d_i d_j"]:
        """Covariance of model i's units with model j's."""
        return self.covariance[self.rows(i), self.rows(j)]

    @property
    def second(self) -> Float[Tensor, "units units"]:
        """E[z z^T], not centred."""
        return self.covariance + torch.outer(self.mean, self.mean)

    @property
    def dead(self) -> tuple[int, ...]:
        """Per model: how many of its units do not vary."""
        constant = self.covariance.diagonal() <= 0
        return tuple(int(constant[self.rows(i)].sum()) for i in range(len(self.sizes)))

    @property
    def correlation(self) -> Float[Tensor, "units units"]:
        """Pearson's; a unit that does not vary correlates 0 with everything, itself included."""
        std = self.covariance.diagonal().clamp(min=0).sqrt()
        scale = torch.outer(std, std)
        return torch.where(scale > 0, self.covariance / scale, 0.0).clamp(-1, 1)


def joint(
    graphs: Sequence[SymmetryGraph],
    models: Sequence[Mapping[str, Tensor]],
    data: Iterable[object],
    spaces: Sequence[str],
    *,
    at: Where = "post-activation",
    stream: str = "last",
    limit: int | None = None,
) -> tuple[dict[str, Joint], features.Features]:
    """Watch every model's units of some spaces on the same data.

    Args:
        graphs: one per model, of one structure; widths may differ.
        models: state dicts.
        data: calibration data.
        spaces: names; those that no value shows are left out of the result.
        at: which value represents a space; see `isthmus.align.observe`.
        stream: of several values that carry a space, the "last" or all "pooled".
        limit: use at most this many examples.

    Raises:
        MismatchError: the models have different numbers of positions.
    """
    if stream not in ("last", "pooled"):
        raise InputError(f"stream = {stream!r} is neither 'last' nor 'pooled'")
    seen = observations(graphs[0], at=at, stream="pooled" if stream == "pooled" else "last")
    places = {name: seen[name] for name in spaces if seen.get(name)}
    requests = [
        features.Request(value, axis, "joint")
        for value, axis in sorted({place for found in places.values() for place in found})
    ]
    programs = [graph.program for graph in graphs]
    found = features.collect(programs, models, data, requests, limit=limit)
    return {name: _pooled(name, here, graphs, found) for name, here in places.items()}, found


def _pooled(
    name: str, places: Sequence[tuple[str, int]], graphs: Sequence[SymmetryGraph], found: features.Features
) -> Joint:
    """One space's statistics over all values that show it; each position of the rest of an axis is a sample."""
    count, total, mean, covariance = 0, 0, torch.zeros(0), torch.zeros(0)
    sizes = tuple(graph.spaces[name].size for graph in graphs)
    for value, axis in places:
        moments = found[value, axis]
        terms = [graph.values[value][axis] for graph in graphs]
        where = [positions_in(term, name) for term in terms]
        if len({len(w) for w in where}) > 1:
            raise MismatchError(
                "the models have different numbers of positions", [f"{value}: {term}" for term in terms]
            )
        starts = torch.tensor([0, *(len(m) for m in moments.mean)]).cumsum(0).tolist()
        whole_mean, whole = moments.joint()
        for copy in range(len(where[0])):
            index = torch.cat([w[copy] + start for w, start in zip(where, starts, strict=False)])
            index = index.to(whole.device)
            here, own = whole[index][:, index].cpu(), whole_mean[index].cpu()
            total += moments.samples
            if not count:
                mean, covariance = own, here
            else:  # as one set of samples: what the means differ by varies too
                part = moments.samples / total
                delta = own - mean
                covariance = (1 - part) * covariance + part * here
                covariance = covariance + part * (1 - part) * torch.outer(delta, delta)
                mean = mean + part * delta
            count += 1
    return Joint(sizes, mean, covariance, total)


def dead_units(found: Mapping[str, Joint], what: str) -> list[str]:
    """A note for each model that has units which do not vary.

    Args:
        found: of the spaces that were watched.
        what: what becomes of them.
    """
    counts = [sum(per_model) for per_model in zip(*(seen.dead for seen in found.values()), strict=True)]
    return [f"model {i}: {count} dead units (no variance) {what}" for i, count in enumerate(counts) if count]


def check_rest(graphs: Sequence[SymmetryGraph], mixed: Iterable[str]) -> None:
    """Refuse models whose other spaces (heads, groups) differ in size.

    Raises:
        MismatchError: they do; all are listed.
    """
    problems = [
        f"{name}: {', '.join(str(graph.spaces[name].size) for graph in graphs)} units"
        for name in graphs[0].spaces
        if name not in set(mixed) and len({graph.spaces[name].size for graph in graphs}) > 1
    ]
    if problems:
        raise MismatchError(
            "units of heads, groups, tied and computed weights can only change their order: "
            "there must be as many in every model",
            problems,
        )


def check_counted(
    graphs: Sequence[SymmetryGraph], mixed: Iterable[str], refused: Collection[Kind]
) -> list[str]:
    """Look at models of different widths where operations depend on how many units there are (`counted`).

    Args:
        graphs: one per model.
        mixed: the spaces that are mixed.
        refused: the kinds of operations that cannot be given other widths.

    Returns:
        A note for each space whose operations only come close.

    Raises:
        MismatchError: widths differ along spaces of refused operations; all are listed.
    """
    wide = [name for name in mixed if len({graph.spaces[name].size for graph in graphs}) > 1]
    if not wide:
        return []
    counts = counted(graphs[0])
    problems: list[str] = []
    notes: list[str] = []
    for name in wide:
        sizes = ", ".join(str(graph.spaces[name].size) for graph in graphs)
        if against := [c for c in counts.get(name, ()) if c.kind in refused]:
            problems.append(f"{name}: {sizes} units, {listed(against)}")
        elif near := [c for c in counts.get(name, ()) if c.kind == "mean"]:
            notes.append(f"{name}: {sizes} units in the models, which is not the same to {listed(near)}")
    if problems:
        raise MismatchError(
            "operations depend on how many units there are: there must be as many in every model", problems
        )
    return notes


def listed(counts: Iterable[Count]) -> str:
    """The operations that count a space's units, each once; a long list is cut."""
    places = list(dict.fromkeys(count.place for count in counts))
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")


def orders_of_the_rest(
    graphs: Sequence[SymmetryGraph],
    models: Sequence[Mapping[str, Tensor]],
    mixed: Sequence[str],
    data: Iterable[object] | None,
    reference: int,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[list[dict[str, Map]], list[str]]:
    """Orders of the spaces that cannot be mixed: by activations, or by weights where there is no data.

    Returns:
        One mapping per model, and notes.
    """
    rest = [name for name in graphs[0].spaces if name not in set(mixed)]
    notes = [
        f"{name}: units are not added up, since a weight is computed from them by {graphs[0].computed[name]}"
        for name in rest
        if name in graphs[0].computed
    ]
    none: list[dict[str, Map]] = [{} for _ in models]
    if not rest:
        return none, []
    named = ", ".join(rest)
    if any(graph is not graphs[0] for graph in graphs):
        if data is None:
            return none, [
                *notes,
                f"left in place: in models of several widths activations alone match {named}",
            ]
        across, unseen = orders_across(graphs, models, rest, data, reference, limit)
        notes += [f"can only be reordered, by activations: {named}"]
        notes += [f"no value shows {', '.join(unseen)}: left in place"] if unseen else []
        return [{name: Permutation(order) for name, order in own.items()} for own in across], notes
    if data is None:
        # Weights can be compared only where the rest is in order, so all is matched, and the rest is taken of it.
        found = weight_matching(graphs[0], models, reference=reference, seed=seed)
    else:
        alone = graphs[0].frozen(dict.fromkeys(mixed, "mixed"))
        found = activation_matching(alone, models, data=data, reference=reference, limit=limit)
    moved: list[dict[str, Map]] = [
        {name: Permutation(order) for name, order in t.orders.items() if name in rest}
        for t in found.transports
    ]
    return moved, [*notes, f"can only be reordered, by {found.method}: {named}", *found.notes]
