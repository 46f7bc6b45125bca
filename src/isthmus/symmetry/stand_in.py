"""Verifying a model that is too large to run by one of the same structure that is not.

A reading depends on what a program does, not on how wide it is. Where two programs of one class are the same
operation by operation and their graphs the same space by space, sizes apart, what holds for the one holds for
the other. So a network of 70 billion parameters, traced on the meta device, is checked on one of as many layers
and a hundredth of the width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from isthmus.errors import InputError
from isthmus.program import Inputs, Program, export
from isthmus.symmetry.axes import Axis, Blocks, Concat, Leaf, parts_of
from isthmus.symmetry.graph import SymmetryGraph
from isthmus.symmetry.trace import trace
from isthmus.symmetry.verified import verified
from isthmus.symmetry.verify import Verification

aten = torch.ops.aten

#: Operations that change where a value lies and nothing else: whether they are there may depend on the device.
_COPIES = {
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
}

#: Differences that an error shows.
SHOWN = 8


def verified_by(
    model: nn.Module | Program | SymmetryGraph,
    example: Inputs | None,
    small: nn.Module,
    small_example: Inputs,
    *,
    seed: int = 0,
) -> tuple[SymmetryGraph, Verification]:
    """Keep those symmetries of a large model that hold in a small one of the same structure.

    Args:
        model: what is too large to be run: a module on the meta device, its program or its graph.
        example: inputs as for `trace`; None where a program or graph is given.
        small: a module of the same class and depth: narrower, with fewer words, as many layers. One on the meta
            device takes less memory and is checked on redrawn weights alone, not on its own as well.
        small_example: its inputs.
        seed: of the weights and elements drawn.

    Returns:
        The graph of the large model and the verification of the small one; spaces that failed there are
        fixed here too.

    Raises:
        InputError: the two have not the same structure; what differs is listed.
        VerificationError: the graph does not verify even so.

    Examples:
        >>> import torch, isthmus
        >>> from isthmus.symmetry.stand_in import verified_by
        >>> def mlp(width):
        ...     return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))
        >>> with torch.device("meta"):
        ...     large = mlp(2**20)
        >>> graph, found = verified_by(large, torch.zeros(2, 4), mlp(8), torch.randn(2, 4))
        >>> graph.spaces["0"].size, found.ok
        (1048576, True)
    """
    graph = model if isinstance(model, SymmetryGraph) else trace(model, example)
    program = export(small, small_example)
    _require_none(_programs(graph.program, program))  # before it is read: an axis of size zero cannot be
    other = trace(program)
    _require_none(_readings(graph, other))
    own = None if any(value.is_meta for value in small.state_dict().values()) else small
    checked, found = verified(other, small_example, weights=own, seed=seed)
    if math.isnan(found.error):
        return graph, found
    failed = {name: where for name, where in found.frozen.items() if name in graph.spaces}
    graph = graph.frozen({name: f"fails verification at {where}" for name, where in failed.items()})
    graph = replace(graph, refused={**graph.refused, **checked.refused})
    count = sum(math.prod(other.program.shapes[key]) for key in other.layout)
    return graph, replace(found, note=f"on a model of the same structure, {count:,} parameters: {found.note}")


def _require_none(differences: Iterable[str]) -> None:
    if problems := list(differences):
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise InputError(
            "the smaller model has another structure, so it says nothing of the larger",
            [*problems[:SHOWN], *more],
            hint="keep the number of layers, heads and groups and every option; make it narrower only, "
            "and no two sizes equal that were not",
        )


def _readings(one: SymmetryGraph, other: SymmetryGraph) -> Iterable[str]:
    """In what the readings of two programs differ besides sizes."""
    yield from _tables("weight", _layout(one), _layout(other))
    yield from _tables("space", _spaces(one), _spaces(other))
    # What depends on the values of constants (the planes of rotary tables) is not seen on the meta device.
    claimed = _gauges(one)
    yield from _tables("freedom", claimed, {n: g for n, g in _gauges(other).items() if n in claimed})
    yield from _tables("fixed axis", _fixed(one), _fixed(other))
    yield from _tables("operation without a rule", dict(one.unknown), dict(other.unknown))


def _tables(what: str, ours: Mapping[str, object], theirs: Mapping[str, object]) -> Iterable[str]:
    for name in dict.fromkeys([*ours, *theirs]):
        if name not in ours or name not in theirs:
            yield f"{what} {name}: only in the {'larger' if name in ours else 'smaller'}"
        elif ours[name] != theirs[name]:
            yield f"{what} {name}: {_brief(ours[name])} and {_brief(theirs[name])}"


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _programs(one: Program, other: Program) -> Iterable[str]:
    """Operations, what they are applied to, and their arguments: sizes may differ, all else may not."""
    ours, theirs = ([n for n in p.graph.nodes if n.target not in _COPIES] for p in (one, other))
    if len(ours) != len(theirs):
        yield f"the programs have {len(ours)} and {len(theirs)} operations"
        return
    at: dict[fx.Node, fx.Node] = dict(zip(ours, theirs, strict=True))
    for a, b in at.items():
        if a.op != b.op or (a.op == "call_function" and a.target != b.target):
            yield f"{one.origin[a.name]} and {other.origin[b.name]} are two operations"
            return
        if one.weights.get(a.name) != other.weights.get(b.name):
            yield f"{one.weights.get(a.name)} and {other.weights.get(b.name)} are two weights"
            return
        value, small = a.meta.get("val"), b.meta.get("val")
        rank, small_rank = (v.ndim if isinstance(v, Tensor) else None for v in (value, small))
        if rank != small_rank:
            yield f"{one.origin[a.name]}: {rank} and {small_rank} dimensions"
        if not (_alike(a.args, b.args, at) and _alike(a.kwargs, b.kwargs, at)):
            yield f"{one.origin[a.name]}: called with {_brief(a.args)} and {_brief(b.args)}"


def _source(node: fx.Node) -> fx.Node:
    """The value that a chain of copies shows."""
    while node.target in _COPIES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _alike(ours: object, theirs: object, at: Mapping[fx.Node, fx.Node]) -> bool:
    """Whether two arguments are the same, or are both sizes (or scales that follow from them), or devices."""
    if isinstance(ours, fx.Node):
        return isinstance(theirs, fx.Node) and at.get(_source(ours)) is _source(theirs)
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(_alike(a, b, at) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return ours.keys() == theirs.keys() and all(_alike(ours[k], theirs[k], at) for k in ours)
    if isinstance(ours, torch.device) and isinstance(theirs, torch.device):
        return True
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    if isinstance(ours, (int, float)) and isinstance(theirs, (int, float)):
        # A dimension counted from the end is negative, no axis and "all" are zero or less: those are no sizes.
        return ours == theirs or (type(ours) is type(theirs) and ours > 0 and theirs > 0)
    return ours == theirs


def _skeleton(axis: Axis) -> str:
    """An axis without its sizes."""
    if isinstance(axis, Leaf):
        return axis.space or "-"
    if isinstance(axis, Blocks):
        return f"({' '.join(map(_skeleton, axis.factors))})"
    sign = " + " if isinstance(axis, Concat) else " & "
    return f"[{sign.join(map(_skeleton, parts_of(axis)))}]"


def _layout(graph: SymmetryGraph) -> dict[str, object]:
    return {key: " x ".join(map(_skeleton, axes)) for key, axes in graph.layout.items()}


def _spaces(graph: SymmetryGraph) -> dict[str, object]:
    return {name: (space.within, sorted(space.marks), space.members) for name, space in graph.spaces.items()}


def _gauges(graph: SymmetryGraph) -> dict[str, object]:
    return {
        name: (gauge.kind, gauge.within, gauge.slots, gauge.pairing) for name, gauge in graph.gauges.items()
    }


def _fixed(graph: SymmetryGraph) -> dict[str, object]:
    counts = Counter((fixed.key, fixed.axis, fixed.reason) for fixed in graph.fixed)
    return {f"{key}[{axis}] ({reason})": count for (key, axis, reason), count in counts.items()}
