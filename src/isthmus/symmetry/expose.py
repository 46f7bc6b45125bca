"""Views of a weight in which one space has a dimension of its own.

A weight axis can hold a space as one factor of a product, as one part of a concatenation, or several times
(the two halves of a packed gate). An *occurrence* is one such place; they are counted left to right.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torch import Tensor

from isthmus.symmetry.axes import Axis, Blocks, Interleaved, Leaf, leaves, parts_of, spaces_of, without

# No space has such a name: it marks a dimension that was found.
_FOUND = "\0"


def occurrences(axis: Axis, space: str) -> int:
    """How often an axis holds a space."""
    return sum(leaf.space == space for leaf in leaves(axis))


def exposed(
    tensor: Tensor, axes: Sequence[Axis], axis: int, space: str, within: Sequence[str] = ()
) -> Iterator[tuple[int, Tensor]]:
    """Views of a weight with dimensions (*outer units, units, *rest), writable in place.

    Args:
        tensor: the weight, or any tensor laid out like it.
        axes: its axes.
        axis: which of them holds the space; other places of the space are left alone.
        space: the space.
        within: the outer spaces that what is done to it differs along.

    Yields:
        The occurrence and its view; several views where an outer space is itself concatenated.
    """
    for occurrence, (view, terms, at) in enumerate(_reach(tensor, list(axes), axis, space)):
        hidden = [without(term, {space}) for term in terms]
        hidden[at] = Leaf(terms[at].size, _FOUND)
        for found, labels in _outer(view, hidden, list(within)):
            yield occurrence, _in_front(found, labels, len(within))


def _reach(
    tensor: Tensor, terms: list[Axis], dim: int, space: str
) -> Iterator[tuple[Tensor, list[Axis], int]]:
    """Open one axis until the space is a dimension of its own, for each place it has there."""
    term = terms[dim]
    if isinstance(term, Leaf):
        if term.space == space:
            yield tensor, terms, dim
    elif isinstance(term, Blocks):
        opened = tensor.unflatten(dim, [factor.size for factor in term.factors])
        inner = [*terms[:dim], *term.factors, *terms[dim + 1 :]]
        for offset, factor in enumerate(term.factors):
            if space in spaces_of(factor):
                yield from _reach(opened, inner, dim + offset, space)
    elif isinstance(term, Interleaved):
        for index, strand in enumerate(term.strands):
            if space in spaces_of(strand):
                stride = _stride(term, index)
                assert stride is not None, f"{space} is out of reach"
                piece = tensor[(*[slice(None)] * dim, stride)]
                yield from _reach(piece, [*terms[:dim], strand, *terms[dim + 1 :]], dim, space)
    else:
        start = 0
        for part in term.parts:
            if space in spaces_of(part):
                piece = tensor.narrow(dim, start, part.size)
                yield from _reach(piece, [*terms[:dim], part, *terms[dim + 1 :]], dim, space)
            start += part.size


def out_of_reach(axis: Axis) -> set[str]:
    """The spaces on an axis of which there is no view: their indices come in turn with others, unevenly."""
    found: set[str] = set()
    for index, part in enumerate(parts_of(axis)):
        uneven = isinstance(axis, Interleaved) and _stride(axis, index) is None
        found |= spaces_of(part) if uneven else out_of_reach(part)
    return found


def _stride(axis: Interleaved, strand: int) -> slice | None:
    """The positions of a strand as a slice, where they are evenly spaced."""
    places = [place for place, turn in enumerate(axis.order) if turn == strand]
    steps = {after - before for before, after in itertools.pairwise(places)}
    if len(steps) > 1:
        return None
    return slice(places[0], places[-1] + 1, steps.pop() if steps else 1)


def _outer(tensor: Tensor, terms: list[Axis], wanted: list[str]) -> Iterator[tuple[Tensor, list[Axis]]]:
    """Open the axes of the outer spaces too, and mark them in order."""
    if not wanted:
        yield tensor, terms
        return
    name, *others = wanted
    here = next(dim for dim, term in enumerate(terms) if isinstance(term, Leaf) and term.space == _FOUND)
    # A square weight holds the outer space on both axes: what encloses the place stands last before it.
    for dim in (*reversed(range(here)), *range(here + 1, len(terms))):
        if name in spaces_of(terms[dim]):
            for view, opened, at in _reach(tensor, terms, dim, name):
                marked = list(opened)
                marked[at] = Leaf(opened[at].size, f"{_FOUND}{len(others)}")
                yield from _outer(view, marked, others)
            return


def _in_front(tensor: Tensor, terms: Sequence[Axis], outer: int) -> Tensor:
    wanted = [*(f"{_FOUND}{n}" for n in reversed(range(outer))), _FOUND]
    at = {term.space: dim for dim, term in enumerate(terms) if isinstance(term, Leaf)}
    front = [at[name] for name in wanted]
    return tensor.permute(*front, *(dim for dim in range(len(terms)) if dim not in front))
