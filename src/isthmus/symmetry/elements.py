"""Elements of the full group: an order for each space, and a value for each gauge.

An element first puts units into their new order, new[k] = old[order[k]], and then scales, negates or mixes them
where they now stand; inside a head, by what the head's new position holds. Elements compose and invert; applied
to a model's weights they leave its function alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from isthmus.errors import InputError
from isthmus.symmetry.expose import exposed
from isthmus.symmetry.gather import reorder
from isthmus.symmetry.gauges import DENSE, Gauge, Slot, turn
from isthmus.symmetry.graph import Space, SymmetryGraph


@dataclass(frozen=True, eq=False)
class Element:
    """One transformation of a model that leaves its function alone.

    Attributes:
        orders: space -> order of its units, (*outer units, units); spaces that are not named stay.
        values: gauge -> what is done to the units in their new places: (*outer units, units) positive numbers
            or signs; (*outer units, units, units) matrices; (*outer units, planes) complex numbers.
    """

    orders: Mapping[str, Int[Tensor, "*within units"]] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)

    def only(self, names: Iterable[str]) -> Element:
        """The part of the element that moves these spaces and gauges."""
        chosen = set(names)
        return Element(
            {name: order for name, order in self.orders.items() if name in chosen},
            {name: value for name, value in self.values.items() if name in chosen},
        )

    def apply(
        self, graph: SymmetryGraph, weights: Mapping[str, Tensor], keys: Iterable[str] | None = None
    ) -> dict[str, Tensor]:
        """Move the weights of a model.

        Args:
            graph: whose spaces and gauges these are.
            weights: key -> tensor; keys that the graph does not know pass unchanged.
            keys: move only these.
        """
        result = dict(weights)
        chosen = graph.layout.keys() if keys is None else set(keys)
        for key in chosen:
            if key in result and key in graph.layout:
                result[key] = reorder(result[key], graph.layout[key], self.orders, graph.spaces)
        touched = {
            slot.key for name in self.values for slot in graph.gauges[name].slots if slot.key in result
        }
        copied = touched & set(chosen)
        for key in copied:
            result[key] = result[key].clone()
        for name, value in self.values.items():
            for slot in graph.gauges[name].slots:
                if slot.key in copied:
                    _act(result[slot.key], graph, graph.gauges[name], slot, value)
        return result

    def then(self, other: Element, graph: SymmetryGraph) -> Element:
        """This element followed by another."""
        orders = compose_orders(self.orders, other.orders, graph.spaces)
        values: dict[str, Tensor] = {}
        for name in {**self.values, **other.values}:
            gauge = graph.gauges[name]
            ours, theirs = self.values.get(name), other.values.get(name)
            if ours is not None:
                ours = _followed(ours, gauge, other.orders, graph.spaces)
            if ours is None or theirs is None:
                values[name] = theirs if ours is None else ours  # type: ignore[assignment]
            else:
                values[name] = theirs @ ours if gauge.kind in DENSE else theirs * ours
        return Element(orders, values)

    def inverse(self, graph: SymmetryGraph) -> Element:
        """The element that undoes this one."""
        orders = invert_orders(self.orders, graph.spaces)
        values: dict[str, Tensor] = {}
        for name, value in self.values.items():
            gauge = graph.gauges[name]
            if gauge.kind == "invertible":
                back = _inverse(value)
            elif gauge.kind in DENSE:
                back = value.mT
            else:
                back = 1 / value
            values[name] = _followed(back, gauge, orders, graph.spaces)
        return Element(orders, values)


def random_element(graph: SymmetryGraph, generator: torch.Generator) -> Element:
    """An element in general position: no unit keeps its place, its scale or its direction.

    Args:
        graph: whose group it is of.
        generator: of the random numbers.
    """
    orders = random_orders(graph, generator)
    return Element(orders, {n: random_value(graph, g, generator) for n, g in graph.gauges.items()})


def random_orders(graph: SymmetryGraph, generator: torch.Generator) -> dict[str, Tensor]:
    """An order without fixed points for each space."""
    orders: dict[str, Tensor] = {}
    for name, space in graph.spaces.items():
        families = [graph.spaces[outer].size for outer in space.within]
        shuffled = torch.rand(*families, space.size, generator=generator).argsort(-1)
        # Sending each unit to the next of a random cycle leaves none in place.
        order = torch.empty_like(shuffled)
        order.scatter_(-1, shuffled, shuffled.roll(1, -1))
        orders[name] = order
    return orders


def random_value(graph: SymmetryGraph, gauge: Gauge, generator: torch.Generator) -> Tensor:
    """What a random element does to one gauge: well conditioned, in float64."""
    families = [graph.spaces[outer].size for outer in gauge.within]

    def uniform(*sizes: int) -> Tensor:
        return torch.rand(*families, *sizes, generator=generator, dtype=torch.float64)

    if gauge.kind == "positive":
        return torch.exp2(2 * uniform(gauge.size) - 1)
    if gauge.kind == "sign":
        sign = torch.where(uniform(gauge.size) < 0.5, -1.0, 1.0).double()
        sign[..., 0] *= torch.where((sign > 0).all(-1), -1.0, 1.0)  # all positive would say nothing
        return sign
    if gauge.kind == "planes":
        angle = 2 * torch.pi * uniform(gauge.turned // 2)
        return torch.polar(torch.exp2(2 * uniform(gauge.turned // 2) - 1), angle)
    size = gauge.size - 1 if gauge.kind == "centred" else gauge.size

    def rotation() -> Tensor:
        return torch.linalg.qr(uniform(size, size) - 0.5)[0]

    if gauge.kind == "invertible":
        return rotation() @ (torch.exp2(2 * uniform(size) - 1)[..., None] * rotation())
    if gauge.kind == "orthogonal":
        return rotation()
    return around_ones(rotation())


def around_ones(rotation: Tensor) -> Tensor:
    """The orthogonal map that fixes the vector of ones and turns what is orthogonal to it.

    Args:
        rotation: (*, n - 1, n - 1), in the basis of `off_ones(n)`.
    """
    size = rotation.shape[-1] + 1
    basis = off_ones(size).to(rotation)
    return basis @ rotation @ basis.mT + torch.full((size, size), 1 / size, dtype=torch.float64).to(rotation)


def off_ones(size: int) -> Tensor:
    """An orthonormal basis, (n, n - 1), of the vectors that sum to zero."""
    vector = torch.full((size,), size**-0.5, dtype=torch.float64)
    vector[0] += 1.0  # the reflection that takes the first axis to the vector of ones
    reflection = torch.eye(size, dtype=torch.float64) - 2 * torch.outer(vector, vector) / vector.dot(vector)
    return reflection[:, 1:]


def _act(tensor: Tensor, graph: SymmetryGraph, gauge: Gauge, slot: Slot, value: Tensor) -> None:
    """Apply one gauge's value to one place of a weight, in place."""
    axes = graph.layout[slot.key] if gauge.axes is None else gauge.axes[slot.key]
    views = [
        view
        for occurrence, view in exposed(tensor, axes, slot.axis, gauge.space, gauge.within)
        if occurrence == slot.occurrence
    ]
    outer = len(gauge.within)
    for view in views:
        if gauge.kind in DENSE:
            factor = value if slot.power > 0 or gauge.kind != "invertible" else _inverse(value).mT
            flat = view.flatten(outer + 1) if view.ndim > outer + 1 else view[..., None]
            flat = flat.to(
                torch.promote_types(view.dtype, torch.float32)
            )  # half precision would add up its rounding
            view.copy_((factor.to(flat) @ flat).view(view.shape))
        elif gauge.kind == "planes":
            turn(view.movedim(outer, -1), gauge, value if slot.power > 0 else 1 / value.conj())
        else:
            power = value if slot.power == 1 else value ** float(slot.power)
            factor = power.to(view.device, view.dtype)[(..., *[None] * (view.ndim - outer - 1))]
            if slot.offset:
                view.add_(slot.offset).mul_(factor).sub_(slot.offset)
            else:
                view.mul_(factor)


def _inverse(matrices: Tensor) -> Tensor:
    """The inverse, computed no narrower than float32."""
    return torch.linalg.inv(matrices.to(torch.promote_types(matrices.dtype, torch.float32))).to(matrices)


def _followed(
    value: Tensor, gauge: Gauge, orders: Mapping[str, Tensor], spaces: Mapping[str, Space]
) -> Tensor:
    """A gauge's value where the units stand after another order."""
    old, sizes = _outer_index(orders, gauge.within, spaces)
    value = value[old] if old else value
    if gauge.kind == "planes" or gauge.space not in orders:
        return value
    order = _full(orders, gauge.space, gauge.size, sizes).to(value.device)
    if gauge.kind not in DENSE:
        return value.gather(-1, order)
    rows = value.gather(-2, order[..., :, None].expand(value.shape))
    return rows.gather(-1, order[..., None, :].expand(value.shape))


def _outer_index(
    orders: Mapping[str, Tensor], within: Iterable[str], spaces: Mapping[str, Space]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Old outer position of every new outer position, and the outer sizes."""
    names = tuple(within)
    sizes = tuple(spaces[outer].size for outer in names)
    grid = torch.meshgrid(*(torch.arange(n) for n in sizes), indexing="ij") if sizes else ()
    new = dict(zip(names, grid, strict=True))
    old = []
    for outer in names:
        order = orders.get(outer)
        enclosing = tuple(new[name] for name in spaces[outer].within if name in new)
        old.append(new[outer] if order is None else order[(*enclosing, new[outer])])
    return tuple(old), sizes


def _full(orders: Mapping[str, Tensor], name: str, size: int, sizes: tuple[int, ...]) -> Tensor:
    order = orders.get(name)
    return torch.arange(size).expand(*sizes, -1) if order is None else order


def compose_orders(
    first: Mapping[str, Tensor], then: Mapping[str, Tensor], spaces: Mapping[str, Space]
) -> dict[str, Tensor]:
    """The orders that put units where `first` and then `then` put them."""
    result: dict[str, Tensor] = {}
    for name, space in spaces.items():
        if name not in first and name not in then:
            # An order per head moves along when the heads do.
            continue
        old, sizes = _outer_index(then, space.within, spaces)
        ours = _full(first, name, space.size, sizes)
        theirs = _full(then, name, space.size, sizes)
        result[name] = (ours[old] if old else ours).gather(-1, theirs)
    return result


def invert_orders(orders: Mapping[str, Tensor], spaces: Mapping[str, Space]) -> dict[str, Tensor]:
    """The orders that put units back."""
    result: dict[str, Tensor] = {}
    # Outer spaces first: the inverse of an inner order is addressed through them.
    for name in sorted(orders, key=lambda n: len(spaces[n].within)):
        old, _ = _outer_index(result, spaces[name].within, spaces)
        order = orders[name][old] if old else orders[name]
        result[name] = order.argsort(-1)
    return result


def misfits(element: Element, graph: SymmetryGraph) -> list[str]:
    """Why an element is none of the graph's group: a line for each space and gauge that does not fit."""
    problems: list[str] = []
    for name, order in element.orders.items():
        space = graph.spaces.get(name)
        if space is None:
            problems.append(f"{name}: no such space")
            continue
        shape = (*(graph.spaces[outer].size for outer in space.within), space.size)
        if order.shape != shape:
            problems.append(f"{name}: the permutation has shape {tuple(order.shape)}, needs {shape}")
        elif not torch.equal(order.sort(-1).values, torch.arange(space.size).expand(shape).to(order)):
            problems.append(f"{name}: the index does not name each unit once")
    for name, value in element.values.items():
        gauge = graph.gauges.get(name)
        if gauge is None:
            problems.append(f"{name}: no such freedom; the graph has {', '.join(graph.gauges) or 'none'}")
        elif problem := _objection(value, gauge, graph):
            problems.append(f"{name}: {problem}")
    return problems


def check(element: Element, graph: SymmetryGraph) -> None:
    """Raise InputError where an element is none of the graph's group."""
    if problems := misfits(element, graph):
        raise InputError("the maps do not fit the model", problems)


def _objection(value: Tensor, gauge: Gauge, graph: SymmetryGraph) -> str | None:
    """Why a value is none of a gauge's, if it is not."""
    families = tuple(graph.spaces[outer].size for outer in gauge.within)
    units = gauge.turned // 2 if gauge.kind == "planes" else gauge.size
    shape = (*families, units, units) if gauge.kind in DENSE else (*families, units)
    if value.shape != shape:
        return f"has shape {tuple(value.shape)}, needs {shape}"
    if not bool(torch.isfinite(torch.view_as_real(value) if value.is_complex() else value).all()):
        return "is not finite"
    wide = value.to(torch.complex128 if value.is_complex() else torch.float64)
    if gauge.kind == "positive":
        return None if bool((wide > 0).all()) else "has a scale that is not positive"
    if gauge.kind == "sign":
        return None if bool((wide.abs() == 1).all()) else "has a sign that is neither 1 nor -1"
    if gauge.kind == "planes":
        return None if bool((wide.abs() > 0).all()) else "has a scale of zero"
    if gauge.kind == "invertible":
        return None if bool(torch.isfinite(torch.linalg.slogdet(wide)[1]).all()) else "has no inverse"
    eye = torch.eye(units, dtype=torch.float64, device=value.device)
    loose = 1e-3 if value.dtype in (torch.float16, torch.bfloat16) else 1e-4
    if not torch.allclose(wide @ wide.mT, eye.expand_as(wide), atol=loose):
        return "is not orthogonal"
    ones = wide.sum(-1)
    if gauge.kind == "centred" and not torch.allclose(ones, torch.ones_like(ones), atol=loose):
        return "does not fix the vector of ones"
    return None
