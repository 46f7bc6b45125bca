"""Weights that are computed from parameters, and what they are computed by.

Maps act on parameters. Where a network applies a weight that it computes of them, a sum of two units of the parameters
is that sum in the weight only if every step on the way is linear in what carries the units: transposed, cut, scaled
by what has none of them, a sum of low rank. A weight norm is not: it divides every row by its own length. Any order of
the units passes all of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from isthmus.symmetry.axes import spaces_of
from isthmus.symmetry.flow import BrokenError, Flow, Layout

if TYPE_CHECKING:
    from isthmus.symmetry.graph import Space


def computed(layout: Layout, spaces: Mapping[str, Space]) -> dict[str, str]:
    """The spaces whose units may not be added up, because a weight is computed from what writes or reads them.

    Args:
        layout: of the program.
        spaces: name -> space.

    Returns:
        Space -> the place of the operation that no matrix passes: its module and name.
    """
    places = ((name, _place(layout, space)) for name, space in spaces.items())
    return {name: place for name, place in places if place is not None}


def _place(layout: Layout, space: Space) -> str | None:
    """The first operation on parameters alone that a change of basis of a space does not pass."""
    program, name = layout.program, space.name
    if name in layout.hidden:  # nothing can follow it, so whatever is computed there counts
        return next((program.origin[node] for node in _made(layout, name)), None)
    try:
        flow = Flow(layout, name, "basis", until=program.dynamic)
    except BrokenError as error:
        return str(error)
    # A rotation would pass a norm, and a matrix a scale of ones; what is asked for here is any matrix.
    for node in (*flow.norms.values(), *(node for nodes in flow.scales.values() for node in nodes)):
        return program.origin[node]
    reads = {(m.key, m.axis) for m in space.members if m.role == "reads"}
    powers: dict[int, Fraction] = {}
    for place, unknown in flow.places.items():
        value = flow.system.value(unknown)
        sign = -1 if (place.key, place.axis) in reads else 1
        # What writes takes A and what reads takes B, so powers of one computation must be opposite there.
        if len(value) != 1 or any(powers.setdefault(free, sign * p) != sign * p for free, p in value.items()):
            users = program.nodes[program.keys[place.key]].users
            return next(program.origin[user.name] for user in users if user.name not in program.dynamic)
    return None


def _made(layout: Layout, space: str) -> list[str]:
    """The values that are computed from parameters alone and carry a space."""
    program = layout.program
    made = program.learned - program.dynamic - program.weights.keys()
    return [n for n in layout.values if n in made and any(space in spaces_of(a) for a in layout.values[n])]
