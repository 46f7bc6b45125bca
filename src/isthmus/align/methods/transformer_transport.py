"""Transformer fusion by optimal transport: plans that flow along residual streams and into heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, fx

from isthmus import features
from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost
from isthmus.align.methods.transport import distance
from isthmus.align.mixed.coupling import Coupling, Solver, couple, stopped
from isthmus.align.mixed.joint import dead_units, joint, mixable, orders_of_the_rest
from isthmus.errors import InputError
from isthmus.maps import Dense, Map, Transport
from isthmus.maps.elementwise import absorbable
from isthmus.program import Program
from isthmus.symmetry import Axis, Blocks, Concat, Leaf, SymmetryGraph, spaces_of
from isthmus.symmetry.residual import residual_streams

Residual = Literal["shared", "identity", "branch", "stream", "mean", "weighted-scalar", "weighted-matrix"]
Heads = Literal["per-head", "equal", "separate"]

#: Costs to the coupling that they cost least by.
Carry = Callable[[Tensor], Coupling]

#: A plan of transport, (source units, target units).
Plan = Float[Tensor, "source target"]


@ALIGNMENTS.register(
    "transformer-transport",
    needs=("data",),
    claims=("batching-free", "seeded"),
    costs="one or two passes over the data, a plan per space or head",
    source="Imfeld et al., Transformer Fusion with Optimal Transport, arXiv:2310.05719",
)
def transformer_transport(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    data: Iterable[object] | None = None,
    reference: int = 0,
    residual: Residual = "shared",
    heads: Heads = "per-head",
    solver: Solver = "sinkhorn",
    regularization: float = 0.08,
    limit: int | None = None,
) -> Alignment:
    """Carry each transformer's units to the reference's by the distance of their normalised activations.

    Costs are Euclidean distances of centred activations of unit length, sqrt(2 - 2 correlation). Hidden units have a
    plan each. What is done about residual streams and heads is a choice; `residual="shared"` with
    `heads="per-head"` follows the symmetries of a transformer, the others are the published ones and do not, even
    where plans are permutations. The order is the program's, so norms may come before a block (ViT) or after it (BERT).

    Args:
        graph: the symmetries.
        models: state dicts of equal widths; each is carried to the reference on its own.
        data: calibration data; labels are not used.
        reference: index of the model that stays.
        residual: one plan for a stream from all that writes it ("shared") or none ("identity"); or what arrives at each
            addition goes on with the "branch"'s plan, the "stream"'s, their "mean", or their mean weighted by
            how large the reference's activations are, as a whole ("weighted-scalar") or unit by unit
            ("weighted-matrix").
        heads: an assignment of heads, by the best order inside each pair ("per-head"); or plans over all units of all
            heads together: one each for queries, keys and values ("separate"), or one for queries and keys ("equal").
        solver: "sinkhorn" or "exact".
        regularization: of Sinkhorn, in parts of the largest cost.
        limit: use at most this many examples.

    Raises:
        InputError: a bad option, or a policy for streams in a network whose layers are followed by batch norms.

    Source: section 4. Class token and positions take the plan of the value that they are added to (there they have
        their own, of which one is thrown away); sizes of activations are root mean squares.
    """
    if data is None:
        raise InputError("transformer-transport needs calibration data", hint="pass data=")
    known = (("residual", residual, get_args(Residual)), ("heads", heads, get_args(Heads)))
    wrong = [
        f"{name} = {value!r} is none of {', '.join(all_)}" for name, value, all_ in known if value not in all_
    ]
    if wrong:
        raise InputError("transformer-transport was given wrong options", wrong)
    program = graph.program
    if not isinstance(program, Program):
        raise InputError("transformer-transport runs the models, so it needs a traced graph")
    spaces = mixable(graph)
    streams = [name for name in residual_streams(graph) if name in spaces]
    walked = residual not in ("shared", "identity")
    normed = {name for norm in absorbable(graph) for name in spaces_of(graph.layout[norm.scale][0])}
    if walked and (stuck := sorted(normed & set(streams))):
        raise InputError(
            "a stream that batch norms write is carried by one plan", stuck, hint='residual="shared"'
        )
    plain = [name for name in spaces if name not in streams or residual == "shared"]
    found, seen = joint(
        [graph] * len(models), models, data, plain, at="pre-activation", stream="pooled", limit=limit
    )
    flat = _Flat(graph, program) if heads != "per-head" else None
    rest = (*spaces, *(flat.heads if flat else ()))
    maps, notes = orders_of_the_rest([graph] * len(models), models, rest, data, reference, limit)
    flow = _Flow(graph, program, streams if walked else [])
    wanted = {*flow.seen, *(flat.seen if flat else ())}
    requests = [features.Request(*place, "joint") for place in sorted(wanted)]
    requests += [features.Request(*place) for place in flow.met]
    moments = features.collect(program, models, data, requests, limit=limit).moments
    notes += dead_units(found, "are all as far from every other")
    sizes = {place: _squares(moments[place], reference) for place in flow.met}
    costs: list[Cost] = []
    couplings: list[Coupling] = []

    def carry(cost: Tensor) -> Coupling:
        couplings.append(couple(cost, solver=solver, regularization=regularization))
        return couplings[-1]

    for index in range(len(models)):
        if index == reference:
            continue
        for name, statistics in found.items():
            rows, columns = statistics.rows(index), statistics.rows(reference)
            variance = statistics.covariance.diagonal()
            cost = normalised(statistics.block(index, reference), variance[rows], variance[columns])
            coupling = carry(cost)
            maps[index][name] = coupling.map()
            before = -cost.diagonal().mean().item()
            costs.append(Cost(index, name, before, -coupling.cost, "minus distance"))
        seen_here = {place: _costs(moments[place], index, reference) for place in sorted(wanted)}
        plans = {place: carry(seen_here[place]).plan for place in flow.seen}
        maps[index] |= flow.maps(plans, sizes, residual)
        if flat is not None:
            maps[index] |= flat.maps(seen_here, carry, heads)
    for name in {n for own in maps for n, m in own.items() if isinstance(m, Dense) and "@" not in n}:
        eye = torch.eye(graph.spaces[name].size, dtype=torch.float64)
        maps[reference][name] = Dense(eye, eye)
    settings = {
        "residual": residual,
        "heads": heads,
        "solver": solver,
        "regularization": regularization if solver == "sinkhorn" else None,
        "limit": limit,
        "examples": seen.examples,
    }
    transports = tuple(Transport(graph, own) for own in maps)
    status = stopped(couplings)
    return Alignment(
        "transformer-transport", graph, transports, reference, tuple(costs), settings, tuple(notes), status
    )


def normalised(products: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """Euclidean distances of centred activations of unit length, from covariances and variances."""
    return (2 * distance(products, ours, theirs, "correlation")).clamp(min=0).sqrt()


def _costs(moments: features.Moments, index: int, reference: int) -> Tensor:
    cross = moments.covariance(index, reference).cpu()
    return normalised(cross, moments.variance[index].cpu(), moments.variance[reference].cpu())


def _squares(moments: features.Moments, index: int) -> Float[Tensor, " units"]:
    """Mean squares of a model's units."""
    return (moments.variance[index] + moments.mean[index].square()).cpu()


class _Flow:
    """How plans flow along residual streams: made where a layer writes, kept by norms, met at additions."""

    def __init__(self, graph: SymmetryGraph, program: Program, streams: Sequence[str]):
        self.graph, self.program, self.streams = graph, program, set(streams)
        self.axis = {
            value: dims[0]
            for value, axes in graph.values.items()
            if value in program.dynamic
            and len(
                dims := [d for d, a in enumerate(axes) if isinstance(a, Leaf) and a.space in self.streams]
            )
            == 1
        }
        order = list(program.nodes.values())
        self.nodes = [node for node in order if node.name in self.axis]
        self.position = {node: i for i, node in enumerate(order)}
        # A class token does not vary, so nothing tells its units apart: it takes the plan that it meets.
        made = [
            n for n in self.nodes if program.applies_weight(n) or n.target is torch.ops.aten.embedding.default
        ]
        self.seen = [(node.name, self.axis[node.name]) for node in made]
        # What is added up may come from a norm, so its size is seen there and not where layers wrote it.
        met = (a for node in self.nodes if node not in made and len(b := self._before(node)) == 2 for a in b)
        self.met = [(name, self.axis[name]) for name in dict.fromkeys(a.name for a in met)]

    def _before(self, node: fx.Node) -> list[fx.Node]:
        """The inputs on the same stream, the older first."""
        own = self._space(node)
        found = [a for a in node.all_input_nodes if a.name in self.axis and self._space(a) == own]
        return sorted(found, key=self.position.__getitem__)

    def _space(self, node: fx.Node) -> str:
        (name,) = spaces_of(self.graph.values[node.name][self.axis[node.name]])
        return name

    def maps(
        self,
        made: Mapping[tuple[str, int], Plan],
        sizes: Mapping[tuple[str, int], Tensor],
        residual: Residual,
    ) -> dict[str, Map]:
        """A map for each axis of each weight on a stream, from the plans where layers write it.

        Args:
            made: the plan of each value that a layer writes.
            sizes: mean squares of each value that is added to another.
            residual: the policy.
        """
        plans: dict[fx.Node, Plan] = {}
        for node in self.nodes:
            place = (node.name, self.axis[node.name])
            before = [a for a in self._before(node) if a in plans]
            if place in made:
                plans[node] = made[place]
            elif len(before) == 2:
                stream, branch = before
                ours, theirs = (sizes[value.name, self.axis[value.name]] for value in (branch, stream))
                plans[node] = _met(plans[branch], plans[stream], ours, theirs, residual)
            elif before:
                plans[node] = plans[before[0]]
        found: dict[str, Map] = {}
        for name in self.streams:
            last = [node for node in self.nodes if node in plans and self._space(node) == name][-1]
            found[name] = Coupling(plans[last], 0.0).map()
            for member in self.graph.spaces[name].members:
                at = self._at(member.key, member.role, plans, name)
                if at is not None:
                    found[f"{name}@{member.key}:{member.axis}"] = Coupling(plans[at], 0.0).map()
        return {name: Dense(*m.matrices()) for name, m in found.items()}

    def _at(self, key: str, role: str, plans: Mapping[fx.Node, Plan], space: str) -> fx.Node | None:
        """The value whose plan a weight takes: what it makes, or what it reads."""
        todo = [self.program.nodes[self.program.keys[key]]] if key in self.program.keys else []
        while todo:
            node = todo.pop(0)
            for user in node.users:
                if user.name not in self.program.dynamic or (user.name in self.axis and user not in plans):
                    todo.append(user)
                    continue
                sources = user.all_input_nodes if role == "reads" else [user]
                for value in sources:
                    if value in plans and self._space(value) == space:
                        return value
        return None


def _met(branch: Plan, stream: Plan, ours: Tensor, theirs: Tensor, residual: Residual) -> Plan:
    """The plan behind an addition."""
    if residual == "branch":
        return branch
    if residual == "stream":
        return stream
    if residual == "mean":
        return (branch + stream) / 2
    a, b = ours.sqrt(), theirs.sqrt()  # root mean squares
    if residual == "weighted-scalar":
        a, b = a.mean(), b.mean()
    share = a / (a + b).clamp(min=1e-30)
    return branch * share + stream * (1 - share)


class _Flat:
    """Plans over all units of all heads: queries, keys and values as layers like any other."""

    def __init__(self, graph: SymmetryGraph, program: Program):
        self.graph, self.program = graph, program
        outer = {name for space in graph.spaces.values() for name in space.within}
        self.heads = {name for name, space in graph.spaces.items() if space.within} | outer
        # Heads of weights that are computed from parameters are reordered, with all that is on axes with them.
        fixed = self.heads & graph.computed.keys()
        while more := {
            name
            for axes in graph.layout.values()
            for axis in axes
            if spaces_of(axis) & fixed
            for name in spaces_of(axis) & self.heads - fixed
        }:
            fixed |= more
        self.heads -= fixed
        self.made: dict[tuple[str, int], str] = {}
        for node in program.graph.nodes:
            if node.name in program.dynamic and program.applies_weight(node):
                for dim, axis in enumerate(graph.values.get(node.name, ())):
                    weight = program.linear_weight(node)
                    if spaces_of(axis) & self.heads and weight is not None:
                        self.made[node.name, dim] = program.weights[weight]
        self.seen = list(self.made)

    def maps(self, costs: Mapping[tuple[str, int], Tensor], carry: Carry, heads: Heads) -> dict[str, Map]:
        """A map for each axis of each weight that holds heads."""
        # Segments of one kind (queries and keys of the same heads) may share a plan.
        segments: list[tuple[tuple[str, int], int, int, frozenset[str], Tensor]] = []
        for place, cost in costs.items():
            if place not in self.made:
                continue
            start = 0
            for part in _parts(self.graph.values[place[0]][place[1]]):
                if spaces_of(part) & self.heads:
                    piece = cost[start : start + part.size, start : start + part.size]
                    segments.append((place, start, part.size, frozenset(spaces_of(part)), piece))
                start += part.size
        plans: dict[tuple[tuple[str, int], int], Coupling] = {}
        for place, start, size, spaces, cost in segments:
            alike = (
                [c for *_, s, k, c in segments if s == size and k == spaces] if heads == "equal" else [cost]
            )
            plans[place, start] = carry(sum(alike[1:], alike[0]) / len(alike))
        read: dict[tuple[int, frozenset[str]], Coupling] = {}
        found: dict[str, Map] = {}
        for place, start, size, spaces, _ in segments:
            read[size, spaces] = plans[place, start]
        written = {key: place for place, key in self.made.items()}
        for key, axes in self.graph.layout.items():
            for dim, axis in enumerate(axes):
                if not spaces_of(axis) & self.heads:
                    continue
                place = written.get(key) or self._bias(key)
                found |= self._map(key, dim, axis, plans, read, place)
        return found

    def _bias(self, key: str) -> tuple[str, int] | None:
        """Where a bias is added: the layer that it belongs to."""
        for user in self.program.nodes[self.program.keys[key]].users:
            for place in self.made:
                if place[0] == user.name:
                    return place
        return None

    def _map(
        self,
        key: str,
        dim: int,
        axis: Axis,
        plans: Mapping[tuple[tuple[str, int], int], Coupling],
        read: Mapping[tuple[int, frozenset[str]], Coupling],
        place: tuple[str, int] | None,
    ) -> dict[str, Map]:
        forward, backward, start = [], [], 0
        for part in _parts(axis):
            coupling = plans.get((place, start)) if place is not None else None
            if coupling is None:
                coupling = read.get((part.size, frozenset(spaces_of(part))))
            if coupling is None:
                eye = torch.eye(part.size, dtype=torch.float64)
                forward.append(eye)
                backward.append(eye)
            else:
                a, b = coupling.map().matrices()
                forward.append(a)
                backward.append(b)
            start += part.size
        return {f"@{key}:{dim}": Dense(torch.block_diag(*forward), torch.block_diag(*backward))}


def _parts(axis: Axis) -> Sequence[Axis]:
    """An axis as what is one after another on it; a product of a concatenation and heads opened too."""
    if isinstance(axis, Concat):
        return [piece for part in axis.parts for piece in _parts(part)]
    if isinstance(axis, Blocks) and isinstance(axis.factors[0], Concat):
        return [Blocks((part, *axis.factors[1:])) for part in axis.factors[0].parts]
    return [axis]
