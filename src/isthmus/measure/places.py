"""Where two networks are compared: the activations that layers read, named by value, by space or by depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.align import observations
from isthmus.errors import InputError
from isthmus.measure.layers import batch_dim
from isthmus.program import Program
from isthmus.symmetry import trace


@dataclass(frozen=True)
class Place:
    """An activation: what the layers behind it read, before pooling and reshaping.

    Attributes:
        value: its name in the program.
        axis: its channels.
        space: the index set of its channels, see `isthmus.SymmetryGraph`.
        depth: linear and conv operations on the longest path to it.
        label: for people: the module, or the value where that has several.
    """

    value: str
    axis: int
    space: str
    depth: int
    label: str


#: How a place is asked for: the name of a value or of a space, or a depth.
At = str | int


def places(program: Program) -> tuple[Place, ...]:
    """Every activation that has channels of its own, in order of execution.

    Args:
        program: of any network.
    """
    seen: dict[str, tuple[int, str]] = {}
    for space, values in observations(trace(program), stream="pooled").items():
        for value, axis in values:
            if value in program.dynamic and batch_dim(program, value) is not None:
                seen.setdefault(value, (axis, space))
    modules = Counter(program.module_of(value) for value in seen)
    return tuple(
        Place(
            name,
            *seen[name],
            program.depth[name],
            path
            if (path := program.module_of(name)) and modules[path] == 1
            else f"{path}:{name}".lstrip(":"),
        )
        for name in program.nodes
        if name in seen
    )


def pairs_of(
    a: Program, b: Program, at: Sequence[At | tuple[At, At]] | None
) -> tuple[tuple[Place, Place], ...]:
    """The places of two networks that are compared with each other.

    Args:
        a: the program of one network.
        b: that of the other one, perhaps of another architecture.
        at: what to compare; one name for both, or one each. By default the places at each depth that both have, in
            order.

    Raises:
        InputError: a place that a network does not have, all of them at once; or none in common.
    """
    own, other = places(a), places(b)
    if at is None:
        depths = sorted({place.depth for place in own} & {place.depth for place in other})
        found = tuple(
            pair
            for depth in depths
            for pair in zip(
                (p for p in own if p.depth == depth), (p for p in other if p.depth == depth), strict=False
            )
        )
        if not found:
            raise InputError(
                "the networks have no activation at the same depth", hint="pass at=[(of a, of b), ...]"
            )
        return found
    wrong: list[str] = []
    pairs: list[tuple[Place, Place]] = []
    for asked in at:
        first, second = asked if isinstance(asked, tuple) else (asked, asked)
        chosen = [_find(known, one) for known, one in ((own, first), (other, second))]
        wrong += [
            f"network {'ab'[i]} has no activation {one!r}"
            for i, (one, place) in enumerate(zip((first, second), chosen, strict=True))
            if place is None
        ]
        pairs += [(p, q) for p in chosen[:1] for q in chosen[1:] if p is not None and q is not None]
    if wrong:
        names = ", ".join(f"{place.value} (depth {place.depth})" for place in own)
        raise InputError(f"{len(wrong)} places are not there", wrong, hint=f"a has {names}")
    return tuple(pairs)


def _find(known: Sequence[Place], asked: At) -> Place | None:
    """A value of that name, or the last place of that space or depth."""
    for place in reversed(known):
        if asked in (place.value, place.space, place.depth):
            return place
    return None
