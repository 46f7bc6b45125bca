"""Axes: what a finished reading says of a dimension. Plain data, and a small notation for it.

An axis is a space (`conv1`), a fixed run of indices (`3`), a product in row-major order (`(heads width)`)
or a concatenation (`query + key + value`).
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


Axis = Leaf | Blocks | Concat


def leaves(axis: Axis) -> Iterator[Leaf]:
    """The index sets of an axis, left to right."""
    if isinstance(axis, Leaf):
        yield axis
    else:
        for part in axis.factors if isinstance(axis, Blocks) else axis.parts:
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
    return Concat(tuple(without(part, names) for part in axis.parts))


def to_json(axis: Axis) -> object:
    """An axis as plain lists: a size, [space, size], {"blocks": [...]} or {"concat": [...]}."""
    if isinstance(axis, Leaf):
        return axis.size if axis.space is None else [axis.space, axis.size]
    if isinstance(axis, Blocks):
        return {"blocks": [to_json(item) for item in axis.factors]}
    return {"concat": [to_json(part) for part in axis.parts]}
