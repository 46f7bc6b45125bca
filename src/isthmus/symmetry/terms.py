"""Terms: what is known of a dimension while the program is being read.

A dimension is an *atom* (an index set of which nothing more is known), a *product* of terms (row
major), a *sum* of terms (in order), a *weave* of terms (in turn, as a channel shuffle leaves them), or a
*case* (a term that differs along another dimension). Atoms unify and refine while the program is read.
"""

from __future__ import annotations

from dataclasses import dataclass


class Atom:
    """An index set. It unifies with others, and is refined when an operation splits it.

    Attributes:
        size: number of indices.
        frozen: whether only the identity is allowed.
        reason: why it was frozen.
        within: the atoms whose index this one's permutation may depend on ("per head"); None for a
            set whose indices are all alike (copies, zeros), which may depend on anything.
        bound: what the atom turned out to be: another atom, a product, a sum, a weave or a case.
        barred: the atoms on which it may not depend, whatever `within` says: it was mixed along them.
        dependents: atoms that are `within` this one.
        marks: operations that act on this set elementwise; they decide its group.
    """

    __slots__ = ("barred", "bound", "dependents", "frozen", "marks", "reason", "size", "within")

    def __init__(
        self, size: int, within: frozenset[Atom] | None = frozenset(), frozen: bool = False, reason: str = ""
    ):
        self.size = size
        self.within = within
        self.frozen = frozen
        self.reason = reason
        self.bound: Term | None = None
        self.barred: frozenset[Atom] = frozenset()
        self.dependents: list[Atom] = []
        self.marks: set[str] = set()
        for outer in within or ():
            outer.dependents.append(self)

    def __repr__(self) -> str:
        return f"{'!' if self.frozen else ''}{id(self) % 9973}({self.size})"


@dataclass(frozen=True, eq=False)
class Product:
    """Row-major product of terms: what flattening makes."""

    factors: tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class Sum:
    """Terms one after another: what concatenation makes."""

    parts: tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class Woven:
    """Terms in turn, each in its own order: what exchanging groups and channels makes of a concatenation.

    Attributes:
        parts: the terms.
        order: for each position, which of them gives the next of its indices.
    """

    parts: tuple[Term, ...]
    order: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Case:
    """A term that differs along another dimension.

    Attributes:
        key: the atom along which it differs; `key` is bound to a sum.
        branches: (length along the key, term), in order.
    """

    key: Atom
    branches: tuple[tuple[int, Term], ...]


Term = Atom | Product | Sum | Woven | Case


def size(term: Term) -> int:
    """Number of indices of a term."""
    if isinstance(term, Atom):
        return term.size
    if isinstance(term, Product):
        total = 1
        for factor in term.factors:
            total *= size(factor)
        return total
    if isinstance(term, (Sum, Woven)):
        return sum(size(part) for part in term.parts)
    return size(term.branches[0][1])
