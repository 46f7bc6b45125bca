"""The symmetry of a model: its spaces, who writes and reads them, and what is fixed and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.program import Program
from isthmus.symmetry.axes import Axis, spaces_of, without
from isthmus.symmetry.computed import computed
from isthmus.symmetry.flow import Layout
from isthmus.symmetry.gauges import Gauge, Opening, answering, gauges_of, group

if TYPE_CHECKING:
    from isthmus.program import Inputs
    from isthmus.symmetry.elements import Element
    from isthmus.symmetry.verify import Verification


@dataclass(frozen=True)
class Member:
    """One axis of one weight that carries a space.

    Attributes:
        key: the weight's key in the state dict.
        axis: which of its dimensions.
        role: "writes" where the weight makes the space's units, "reads" where it contracts them,
            "statistic" for the running statistics of a norm.
    """

    key: str
    axis: int
    role: str


@dataclass(frozen=True)
class Space:
    """An index set that may be reordered without changing the function.

    Attributes:
        name: taken from the first weight that writes it.
        size: number of units.
        within: outer spaces whose every index has an order of its own here (heads, groups).
        marks: operations that act on it elementwise.
        members: the weight axes that carry it.
    """

    name: str
    size: int
    within: tuple[str, ...] = ()
    marks: frozenset[str] = frozenset()
    members: tuple[Member, ...] = ()

    def __str__(self) -> str:
        inside = f" within {', '.join(self.within)}" if self.within else ""
        return f"{self.name}: {self.size}{inside}"


@dataclass(frozen=True)
class Fixed:
    """A part of a weight axis that may not be reordered, and why."""

    key: str
    axis: int
    size: int
    reason: str


@dataclass(frozen=True)
class SymmetryGraph:
    """What may be moved in a model without changing its function.

    Attributes:
        program: the program it was read from.
        spaces: name -> space, outer ones before what is within them.
        layout: weight key -> its axes.
        values: value name -> its axes.
        fixed: the weight axes (or parts of them) that stay.
        unknown: operations without a rule -> where they were met.
        ones: weights that are known to be one everywhere: scales of norms folded into the weights behind.
        refused: gauges that failed verification -> why.
    """

    program: Program
    spaces: dict[str, Space]
    layout: dict[str, tuple[Axis, ...]]
    values: dict[str, tuple[Axis, ...]]
    fixed: tuple[Fixed, ...] = ()
    unknown: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ones: frozenset[str] = frozenset()
    refused: dict[str, str] = field(default_factory=dict)

    @cached_property
    def _flows(self) -> Layout:
        return Layout(self.program, self.layout, self.values, self.ones)

    def answering(self, gauge: str) -> frozenset[str]:
        """The values of the program that a sign negates, or that a scale scales.

        Args:
            gauge: the name of a "sign" or a "positive" gauge.
        """
        return answering(self._flows, self.gauges[gauge])

    @cached_property
    def _freedoms(self) -> tuple[dict[str, Gauge], dict[str, Opening]]:
        layout = self._flows
        gauges: dict[str, Gauge] = {}
        openings: dict[str, Opening] = {}
        outer = {name for space in self.spaces.values() for name in space.within}
        for name, space in self.spaces.items():
            found, opening = gauges_of(layout, name, space.size, space.within, name not in outer)
            gauges |= {gauge.name: gauge for gauge in found}
            if opening is not None:
                openings[name] = opening
        return gauges | self._planes(), openings

    def _planes(self) -> dict[str, Gauge]:
        """The gauges of rotary heads, which are tried on numbers: on the meta device there are none."""
        from isthmus.symmetry.planes import planes
        from isthmus.symmetry.verify import batch_for

        if any(value.is_meta for value in self.program.constants.values()):
            return {}
        program = self.program.to("cpu", torch.float64)
        found = planes(program, self.layout, self.values, batch_for(program, None, 0))
        return {gauge.name: gauge for gauge in found}

    @cached_property
    def gauges(self) -> dict[str, Gauge]:
        """Freedoms beyond the order of units: scales, signs, rotations, changes of basis."""
        return {name: gauge for name, gauge in self._freedoms[0].items() if name not in self.refused}

    @cached_property
    def openings(self) -> dict[str, Opening]:
        """Spaces that could turn if the scales of the norms on them were ones: see `fold_norms`."""
        return self._freedoms[1]

    @cached_property
    def groups(self) -> dict[str, str]:
        """Space -> the name of its group: the transformations that leave the function alone."""
        found: dict[str, list[Gauge]] = {name: [] for name in self.spaces}
        for gauge in self.gauges.values():
            if gauge.space in found:
                found[gauge.space].append(gauge)
        return {name: group(gauges) for name, gauges in found.items()}

    @cached_property
    def computed(self) -> dict[str, str]:
        """Spaces whose units may not be added up -> the operation that computes a weight from parameters there.

        A weight norm divides by the length of a row, which for a sum of rows is another.
        """
        return computed(self._flows, self.spaces)

    @cached_property
    def unread(self) -> tuple[str, ...]:
        """Parameters that the program does not read (heads of training alone): they are never moved."""
        program = self.program
        return tuple(
            key
            for key in program.shapes
            if key not in self.layout and key not in program.buffers and key not in program.tied
        )

    @cached_property
    def coverage(self) -> float:
        """Share of the parameters, among those that the program reads, with an axis on which something moves."""
        counts = {
            key: _count(self.program.shapes[key]) for key in self.layout if key not in self.program.buffers
        }
        moved = sum(n for key, n in counts.items() if any(spaces_of(axis) for axis in self.layout[key]))
        return moved / max(sum(counts.values()), 1)

    def verify(
        self,
        model: nn.Module | Mapping[str, Tensor] | None = None,
        example: Inputs | None = None,
        *,
        seed: int = 0,
        each: bool | None = None,
    ) -> Verification:
        """Draw random elements, apply them to a redrawn copy of the model, compare the outputs.

        The check runs in float64 on a copy whose every parameter is redrawn at a scale at which
        each path contributes. The model's own weights are a second check.

        Args:
            model: the model, or its state dict; None to check on redrawn weights only.
            example: inputs as for `trace`; None for random ones of the traced shapes.
            seed: of the weights and elements drawn.
            each: also move each space alone (one forward pass per space); None decides by the
                size of the model. Together is enough to find a fault, and a fault is traced to
                its space by halving.

        Returns:
            The largest relative output error, and the spaces that the output does not see.
        """
        from isthmus.symmetry.verify import verify

        return verify(self, model, example, seed=seed, each=each)

    def random_element(self, seed: int = 0) -> Element:
        """An element of the full group in general position: applied to a model, it changes no output.

        Args:
            seed: of the random numbers.
        """
        from isthmus.symmetry.elements import random_element

        return random_element(self, torch.Generator().manual_seed(seed))

    def fold_norms(self, weights: Mapping[str, Tensor] | nn.Module) -> dict[str, Tensor]:
        """Weights of the same function in which the weights behind each norm have taken over its scale.

        They load in the model's own class, and `folded` is their graph: there the spaces that only such norms and
        linear operations touch, as the residual stream of a pre-norm transformer, may be rotated.

        Args:
            weights: a model or its state dict.

        Returns:
            The folded state dict, in the dtypes it came in; the arithmetic is float64.

        Raises:
            InputError: no norm can be folded; every reason is listed.

        Source: Ashkboos et al., SliceGPT, arXiv:2401.15024, section 3.
        """
        from isthmus.symmetry.folding import fold_norms

        return fold_norms(self, weights.state_dict() if isinstance(weights, nn.Module) else weights)

    @cached_property
    def folded(self) -> SymmetryGraph:
        """The graph of weights that `fold_norms` has returned: richer groups where norms were folded."""
        from isthmus.symmetry.folding import folded

        return folded(self)

    def save(self, path: str | Path, verification: Verification | None = None) -> Path:
        """Write the graph as JSON, without its program; see `load`.

        Args:
            path: of the file.
            verification: how the graph was checked, kept as a sentence.
        """
        from isthmus.symmetry.saved import save

        return save(self, path, verification)

    @staticmethod
    def load(path: str | Path) -> SymmetryGraph:
        """Read a graph that `save` wrote: weights can be moved and matched by it without the model's code.

        Raises:
            InputError: the file cannot be read, is of another version, or contradicts itself.
        """
        from isthmus.symmetry.saved import load

        return load(path)

    def require_folded(self, weights: Mapping[str, Tensor]) -> None:
        """Raise InputError where weights are not folded and the graph is of folded ones."""
        found = [key for key in sorted(self.ones) if key in weights and not bool((weights[key] == 1).all())]
        if found:
            raise InputError(
                "these weights have norms that are not folded, and the graph is of folded weights",
                found[:8],
                hint="pass graph.fold_norms(weights)",
            )

    def frozen(self, reasons: Mapping[str, str]) -> SymmetryGraph:
        """The same graph with some spaces fixed: always right, only less.

        Args:
            reasons: space -> why it may not move.

        Raises:
            InputError: there is no such space.
        """
        if missing := [name for name in reasons if name not in self.spaces]:
            raise InputError("the graph has no such space", missing, hint="print(graph) lists them")
        kept = {
            # What is within a fixed space has one order everywhere in it.
            name: replace(space, within=tuple(outer for outer in space.within if outer not in reasons))
            for name, space in self.spaces.items()
            if name not in reasons
        }
        fixed = [
            Fixed(member.key, member.axis, self.spaces[name].size, why)
            for name, why in reasons.items()
            for member in self.spaces[name].members
        ]
        return replace(
            self,
            spaces=kept,
            layout={key: tuple(without(a, reasons) for a in axes) for key, axes in self.layout.items()},
            values={name: tuple(without(a, reasons) for a in axes) for name, axes in self.values.items()},
            fixed=(*self.fixed, *fixed),
        )

    def __str__(self) -> str:
        width = max((len(name) for name in self.spaces), default=5)
        lines = [
            f"{len(self.spaces)} spaces, {self.coverage:.1%} of the parameters move",
            *(
                f"  {space.name:<{width}}  {space.size:>6}  {self.groups[space.name]}"
                + (f" within {', '.join(space.within)}" if space.within else "")
                + "\n"
                + _members(space, width)
                for space in self.spaces.values()
            ),
        ]
        if self.fixed:
            # A reason is a place and its operation; for a summary the operation is enough.
            reasons = Counter(fixed.reason.rpartition(":")[2] for fixed in self.fixed)
            lines.append(
                "fixed: " + ", ".join(f"{reason} ({count} axes)" for reason, count in reasons.items())
            )
        if self.unread:
            lines.append(f"not read by the program, and never moved: {', '.join(self.unread)}")
        if self.unknown:
            lines.append("operations without a rule (what they touch is fixed):")
            lines += [f"  {name} at {', '.join(places[:3])}" for name, places in self.unknown.items()]
            lines.append(
                "hint: a rule is a few lines, registered by isthmus.rule; see docs/guides/add-a-rule.md"
            )
        return "\n".join(lines)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _members(space: Space, width: int) -> str:
    indent = " " * (width + 4)
    lines = []
    for role in ("writes", "reads", "statistic"):
        found = [f"{m.key}[{m.axis}]" for m in space.members if m.role == role]
        if found:
            shown = ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
            lines.append(f"{indent}{role}: {shown}")
    return "\n".join(lines)
