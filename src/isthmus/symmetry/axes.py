"""Axes: what a finished reading says of a dimension. Plain data, and a small notation for it.

An axis is a space (`conv1`), a fixed run of indices (`3`), a product in row-major order (`(heads width)`),
a concatenation (`query + key + value`) or axes whose indices come in turn (`left & right`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Leaf:
    """One index set: a space, or a fixed run of indices (space None)."""

    size: int
    space: str | None = None

    def __str__(self) -> str:
        return self.space or str(self.size)


@dataclass(frozen=True)
class Blocks:
    """A row-major product of axes."""

    factors: tuple[Axis, ...]

    @property
    def size(self) -> int:
        total = 1
        for item in self.factors:
            total *= item.size
        return total

    def __str__(self) -> str:
        return f"({' '.join(map(str, self.factors))})"


@dataclass(frozen=True)
class Concat:
    """Axes one after another."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))


@dataclass(frozen=True)
class Interleaved:
    """Axes whose indices come in turn, each in its own order: what a channel shuffle leaves.

    Attributes:
        strands: the axes.
        order: for each position, which strand gives the next of its indices.
    """

    strands: tuple[Axis, ...]
    order: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.order)

    @property
    def concatenated(self) -> Concat:
        """The strands one after another: this axis, once its positions are taken in the order `gathered`."""
        return Concat(self.strands)

    @property
    def gathered(self) -> tuple[int, ...]:
        """The positions of each strand, strand after strand."""
        return tuple(sorted(range(len(self.order)), key=self.order.__getitem__))

    def __str__(self) -> str:
        return " & ".join(map(str, self.strands))


Axis = Leaf | Blocks | Concat | Interleaved


def parts_of(axis: Axis) -> tuple[Axis, ...]:
    """What an axis is made of: factors, parts or strands; nothing for a leaf."""
    if isinstance(axis, Leaf):
        return ()
    if isinstance(axis, Blocks):
        return axis.factors
    return axis.parts if isinstance(axis, Concat) else axis.strands


def leaves(axis: Axis) -> Iterator[Leaf]:
    """The index sets of an axis, left to right."""
    if isinstance(axis, Leaf):
        yield axis
    else:
        for part in parts_of(axis):
            yield from leaves(part)


def spaces_of(axis: Axis) -> set[str]:
    """The names of the spaces on an axis."""
    return {leaf.space for leaf in leaves(axis) if leaf.space is not None}


def without(axis: Axis, names: Collection[str]) -> Axis:
    """The axis with these spaces fixed."""
    if isinstance(axis, Leaf):
        return Leaf(axis.size) if axis.space in names else axis
    if isinstance(axis, Blocks):
        return Blocks(tuple(without(item, names) for item in axis.factors))
    if isinstance(axis, Interleaved):
        return Interleaved(tuple(without(strand, names) for strand in axis.strands), axis.order)
    return Concat(tuple(without(part, names) for part in axis.parts))


def to_json(axis: Axis) -> object:
    """An axis as plain lists: a size, [space, size], {"blocks": [...]}, {"concat": [...]} or {"turn": [...]}."""
    if isinstance(axis, Leaf):
        return axis.size if axis.space is None else [axis.space, axis.size]
    if isinstance(axis, Blocks):
        return {"blocks": [to_json(item) for item in axis.factors]}
    if isinstance(axis, Interleaved):
        return {"turn": [to_json(strand) for strand in axis.strands], "order": list(axis.order)}
    return {"concat": [to_json(part) for part in axis.parts]}
