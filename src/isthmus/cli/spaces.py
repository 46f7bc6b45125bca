"""The spaces of a graph as a table for people: repeated layers in one row, what is fixed by reason."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isthmus.symmetry import Space, SymmetryGraph

#: Members of a space that a row names.
NAMED = 2

#: Keys that a reason names.
EXAMPLES = 3


def summary(graph: SymmetryGraph) -> str:
    """How many parameters and spaces, and how much moves."""
    program = graph.program
    count = sum(
        math.prod(shape)
        for key, shape in program.shapes.items()
        if key not in program.buffers and key not in program.tied
    )
    return (
        f"{_count(count)} parameters, {len(graph.spaces)} spaces, {graph.coverage:.1%} of the parameters move"
    )


def table(graph: SymmetryGraph, every: bool = False) -> list[str]:
    """The spaces, one row each; those of repeated layers that differ in a number only share one."""
    groups: dict[object, list[Space]] = {}
    for space in graph.spaces.values():
        same = (
            space.name
            if every
            else (
                _pattern(space.name),
                space.size,
                graph.groups[space.name],
                tuple(map(_pattern, space.within)),
                tuple(sorted((_pattern(m.key), m.axis, m.role) for m in space.members)),
            )
        )
        groups.setdefault(same, []).append(space)
    rows = [("space", "size", "group", "written by", "read by")]
    for found in groups.values():
        space = found[0]
        name = folded(s.name for s in found)[0]
        outer = [_beside(o, name) for o in folded(o for s in found for o in s.within)]
        rows.append(
            (
                name if len(found) == 1 else f"{name}  x{len(found)}",
                str(space.size),
                graph.groups[space.name] + (f" within {', '.join(outer)}" if outer else ""),
                _members(found, ("writes", "statistic"), name),
                _members(found, ("reads",), name),
            )
        )
    if len(rows) == 1:
        return ["no space: nothing can be reordered"]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column == 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def fixed(graph: SymmetryGraph) -> list[str]:
    """What stays, by the operation that asks for it: how many axes, and some of them."""
    reasons: dict[str, dict[str, None]] = {}
    for item in graph.fixed:
        # A reason is a place and its operation; the operation is what they have in common.
        reasons.setdefault(item.reason.rpartition(":")[2], {})[f"{item.key}[{item.axis}]"] = None
    width = max(map(len, reasons), default=0)
    lines = []
    for reason, places in reasons.items():
        names = folded(places)
        more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
        lines.append(f"  {reason:<{width}}  {_axes(len(places)):<9}  {', '.join(names[:EXAMPLES])}{more}")
    return lines


def folded(names: Iterable[str]) -> list[str]:
    """Names that differ in one number, written as one: layers.{0..11}.weight."""
    patterns: dict[str, list[tuple[int, ...]]] = {}
    examples: dict[str, str] = {}
    for name in dict.fromkeys(names):
        pattern = _pattern(name)
        patterns.setdefault(pattern, []).append(tuple(int(n) for n in _NUMBER.findall(name)))
        examples.setdefault(pattern, name)
    return [
        examples[pattern] if len(numbers) == 1 else _ranges(pattern, numbers)
        for pattern, numbers in patterns.items()
    ]


# What parts modules: not the dots of a range.
_DOT = re.compile(r"\.(?![^{]*\})")

# A number of its own, as layers have: not the 2 of conv2 nor the axis in brackets.
_NUMBER = re.compile(r"(?:(?<=\.)|(?<=^)|(?<=_))\d+(?=[./~\[]|$)")


def _pattern(name: str) -> str:
    return _NUMBER.sub("*", name)


def _ranges(pattern: str, numbers: Sequence[tuple[int, ...]]) -> str:
    columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    text = pattern
    for column in columns:
        if len(column) == 1:
            shown = str(column[0])
        elif column == list(range(column[0], column[-1] + 1)):
            shown = f"{{{column[0]}..{column[-1]}}}"
        else:
            few = [str(n) for n in column]
            shown = f"{{{','.join(few if len(few) < 6 else [*few[:4], '..', few[-1]])}}}"
        text = text.replace("*", shown, 1)
    return text


def _beside(name: str, other: str) -> str:
    """A name as seen from another: what stands in the same module, a few deep, goes without the module's name."""
    path = other.partition("/")[0]
    module = path[: max((dot.start() for dot in _DOT.finditer(path)), default=0)]
    return name[len(module) :] if module.count(".") and name.startswith(f"{module}.") else name


def _members(spaces: Sequence[Space], roles: tuple[str, ...], beside: str) -> str:
    names = folded(f"{m.key}[{m.axis}]" for space in spaces for m in space.members if m.role in roles)
    if not names:
        return "-"
    shown = ", ".join(_beside(name, beside) for name in names[:NAMED])
    return shown + (f" +{len(names) - NAMED}" if len(names) > NAMED else "")


def _axes(count: int) -> str:
    return f"{count} axis" if count == 1 else f"{count} axes"


def _count(parameters: int) -> str:
    """A number of parameters as people say it."""
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return str(parameters)
