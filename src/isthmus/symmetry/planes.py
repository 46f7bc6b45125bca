"""Rotary heads: what a rotation by position leaves free inside a head.

A rotary embedding turns pairs of units of each query and key by an angle that grows with the position. Every pair
spans a plane with a frequency of its own, so units may not change place; but a plane of the queries may be
multiplied by any complex number z, that of the keys by 1 / conj(z), and every product of a query and a key stays.

Which units make a pair is a convention of the code (unit i with i + d / 2, or 2i with 2i + 1; all of the head or
a part), so it is not read off but tried: on random queries and keys, through the operations between the linear
maps that write them and the place where they meet, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import cast

import torch
from torch import Tensor, fx

from isthmus.program import Batch, Program
from isthmus.symmetry.axes import Axis, Blocks, Concat, Leaf, leaves
from isthmus.symmetry.expose import exposed
from isthmus.symmetry.gauges import Gauge, Slot, turn
from isthmus.symmetry.operations import operation

Layouts = Mapping[str, tuple[Axis, ...]]

#: Largest relative change of a product of queries and keys that is rounding.
BOUND = 1e-9


@dataclass(frozen=True)
class _Meeting:
    """Where queries and keys meet, and the linear operations that write them."""

    node: fx.Node
    query: fx.Node
    key: fx.Node
    writers: tuple[fx.Node, fx.Node]
    between: tuple[fx.Node, ...]


def planes(program: Program, weights: Layouts, values: Layouts, batch: Batch) -> Iterator[Gauge]:
    """The gauges of rotary heads.

    Args:
        program: in float64, on the processor.
        weights: key -> axes.
        values: value -> axes.
        batch: inputs, for the positions.
    """
    known: set[str] = set()
    for meeting in _meetings(program):
        for size in _sizes(program, meeting):
            gauge = _shape(program, weights, values, meeting, size)
            if gauge is None or gauge.name in known:
                continue
            found = _tried(program, values, meeting, gauge, batch)
            if found is not None:
                known.add(found.name)
                yield found
                break


def _sizes(program: Program, meeting: _Meeting) -> list[int]:
    """How many units of a head may be turned: all of them, or a part that is cut off on the way."""
    whole = program.size(meeting.query.name)[-1]
    sizes = [program.size(node.name) for node in meeting.between if program.is_tensor(node.name)]
    parts = {size[-1] for size in sizes if size}
    return [whole, *sorted((n for n in parts if n < whole and n % 2 == 0), reverse=True)]


def _meetings(program: Program) -> Iterator[_Meeting]:
    for node in program.graph.nodes:
        name = operation(node)
        if name not in ("scaled_dot_product_attention", "matmul", "bmm") or program.applies_weight(node):
            continue
        query, key = node.args[:2]
        assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
        (first, one), (second, two) = _behind(program, query), _behind(program, key)
        if len(first) == len(second) == 1:
            between = tuple(dict.fromkeys([*one, *two]))
            yield _Meeting(node, query, key, (first.pop(), second.pop()), between)


def _behind(program: Program, node: fx.Node) -> tuple[set[fx.Node], list[fx.Node]]:
    """The linear operations that a value is made by, and what lies between."""
    writers: set[fx.Node] = set()
    between: list[fx.Node] = []
    queue, seen = [node], {node}
    while queue:
        value = queue.pop()
        if value.name not in program.learned:
            continue
        if program.applies_weight(value):
            writers.add(value)
            continue
        between.append(value)
        queue += [a for a in value.all_input_nodes if a not in seen]
        seen.update(value.all_input_nodes)
    return writers, between


def _shape(program: Program, weights: Layouts, values: Layouts, meeting: _Meeting, size: int) -> Gauge | None:
    """The gauge that queries and keys would have, its pairing still open; None where they stand elsewhere."""
    writers = dict.fromkeys(meeting.writers)
    name, axes, slots = "", {}, []
    outer: list[tuple[str, ...]] = []
    for writer in writers:
        key = program.weights.get(program.linear_weight(writer) or "")
        wanted = [0, 1] if len(writers) == 1 else [0]
        if key is None or key not in weights or len(_runs(values[writer.name][-1], size)) != len(wanted):
            return None
        name = f"{key.rpartition('.')[0] or key}/planes"  # the keys' own, which come last
        powers = [1, -1] if len(writers) == 1 else [1 if writer is meeting.writers[0] else -1]
        for weight in [key, *_bias(program, writer)]:
            dims = [d for d, axis in enumerate(weights[weight]) if len(_runs(axis, size)) == len(wanted)]
            if not dims:
                return None
            dim = dims[-1] if operation(writer) == "addmm" else dims[0]
            axes[weight] = (weights[weight], dim)
            slots += [Slot(weight, dim, n, Fraction(p)) for n, p in zip(wanted, powers, strict=True)]
            outer += _runs(weights[weight][dim], size)
    within = tuple(space for space in outer[0] if all(space in other for other in outer))
    named = {
        weight: tuple(_named(axis, size, name) if d == dim else axis for d, axis in enumerate(whole))
        for weight, (whole, dim) in axes.items()
    }
    return Gauge(f"{name}:planes", name, "planes", size, within, tuple(slots), named)


def _tried(program: Program, values: Layouts, meeting: _Meeting, gauge: Gauge, batch: Batch) -> Gauge | None:
    """The gauge with the pairing that leaves products of queries and keys alone, if there is one."""
    weights = _supplied(program, meeting)
    if weights is None:
        return None
    writers = tuple(dict.fromkeys(node.name for node in meeting.writers))
    run = program.compile([meeting.query.name, meeting.key.name], given=writers)
    generator = torch.Generator().manual_seed(0)
    given = {
        name: torch.randn(program.size(name), generator=generator, dtype=torch.float64) for name in writers
    }

    def products(queries_and_keys: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            found = cast("dict[str, Tensor]", run(weights, batch, given=queries_and_keys))
        query, key = found[meeting.query.name], found[meeting.key.name]
        if operation(meeting.node) != "scaled_dot_product_attention":
            return query @ key
        if query.shape[-3:-2] != key.shape[-3:-2]:  # grouped queries
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        return query @ key.mT

    before = products(given)
    last = [leaf for name in writers for leaf in leaves(values[name][-1])]
    sizes_of = {leaf.space: leaf.size for leaf in last}
    for turned in (n for n in _sizes(program, meeting) if n <= gauge.size and n % 2 == 0):
        for pairing in ("halves", "neighbours"):
            candidate = replace(gauge, turned=turned, pairing=pairing)
            moved = {name: value.clone() for name, value in given.items()}
            families = [sizes_of[outer] for outer in gauge.within]
            angle = torch.rand(*families, turned // 2, generator=generator, dtype=torch.float64) * 6
            z = torch.polar(angle.div(8).exp2(), angle)
            for writer in writers:
                axes = values[writer]
                named = (*axes[:-1], _named(axes[-1], gauge.size, gauge.space))
                views = exposed(moved[writer], named, len(axes) - 1, gauge.space, gauge.within)
                for occurrence, view in views:
                    queries = occurrence == 0 if len(writers) == 1 else writer == meeting.writers[0].name
                    turn(view.movedim(len(gauge.within), -1), candidate, z if queries else 1 / z.conj())
            after = products(moved)
            if (after - before).abs().max() <= BOUND * before.abs().max():
                return candidate
    return None


def _supplied(program: Program, meeting: _Meeting) -> dict[str, Tensor] | None:
    """Weights for what lies between: random ones; None where a buffer that only the model has is read there."""
    read = {a.name for node in meeting.between for a in node.all_input_nodes}
    generator = torch.Generator().manual_seed(1)
    weights: dict[str, Tensor] = {}
    for name, key in program.weights.items():
        size = program.size(name)
        if name in read and key in program.buffers:
            return None
        if name in read:
            weights[key] = torch.rand(size, generator=generator, dtype=torch.float64) + 0.5
        else:
            weights[key] = torch.zeros((), dtype=torch.float64).expand(size)
    return weights


def _bias(program: Program, node: fx.Node) -> list[str]:
    """The key of a linear operation's bias."""
    place = 0 if operation(node) == "addmm" else 2
    found = node.args[place] if len(node.args) > place else None
    return (
        [program.weights[found.name]] if isinstance(found, fx.Node) and found.name in program.weights else []
    )


def _runs(axis: Axis, size: int) -> list[tuple[str, ...]]:
    """For each fixed run of a size at the end of a product, the spaces before it there."""
    if isinstance(axis, Leaf):
        return [()] if axis.space is None and axis.size == size else []
    if isinstance(axis, Blocks):
        outer = tuple(f.space for f in axis.factors[:-1] if isinstance(f, Leaf) and f.space is not None)
        return [(*outer, *inner) for inner in _runs(axis.factors[-1], size)]
    return [run for part in axis.parts for run in _runs(part, size)] if isinstance(axis, Concat) else []


def _named(axis: Axis, size: int, name: str) -> Axis:
    """The axis with those runs named."""
    if isinstance(axis, Leaf):
        return Leaf(size, name) if axis.space is None and axis.size == size else axis
    if isinstance(axis, Blocks):
        return Blocks((*axis.factors[:-1], _named(axis.factors[-1], size, name)))
    return (
        Concat(tuple(_named(part, size, name) for part in axis.parts)) if isinstance(axis, Concat) else axis
    )
