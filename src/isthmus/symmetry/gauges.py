"""Freedoms beyond the order of units: scales, signs, rotations and changes of basis, read off the program.

A *gauge* is one such freedom of one space: what its elements are, and with which power each weight that
carries the space takes them. The group of a space is the permutations together with its gauges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from typing import Literal

from torch import Tensor

from isthmus.symmetry import flow_rules as flow_rules  # registers how operations pass scales and signs
from isthmus.symmetry.axes import Axis
from isthmus.symmetry.flow import BrokenError, Flow, Layout, Place

#: What an element of a gauge is, per unit or per outer unit: a positive number; +1 or -1; an orthogonal
#: matrix; one that fixes the vector of ones; an invertible matrix; a complex number per frequency plane.
Kind = Literal["positive", "sign", "orthogonal", "centred", "invertible", "planes"]

#: Kinds whose elements mix the units of a space.
DENSE = ("orthogonal", "centred", "invertible")


@dataclass(frozen=True)
class Slot:
    """One place of a weight that takes a gauge.

    Attributes:
        key: the weight.
        axis: which of its axes.
        occurrence: which of the space's places on that axis, left to right.
        power: of the element it takes; of a matrix the inverse transposed where it is negative.
        offset: what a norm adds to this variance before it takes the root: the sum is what scales.
    """

    key: str
    axis: int
    occurrence: int
    power: Fraction
    offset: float = 0.0


@dataclass(frozen=True)
class Gauge:
    """A freedom of one space beyond the order of its units.

    Attributes:
        name: the space's, a colon and the kind; with a number where there are several.
        space: the space; for "planes" a name of its own for the axis inside each head.
        kind: what an element is.
        size: number of units (of planes: two per plane).
        within: outer spaces whose every unit has an element of its own.
        slots: the weights that take it.
        axes: for "planes", the axes of these weights with the space named in them.
        turned: for "planes", how many of the leading units are turned; the others are free of position.
        pairing: for "planes", whether unit i turns with i + turned / 2 ("halves") or 2i with 2i + 1 ("neighbours").
    """

    name: str
    space: str
    kind: Kind
    size: int
    within: tuple[str, ...]
    slots: tuple[Slot, ...]
    axes: Mapping[str, tuple[Axis, ...]] | None = None
    turned: int = 0
    pairing: Literal["halves", "neighbours"] = "halves"


@dataclass(frozen=True)
class Opening:
    """What must be ones for a space to turn: scales of norms that the weights behind them could take over.

    Attributes:
        space: the space.
        kind: the group that opens.
        scales: weights that multiply the space elementwise -> the operations where they do.
        slots: the weights that take the rotation.
    """

    space: str
    kind: Kind
    scales: Mapping[str, tuple[str, ...]]
    slots: tuple[Slot, ...]


def gauges_of(
    layout: Layout, space: str, size: int, within: Sequence[str], mixes: bool = True
) -> tuple[list[Gauge], Opening | None]:
    """The gauges of one space, and what stands in the way of a richer one.

    Args:
        layout: of the program.
        space: its name.
        size: number of units.
        within: the spaces it is within.
        mixes: whether its units may be mixed. Units that hold spaces of their own, each in an order of its own, may
            not: such elements would not compose.
    """
    if layout.hidden & {space, *within}:
        return [], None
    found, opening = _dense(layout, space) if mixes else (None, None)
    if found is not None and opening is None:
        kind, slots = found
        return [Gauge(f"{space}:{kind}", space, kind, size, tuple(within), slots)], None
    gauges: list[Gauge] = []
    for kind, mode in (("positive", "scale"), ("sign", "sign")):
        flow = Flow(layout, space, mode)  # type: ignore[arg-type]
        for number, slots in enumerate(_solutions(flow)):
            label = f"{space}:{kind}" + (f"~{number + 1}" if number else "")
            gauges.append(Gauge(label, space, kind, size, tuple(within), slots))  # type: ignore[arg-type]
    return gauges, opening


def answering(layout: Layout, gauge: Gauge) -> frozenset[str]:
    """The values that are negated along with a sign, or scaled along with a scale.

    A sign that a batch norm takes back right behind the weights is seen by no activation, for one.
    """
    flow = Flow(layout, gauge.space, "sign" if gauge.kind == "sign" else "scale")
    chosen = dict(zip(_solutions(flow), _free(flow), strict=True)).get(gauge.slots)
    return frozenset(
        name for name, powers in flow.powers() if any(chosen in flow.system.value(power) for power in powers)
    )


def group(gauges: Sequence[Gauge]) -> str:
    """The name of the group of a space that has these gauges."""
    kinds = {gauge.kind for gauge in gauges}
    for kind, name in (
        ("invertible", "invertible"),
        ("orthogonal", "orthogonal"),
        ("centred", "orthogonal fixing ones"),
    ):
        if kind in kinds:
            return name
    signed = "signed permutation" if "sign" in kinds else "permutation"
    return f"{signed} x positive" if "positive" in kinds else signed


def _dense(layout: Layout, space: str) -> tuple[tuple[Kind, tuple[Slot, ...]] | None, Opening | None]:
    try:
        flow = Flow(layout, space, "basis")
    except BrokenError:
        return None, None
    if not flow.places:
        return None, None
    solutions = list(_solutions(flow))
    every = len(solutions) == 1 and len(solutions[0]) == len(flow.places)
    if flow.norms or not (every and all(abs(slot.power) == 1 for slot in solutions[0])):
        kind: Kind = "centred" if "centred" in flow.norms else "orthogonal"
        slots = tuple(Slot(p.key, p.axis, p.occurrence, Fraction(1)) for p in flow.places)
        # A scale takes no rotation: it has to be ones.
        slots = tuple(slot for slot in slots if slot.key not in flow.scales)
    else:
        kind, slots = "invertible", solutions[0]
    if flow.scales:
        scales = {key: tuple(nodes) for key, nodes in flow.scales.items()}
        return (kind, slots), Opening(space, kind, scales, slots)
    return (kind, slots), None


def _solutions(flow: Flow) -> list[tuple[Slot, ...]]:
    """A basis of the powers that solve a flow's equations, in whole numbers where they can be."""
    values = {place: flow.system.value(unknown) for place, unknown in flow.places.items()}
    found: list[tuple[Slot, ...]] = []
    for unknown in _free(flow):
        powers = {place: value[unknown] for place, value in values.items() if unknown in value}
        scale = Fraction(lcm(*(p.denominator for p in powers.values())))
        scale /= gcd(*(int(p * scale) for p in powers.values()))
        first = next(iter(powers.values()))
        scale = -scale if first < 0 else scale
        found.append(tuple(_slot(flow, place, power * scale) for place, power in powers.items()))
    return found


def _free(flow: Flow) -> list[int]:
    """The unknowns that the powers of weights are multiples of."""
    return sorted({n for unknown in flow.places.values() for n in flow.system.value(unknown)})


def _slot(flow: Flow, place: Place, power: Fraction) -> Slot:
    return Slot(place.key, place.axis, place.occurrence, power, flow.variances.get(place.key, 0.0))


def turn(view: Tensor, gauge: Gauge, value: Tensor) -> None:
    """Multiply each plane by a complex number, in place; `view` has the units last."""
    half = gauge.turned // 2
    if gauge.pairing == "halves":
        real, imaginary = view[..., :half], view[..., half : gauge.turned]
    else:
        real, imaginary = view[..., 0 : gauge.turned : 2], view[..., 1 : gauge.turned : 2]
    shape = [*value.shape[:-1], *[1] * (view.ndim - value.ndim), half]
    a, b = value.real.to(view).view(shape), value.imag.to(view).view(shape)
    turned = a * real - b * imaginary, b * real + a * imaginary
    real.copy_(turned[0])
    imaginary.copy_(turned[1])
