"""Folding the scales of norms into the weights behind them, so that the space they normalise may turn.

A norm divides by a length that no rotation changes, and then multiplies each unit by a scale of its own, which a
rotation does not pass. But whatever reads the result can take the scale over: W (g * x) = (W diag g) x. With the
scales at one, the residual stream of a transformer may be rotated: by any orthogonal matrix under root-mean-square
norms, by one that fixes the vector of ones under layer norms, which also subtract the mean.

Source: Ashkboos et al., SliceGPT, arXiv:2401.15024, section 3; we keep layer norms as they are instead of
turning them into root-mean-square norms, so the weights still load in the model's own class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, fx

from isthmus.errors import InputError
from isthmus.program import LINEAR, Program
from isthmus.symmetry.expose import exposed
from isthmus.symmetry.graph import SymmetryGraph
from isthmus.symmetry.operations import JOINS, LINEAR_REDUCTIONS, MOVES, PADS, operation

#: What brings values to other places, one at a time: beside others they would not all take the scale.
ALONE = MOVES - JOINS

#: What leaves a constant that is added to every value as it was.
STEADY = ALONE - PADS | {"mean", "getitem"}

#: Below this share of the largest scale, a shift is not divided by it.
TINY = 1e-4


@dataclass(frozen=True)
class Fold:
    """Where the scale of one norm goes.

    Attributes:
        scale: its key.
        shift: the key of the norm's shift, if it has one.
        takers: weights that take the scale over, as (key, axis, key of the bias beside it).
        role: "reads" where they are behind the norm, "writes" where they are before the scale.
    """

    scale: str
    shift: str | None
    takers: tuple[tuple[str, int, str | None], ...]
    role: str


def folds(graph: SymmetryGraph) -> tuple[dict[str, tuple[Fold, ...]], dict[str, str]]:
    """What can be folded for each space that could turn, and why others cannot."""
    found: dict[str, tuple[Fold, ...]] = {}
    problems: dict[str, str] = {}
    for space, opening in graph.openings.items():
        plans: list[Fold] = []
        for key, nodes in opening.scales.items():
            plan = _plan(graph, space, key, nodes)
            if isinstance(plan, str):
                problems[space] = f"{key}: {plan}"
                break
            plans.append(plan)
        else:
            found[space] = tuple(plans)
    return found, problems


def fold_norms(graph: SymmetryGraph, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See `SymmetryGraph.fold_norms`."""
    graph = replace(graph, ones=frozenset())  # of the weights as they come, also when asked on a folded graph
    found, problems = folds(graph)
    if not found:
        raise InputError(
            "no norm can be folded into the weights behind it",
            [f"{space}: {why}" for space, why in problems.items()]
            or ["the model has no root-mean-square or layer norm on a space that is otherwise linear"],
        )
    program = graph.program
    names = {key: program.keys[key] for plans in found.values() for plan in plans for key in _keys(plan)}
    values = program.lookup(weights)
    wide = {key: values[name].detach().clone().double() for key, name in names.items()}
    for space, plans in found.items():
        for plan in plans:
            _fold(graph, space, plan, wide)
    result = dict(weights)
    for key in weights:
        canonical = program.tied.get(key, key)
        if canonical in wide:
            result[key] = wide[canonical].to(weights[key])
    return result


def folded(graph: SymmetryGraph) -> SymmetryGraph:
    """See `SymmetryGraph.folded`."""
    found, _ = folds(graph)
    ones = {plan.scale for plans in found.values() for plan in plans}
    return replace(graph, ones=graph.ones | ones)


def _keys(plan: Fold) -> list[str]:
    takers = [key for taker in plan.takers for key in (taker[0], taker[2]) if key is not None]
    return [plan.scale, *([plan.shift] if plan.shift else []), *takers]


def _fold(graph: SymmetryGraph, space: str, plan: Fold, wide: dict[str, Tensor]) -> None:
    scale = wide[plan.scale].flatten()
    if plan.shift is not None:
        shift = wide[plan.shift].flatten()
        readable = all(
            bias is not None and wide[key].ndim == 2 and graph.layout[key][axis].size == len(scale)
            for key, axis, bias in plan.takers
        )
        if readable:
            for key, axis, bias in plan.takers:
                assert bias is not None
                wide[bias] += wide[key].movedim(axis, -1) @ shift
            wide[plan.shift].zero_()
        elif scale.abs().min() <= TINY * scale.abs().max():
            raise InputError(
                "a norm has a scale near zero and a shift, and nothing behind it has a bias to take the shift",
                [f"{plan.scale}, {plan.shift}"],
            )
        else:
            wide[plan.shift] /= wide[plan.scale]
    for key, axis, bias in plan.takers:
        taking = [(key, axis)] if plan.role == "reads" or bias is None else [(key, axis), (bias, 0)]
        for name, dim in taking:
            for _, view in exposed(wide[name], graph.layout[name], dim, space):
                view.mul_(scale.view(-1, *[1] * (view.ndim - 1)))
    wide[plan.scale].fill_(1.0)


def _plan(graph: SymmetryGraph, space: str, key: str, nodes: tuple[str, ...]) -> Fold | str:
    program = graph.program
    if len(nodes) > 1:
        return f"multiplies in {len(nodes)} places"
    node = program.nodes[next(iter(nodes))]
    if others := _uses(program.nodes[program.keys[key]]) - {node}:
        return f"is also used by {_places(program, others)}"
    ahead = _readers(graph, space, node)
    if not isinstance(ahead, str):
        takers, shift = ahead
        return Fold(key, shift, takers, "reads")
    behind = _writers(graph, space, node, key) if operation(node) == "mul" else None
    return Fold(key, None, (behind,), "writes") if behind is not None else ahead


def _readers(
    graph: SymmetryGraph, space: str, node: fx.Node
) -> tuple[tuple[tuple[str, int, str | None], ...], str | None] | str:
    """The weights that read a norm's result and nothing else, and the norm's shift; or what else reads it."""
    program = graph.program
    shift = _weight(program, node.args[3]) if operation(node) == "layer_norm" and len(node.args) > 3 else None
    queue, seen, steady = [node], {node}, True
    readers: list[tuple[fx.Node, str]] = []
    shifting = {node}  # what may read the shift
    while queue:
        value = queue.pop()
        for user in value.users:
            name = operation(user)
            if user in seen:
                continue
            seen.add(user)
            weight = program.linear_weight(user)
            if user.target in LINEAR and weight is not None and _source(user) in seen:
                readers.append((user, program.weights[weight]))
            elif name in ALONE or name in LINEAR_REDUCTIONS or name == "getitem":
                steady &= name in STEADY
                queue.append(user)
            elif (
                name == "add"
                and shift is None
                and value is node
                and (beside := _beside(program, user, value)) is not None
            ):
                shift = beside
                shifting.add(user)
                steady &= len(node.users) == 1  # else others read the value without its shift
                queue.append(user)
            else:
                return f"its result is used by {program.origin.get(user.name, user.op)}"
    if not readers:
        return "nothing reads its result"
    if shift is not None and (others := _uses(program.nodes[program.keys[shift]]) - shifting):
        return f"its shift {shift} is also used by {_places(program, others)}"
    nodes = {reader for reader, _ in readers}
    takers: list[tuple[str, int, str | None]] = []
    for reader, weight in readers:
        if others := _uses(program.nodes[program.keys[weight]]) - nodes:
            return f"{weight}, which reads its result, is also used by {_places(program, others)}"
        axes = [m.axis for m in graph.spaces[space].members if m.key == weight and m.role == "reads"]
        if len(axes) != 1:
            return f"{weight} does not read the space on one axis"
        # A sum, or padding, would not hand the shift on as it is: then no bias can take it.
        takers.append((weight, axes[0], _bias(program, reader) if steady else None))
    return tuple(dict.fromkeys(takers)), shift


def _writers(graph: SymmetryGraph, space: str, node: fx.Node, key: str) -> tuple[str, int, str | None] | None:
    """The weight that makes what a scale multiplies, where it makes nothing else."""
    program = graph.program
    others = [a for a in node.all_input_nodes if _weight(program, a) != key]
    if len(others) != 1:
        return None
    value = others[0]
    while operation(value) in ALONE and len(value.users) == 1 and isinstance(value.args[0], fx.Node):
        value = value.args[0]
    weight = program.linear_weight(value)
    if weight is None or len(value.users) != 1 or _uses(program.nodes[weight]) != {value}:
        return None
    name = program.weights[weight]
    axes = [m.axis for m in graph.spaces[space].members if m.key == name and m.role == "writes"]
    bias = _bias(program, value)
    if len(axes) != 1 or (bias is None and _added(value) is not None):
        return None
    return name, axes[0], bias


def _weight(program: Program, node: object) -> str | None:
    """The key of a weight that a node is, or is a view of."""
    while isinstance(node, fx.Node) and operation(node) in MOVES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return program.weights.get(node.name) if isinstance(node, fx.Node) else None


def _beside(program: Program, node: fx.Node, value: fx.Node) -> str | None:
    """The key of the weight that is added to a value."""
    others = [a for a in node.all_input_nodes if a is not value]
    key = _weight(program, others[0]) if len(others) == 1 else None
    return key if key is not None and key not in program.buffers else None


def _source(node: fx.Node) -> fx.Node | None:
    """The input that a linear operation applies its weight to."""
    place = 1 if operation(node) == "addmm" else 0
    found = node.args[place]
    return found if isinstance(found, fx.Node) else None


def _bias(program: Program, node: fx.Node) -> str | None:
    """The key of a linear operation's own bias, used nowhere else and added as it is."""
    found = _added(node)
    if not isinstance(found, fx.Node) or found.name not in program.weights or len(found.users) != 1:
        return None
    whole = program.size(found.name) == program.size(node.name)[-1:] or "conv" in operation(node)
    plain = node.kwargs.get("beta", 1) == node.kwargs.get("alpha", 1) == 1
    return program.weights[found.name] if whole and plain else None


def _added(node: fx.Node) -> object:
    """What a linear operation adds to its product."""
    place = 0 if operation(node) == "addmm" else 2
    return node.args[place] if len(node.args) > place else None


def _places(program: Program, nodes: set[fx.Node]) -> str:
    return ", ".join(sorted(program.origin.get(node.name, node.op) for node in nodes))


def _uses(node: fx.Node) -> set[fx.Node]:
    """The operations that compute with a weight, behind the views of it."""
    found: set[fx.Node] = set()
    for user in node.users:
        found |= _uses(user) if operation(user) in MOVES else {user}
    return found
