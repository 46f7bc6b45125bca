"""Reordering weights: new[k] = old[p[k]] on every axis that carries a space.

An order is an index tensor of shape (*sizes of the spaces it is within, size): inside a head each
head has its own order, addressed by the head's *new* position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from isthmus.symmetry.axes import Axis, Blocks, Interleaved, Leaf, leaves, parts_of, spaces_of
from isthmus.symmetry.graph import Space

#: Space name -> order of its units.
Orders = Mapping[str, Int[Tensor, "*within units"]]


def reorder(
    tensor: Tensor, axes: Sequence[Axis], orders: Orders, known: Mapping[str, Space], skip: int | None = None
) -> Tensor:
    """Apply orders to the axes of one weight.

    Args:
        tensor: the weight.
        axes: its axes.
        orders: an order for each space that moves; the others stay.
        known: the spaces of the graph.
        skip: an axis to leave in its old order.

    Returns:
        The reordered weight; `tensor` itself where nothing moves.
    """
    for axis in _outer_first(axes, orders, known):
        if axis == skip:
            continue
        index = positions(axes, axis, orders, known).to(tensor.device)
        if index.numel() == index.shape[axis]:
            tensor = tensor.index_select(axis, index.flatten())
        else:
            shape = list(tensor.shape)
            tensor = torch.take_along_dim(tensor, index.expand(shape), dim=axis)
    return tensor


def _outer_first(axes: Sequence[Axis], orders: Orders, known: Mapping[str, Space]) -> list[int]:
    """Axes that move, those first along which others differ."""
    moving = [i for i, axis in enumerate(axes) if spaces_of(axis) & orders.keys()]
    return (
        sorted(moving, key=lambda i: _others(axes, i, moving, orders, known)) if len(moving) > 1 else moving
    )


def _others(
    axes: Sequence[Axis], axis: int, moving: Sequence[int], orders: Orders, known: Mapping[str, Space]
) -> int:
    """How many spaces on other axes the orders of one axis differ along."""
    here = spaces_of(axes[axis])
    return sum(
        1
        for name in here & orders.keys()
        for outer in known[name].within
        if outer not in here and any(outer in spaces_of(axes[other]) for other in moving if other != axis)
    )


def positions(axes: Sequence[Axis], axis: int, orders: Orders, known: Mapping[str, Space]) -> Tensor:
    """Old position of every new position on one axis.

    Returns:
        Index tensor with as many dimensions as the weight, of size one along each dimension that the
        order does not depend on.
    """
    needed = {outer for leaf in leaves(axes[axis]) if leaf.space for outer in known[leaf.space].within}
    elsewhere: dict[str, Tensor] = {}
    for dim, other in enumerate(axes):
        if dim != axis and needed & spaces_of(other):
            elsewhere.update(_digits(other, _along(axes, dim)))
    return _old(axes[axis], _along(axes, axis), elsewhere, axis, orders, known)


def _along(axes: Sequence[Axis], axis: int) -> Tensor:
    """The positions on one axis, along it."""
    return torch.arange(axes[axis].size).view([-1 if i == axis else 1 for i in range(len(axes))])


def _digits(axis: Axis, position: Tensor) -> dict[str, Tensor]:
    """The index into each space of a product at these positions."""
    if isinstance(axis, Leaf):
        return {axis.space: position} if axis.space else {}
    if not isinstance(axis, Blocks):
        return {}  # which part a position lies in differs
    found: dict[str, Tensor] = {}
    stride = axis.size
    for item in axis.factors:
        stride //= item.size
        found.update(_digits(item, position // stride % item.size))
    return found


def _old(
    axis: Axis,
    position: Tensor,
    outer: Mapping[str, Tensor],
    dim: int,
    orders: Orders,
    known: Mapping[str, Space],
) -> Tensor:
    if isinstance(axis, Leaf):
        if axis.space is None or axis.space not in orders:
            return position
        order = orders[axis.space].to(position.device)
        return order[(*(outer[name] for name in known[axis.space].within), position)]
    if isinstance(axis, Blocks):
        total = torch.zeros((), dtype=torch.long)
        stride = axis.size
        # What is behind a factor may enclose it too (channels x groups), unless something before it does.
        enclosing = {**outer, **_digits(axis, position)}
        for item in axis.factors:
            stride //= item.size
            digit = position // stride % item.size
            total = total + stride * _old(item, digit, enclosing, dim, orders, known)
            enclosing.update(_digits(item, digit))
        return total
    # Concatenated, or in turn: always the whole of what it stands on, or a factor behind others.
    result = position
    places, start = torch.arange(axis.size, device=position.device), 0
    if isinstance(axis, Interleaved):
        places = torch.tensor(axis.gathered, device=position.device)
    local_of = places.argsort()[position]
    for part in parts_of(axis):
        local = local_of - start
        inside = (local >= 0) & (local < part.size)
        old = start + _old(part, local.clamp(0, part.size - 1), outer, dim, orders, known)
        result = torch.where(inside, places[old], result)
        start += part.size
    return result
