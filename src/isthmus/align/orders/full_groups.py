"""Matching in the full group of each space: orders, signs, rotations and rotary planes together.

After `balance` no scale is left to choose, and what remains (permutations, signs, rotations) keeps lengths, so that the
summed inner product of two models' weights measures how close they are. One space after another, with the rest
held where it is, that product is linear in what is done to the space:

- an order: linear assignment;
- an order and a sign: assignment on what the better sign gives;
- a rotation: the polar factor of the evidence (Procrustes); under layer norms, of what is orthogonal to ones;
- a rotary plane: the phase of its complex evidence;
- heads: the best of these inside every pair of heads, then an assignment of heads.

Each solution is relative to where the model stands, and composed onto it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from isthmus.align.orders.assignment import agreement, best_order
from isthmus.align.orders.balance import balance
from isthmus.errors import InputError
from isthmus.progress import track
from isthmus.symmetry import (
    DENSE,
    Axis,
    Element,
    Gauge,
    Space,
    SymmetryGraph,
    around_ones,
    exposed,
    off_ones,
    spaces_of,
)

#: The smallest gain that counts, beside the lengths of the weights that move.
LEAST = 1e-9

#: What a space may be done: only another order of its units, or all that its group holds.
Groups = Literal["permutation", "full"]

#: What becomes of residual streams: matched like any space, or left as they are.
Residual = Literal["match", "identity"]


@dataclass
class Solution:
    """What to do with a space, per family of outer units, and what it gains.

    Attributes:
        order: (*families, units); None where a rotation says it all.
        values: gauge -> its value, per family.
        gain: (*families).
    """

    order: Tensor | None
    values: dict[str, Tensor]
    gain: Tensor

    def at(self, rows: Tensor, columns: Tensor) -> Solution:
        """The solutions of some pairs of families."""
        order = None if self.order is None else self.order[rows, columns]
        values = {name: value[rows, columns] for name, value in self.values.items()}
        return Solution(order, values, self.gain[rows, columns])

    def element(self, space: str) -> Element:
        return Element({} if self.order is None else {space: self.order}, self.values)


def check_choices(groups: str, residual: str) -> None:
    """Raise InputError for choices that do not exist."""
    if groups not in ("permutation", "full"):
        raise InputError(f"groups = {groups!r} is neither 'permutation' nor 'full'")
    if residual not in ("match", "identity"):
        raise InputError(f"residual = {residual!r} is neither 'match' nor 'identity'")


def allowed(graph: SymmetryGraph, held: Collection[str] = ()) -> SymmetryGraph:
    """The graph without the scales, signs and rotations of spaces that are held."""
    refused = {name: "held" for name, gauge in graph.gauges.items() if gauge.space in held}
    return replace(graph, refused={**graph.refused, **refused}) if refused else graph


def match(
    graph: SymmetryGraph,
    reference: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    *,
    held: Collection[str] = (),
    seed: int = 0,
    max_sweeps: int = 100,
    start: Element | None = None,
) -> tuple[Element, FullMatching]:
    """The element of the full group that brings a model closest to another, by their weights.

    Args:
        graph: the symmetries.
        reference: weights of the model that stays.
        model: weights of the model that moves.
        held: spaces that may not move.
        seed: of the order in which spaces are visited.
        max_sweeps: give up after this many sweeps.
        start: where to begin, an element that was found otherwise.

    Returns:
        The element that moves `model`, and the run that found it.
    """
    graph = allowed(graph, held)
    ours, theirs = (wide(graph, weights) for weights in (reference, model))
    if start is not None:
        theirs = start.apply(graph, theirs)
    ahead, back = balance(graph, ours), balance(graph, theirs)
    run = FullMatching(graph, ahead.apply(graph, ours), back.apply(graph, theirs), held=held, seed=seed)
    run.run(max_sweeps)
    whole = back.then(run.element, graph).then(ahead.inverse(graph), graph)
    return (whole if start is None else start.then(whole, graph)), run


class FullMatching:
    """One model on its way to another, in the full group.

    Args:
        graph: the symmetries.
        reference: weights of the model that stays, balanced.
        model: weights of the model that moves, balanced; moved here as the matching goes on.
        held: spaces that may not move.
        seed: of the order in which spaces are visited.
    """

    def __init__(
        self,
        graph: SymmetryGraph,
        reference: Mapping[str, Tensor],
        model: Mapping[str, Tensor],
        *,
        held: Collection[str] = (),
        seed: int = 0,
    ):
        self.graph = graph
        silent = graph.program.buffers | graph.ones  # ones look alike in every order
        voting = [key for key in graph.layout if key not in silent]
        self.ours = {key: reference[key] for key in voting}
        self.theirs = {key: model[key] for key in voting}
        self.element = Element()
        self.generator = torch.Generator().manual_seed(seed)
        self.start = self.objective = self._value(voting)
        self.sweeps = 0
        self.converged = False
        self._before = {key: self._value([key]) for key in voting}
        # While anchoring, only weights all of whose spaces are among these are listened to.
        self._trusted: set[str] | None = None
        self.spaces = [name for name in graph.spaces if name not in held]
        self.gauges: dict[str, list[Gauge]] = {name: [] for name in graph.spaces}
        self.planes: list[Gauge] = []
        for gauge in graph.gauges.values():
            if gauge.kind == "planes":
                self.planes.append(gauge)
            else:
                self.gauges[gauge.space].append(gauge)

    def run(self, max_sweeps: int, label: str = "matching in the full group") -> FullMatching:
        """Sweep until nothing changes."""
        steps: list[Space | Gauge] = [*(self.graph.spaces[name] for name in self.spaces), *self.planes]
        self._anchor()
        while not self.converged and self.sweeps < max_sweeps:
            self.sweeps += 1
            order = torch.randperm(len(steps), generator=self.generator).tolist()
            shown = track(order, f"{label}, sweep {self.sweeps}", unit="spaces")
            changed = [self._step(steps[i]) for i in shown]
            self.converged = not any(changed)
        self.objective = self._value(self.ours)
        return self

    def _anchor(self) -> None:
        """A first visit of every space, outwards from what has names (pixels, tokens, classes).

        Each space is solved by those of its weights alone whose other axes are settled: what is not, speaks for
        nothing yet, and where signs are free its noise would not even cancel.
        """
        waiting = list(self.spaces)
        settled: set[str] = set()
        while waiting:
            ready = {name: self._share(name, settled) for name in waiting}
            name = max(waiting, key=lambda n: ready[n])
            waiting.remove(name)
            space = self.graph.spaces[name]
            inside = {n for n in self.spaces if self.graph.spaces[n].within == (name,)}
            self._trusted = settled | inside | {name} if ready[name] else None
            self._step(space)
            settled |= {name} | (inside if self._trusted else set())
        self._trusted = None

    def _share(self, name: str, settled: Collection[str]) -> float:
        """The share of a space's weights, by length, whose other axes are settled."""
        known = {name, *settled, *(n for n in self.spaces if self.graph.spaces[n].within == (name,))}
        lengths = {
            m.key: float(self.ours[m.key].square().sum())
            for m in self.graph.spaces[name].members
            if m.key in self.ours
        }
        total = sum(lengths.values())
        return sum(n for key, n in lengths.items() if self._spaces_on(key) <= known) / total if total else 0.0

    def _spaces_on(self, key: str) -> set[str]:
        free = set(self.spaces)
        return {name for axis in self.graph.layout[key] for name in spaces_of(axis) if name in free}

    def settle(self, step: Space | Gauge) -> Element:
        """Solve one space or its planes by the weights, and move it."""
        before = self.element
        self.element = Element()
        self._step(step)
        found, self.element = self.element, before.then(self.element, self.graph)
        return found

    def _step(self, step: Space | Gauge) -> bool:
        """Solve one space or its planes; keep the solution where it is better."""
        part = self._turned(step) if isinstance(step, Gauge) else self._moved(step)
        keys = self._touched(part)
        before = self._value(keys)
        scale = sum(float(self.ours[k].norm() * self.theirs[k].norm()) for k in keys)
        moved = part.apply(self.graph, {key: self.theirs[key] for key in keys})
        after = sum(float((self.ours[k] * moved[k]).sum()) for k in keys)
        if after <= before + LEAST * scale:
            return False
        self.theirs.update(moved)
        self.element = self.element.then(part, self.graph)
        return True

    def _touched(self, part: Element) -> list[str]:
        keys = [m.key for name in part.orders for m in self.graph.spaces[name].members]
        keys += [slot.key for name in part.values for slot in self.graph.gauges[name].slots]
        return [key for key in dict.fromkeys(keys) if key in self.ours]

    def _value(self, keys: Collection[str]) -> float:
        return sum(float((self.ours[key] * self.theirs[key]).sum()) for key in keys)

    def costs(self) -> Iterator[tuple[str, float, float]]:
        """Per space: cosine of its writers' weights, before and after."""
        for name, space in self.graph.spaces.items():
            keys = list(
                dict.fromkeys(m.key for m in space.members if m.role == "writes" and m.key in self.ours)
            )
            if keys:
                ours, theirs = (
                    sum(float(weights[key].square().sum()) for key in keys)
                    for weights in (self.ours, self.theirs)
                )
                scale = max((ours * theirs) ** 0.5, 1e-300)
                yield name, sum(self._before[key] for key in keys) / scale, self._value(keys) / scale

    # -- solving -----------------------------------------------------------------------------------

    def _moved(self, space: Space) -> Element:
        """The best element of one space; of heads, together with what is inside them."""
        name = space.name
        inside = [g for g in self.planes if g.within == (name,)]
        nested = [n for n in self.spaces if self.graph.spaces[n].within == (name,)]
        if not inside and not nested:
            plain, signed = self._evidence(name, space.within, self._places(name))
            return self.best(name, plain, signed).element(name)
        # A weight with several things inside the heads counts for one of them: planes, bases, then orders.
        nested.sort(key=lambda n: not any(g.kind in DENSE for g in self.gauges[n]))
        counted: set[str] = set()
        solutions: list[tuple[str, Solution]] = []
        for part in [*inside, *nested]:
            gauge = part if isinstance(part, Gauge) else None
            label = gauge.space if gauge else str(part)
            places = [p for p in self._places(part) if p[0] not in counted]
            if not places:
                continue
            counted |= {key for key, _, _ in places}
            if gauge:
                solutions.append(
                    (label, self.phases(gauge, self._split(self._pairs(label, name, places))[0]))
                )
            else:
                evidence = self._split(self._pairs(label, name, places))
                solutions.append((label, self.best(label, *evidence)))
        direct = [p for p in self._places(name) if p[0] not in counted]
        return self.heads(space, *self._evidence(name, space.within, direct), solutions)

    def heads(
        self,
        space: Space,
        plain: Tensor,
        signed: Mapping[tuple[str, ...], Tensor],
        inside: Sequence[tuple[str, Solution]],
    ) -> Element:
        """The best order of heads, with what is inside each pair that it makes.

        Args:
            space: the heads.
            plain: evidence for pairs of heads beside what is inside them, from weights that take no sign.
            signed: the same from weights that take signs.
            inside: for each space or planes inside, the solution for every pair of heads.
        """
        found = self.best(space.name, sum((s.gain for _, s in inside), plain), signed)
        assert found.order is not None
        element = found.element(space.name)
        rows = torch.arange(space.size)
        for label, solution in inside:
            chosen = solution.at(rows, found.order.cpu()).element(label)
            element = Element({**element.orders, **chosen.orders}, {**element.values, **chosen.values})
        return element

    def _turned(self, gauge: Gauge) -> Element:
        """The best phases of rotary planes, where the heads now stand."""
        found: Tensor | None = None
        for key, axis, axes in self._places(gauge):
            for _, mine, other in self._views(key, axis, axes, gauge.space, gauge.within):
                product = (_planes(gauge, mine).conj() * _planes(gauge, other)).sum(-1)
                found = product if found is None else found + product
        assert found is not None
        return Element({}, {gauge.name: _phase(found)})

    def phases(self, gauge: Gauge, evidence: Tensor) -> Solution:
        """The best phases of rotary planes, for each matrix of evidence (*families, units, units)."""
        units = torch.arange(gauge.turned, device=evidence.device)
        halves = gauge.pairing == "halves"
        real, imaginary = units.view(2, -1) if halves else units.view(-1, 2).mT
        same = evidence[..., real, real] + evidence[..., imaginary, imaginary]
        across = evidence[..., real, imaginary] - evidence[..., imaginary, real]
        found = torch.complex(same, across)
        return Solution(None, {gauge.name: _phase(found)}, found.abs().sum(-1))

    def best(self, name: str, plain: Tensor, signed: Mapping[tuple[str, ...], Tensor]) -> Solution:
        """The best order and signs, or the best rotation, for each matrix of evidence."""
        for gauge in self.gauges[name]:
            if gauge.kind in DENSE:
                evidence = plain + sum(signed.values(), torch.zeros_like(plain))
                rotation, gain = procrustes(evidence, centred=gauge.kind == "centred")
                return Solution(None, {gauge.name: rotation}, gain)
        total, signs = best_signs(plain, signed)
        order = best_order(total).to(total.device)
        index = order[..., None]
        values = {gauge: sign.gather(-1, index)[..., 0] for gauge, sign in signs.items()}
        return Solution(order, values, agreement(total, order))

    # -- evidence ------------------------------------------------------------------------------------

    def _places(self, part: str | Gauge) -> list[tuple[str, int, Sequence[Axis]]]:
        """The weight axes that carry a space, or planes, with the axes to look at them by."""
        if isinstance(part, Gauge):
            assert part.axes is not None
            found = dict.fromkeys((slot.key, slot.axis) for slot in part.slots if slot.key in self.ours)
            return [(key, axis, part.axes[key]) for key, axis in found]
        members = [m for m in self.graph.spaces[part].members if m.key in self.ours]
        if self._trusted is not None:
            trusted = [m for m in members if self._spaces_on(m.key) <= self._trusted]
            members = trusted or members
        found = dict.fromkeys((m.key, m.axis) for m in members)
        return [(key, axis, self.graph.layout[key]) for key, axis in found]

    def _views(
        self, key: str, axis: int, axes: Sequence[Axis], space: str, within: Sequence[str]
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Both models' weights as (*outer units, units, rest), place by place."""
        outer = len(within) + 1
        pairs = zip(
            exposed(self.ours[key], axes, axis, space, within),
            exposed(self.theirs[key], axes, axis, space, within),
            strict=True,
        )
        for (occurrence, mine), (_, other) in pairs:
            if mine.ndim == outer:
                yield occurrence, mine[..., None], other[..., None]
            else:
                yield occurrence, mine.flatten(outer), other.flatten(outer)

    def _pattern(self, space: str, key: str, axis: int, occurrence: int) -> tuple[str, ...]:
        """The sign gauges that a place takes."""
        return tuple(
            gauge.name
            for gauge in self.gauges.get(space, ())
            if gauge.kind == "sign"
            for slot in gauge.slots
            if (slot.key, slot.axis, slot.occurrence) == (key, axis, occurrence)
        )

    def _evidence(
        self, name: str, within: Sequence[str], places: Sequence[tuple[str, int, Sequence[Axis]]]
    ) -> tuple[Tensor, dict[tuple[str, ...], Tensor]]:
        """Products of our units with theirs, family by family, by the signs that their weights take."""
        sizes = [self.graph.spaces[outer].size for outer in within]
        units = self.graph.spaces[name].size
        sample = next(iter(self.ours.values()))
        plain = sample.new_zeros(*sizes, units, units)
        signed: dict[tuple[str, ...], Tensor] = {}
        for key, axis, axes in places:
            for occurrence, mine, other in self._views(key, axis, axes, name, within):
                pattern = self._pattern(name, key, axis, occurrence)
                product = mine @ other.mT
                if pattern:
                    signed[pattern] = signed[pattern] + product if pattern in signed else product
                else:
                    plain += product
        return plain, signed

    def _pairs(
        self, name: str, outer: str, places: Sequence[tuple[str, int, Sequence[Axis]]]
    ) -> Iterator[tuple[tuple[str, ...], Tensor, Tensor]]:
        for key, axis, axes in places:
            for occurrence, mine, other in self._views(key, axis, axes, name, (outer,)):
                yield self._pattern(name, key, axis, occurrence), mine, other

    def _split(
        self, pairs: Iterator[tuple[tuple[str, ...], Tensor, Tensor]]
    ) -> tuple[Tensor, dict[tuple[str, ...], Tensor]]:
        """Products of units inside every pair of heads: (heads, heads, units, units)."""
        plain: Tensor | None = None
        signed: dict[tuple[str, ...], Tensor] = {}
        for pattern, mine, other in pairs:
            heads, units, _ = mine.shape
            product = mine.flatten(0, 1) @ other.flatten(0, 1).mT
            product = product.view(heads, units, heads, units).permute(0, 2, 1, 3)
            if pattern:
                signed[pattern] = signed[pattern] + product if pattern in signed else product
            else:
                plain = product if plain is None else plain + product
        if plain is None:
            plain = torch.zeros_like(next(iter(signed.values())))
        return plain, signed


def procrustes(evidence: Tensor, *, centred: bool = False) -> tuple[Tensor, Tensor]:
    """The rotation Q that maximises tr(Q^T M), and what it reaches.

    Args:
        evidence: M, (*families, n, n).
        centred: only rotations that fix the vector of ones.

    Source: Schoenemann, A generalized solution of the orthogonal Procrustes problem, 1966.
    """
    if not centred:
        u, s, v = torch.linalg.svd(evidence)
        return u @ v, s.sum(-1)
    size = evidence.shape[-1]
    basis = off_ones(size).to(evidence)
    rotation, gain = procrustes(basis.mT @ evidence @ basis)
    return around_ones(rotation), gain + evidence.sum((-2, -1)) / size


def best_signs(
    plain: Tensor, signed: Mapping[tuple[str, ...], Tensor], rounds: int = 8, starts: int = 8
) -> tuple[Tensor, dict[str, Tensor]]:
    """What each pair of units gains with the better signs, and these signs.

    Exact where no weight takes two signs; else one sign after another is chosen with the others held, from
    several starts.

    Args:
        plain: evidence from weights that take no sign.
        signed: sign gauges -> evidence from the weights that take them together.
        rounds: sweeps over the signs.
        starts: from all signs positive, and from those that most weights take negative, one at a time.
    """
    taking: dict[str, int] = {}
    for pattern in signed:
        for name in pattern:
            taking[name] = taking.get(name, 0) + 1
    if not taking:
        return plain, {}
    mixed = any(len(pattern) > 1 for pattern in signed)
    flips = [None, *sorted(taking, key=lambda name: -taking[name])[: starts - 1]] if mixed else [None]
    best: tuple[Tensor, dict[str, Tensor]] | None = None
    for flip in flips:
        signs = {name: torch.full_like(plain, -1.0 if name == flip else 1.0) for name in taking}
        for _ in range(rounds if mixed else 1):
            # The one that was flipped is settled last: the others answer to it first.
            for name in sorted(signs, key=lambda n: n == flip):
                speaks = sum(
                    (_taken(signed, signs, p, name) for p in signed if name in p), torch.zeros_like(plain)
                )
                signs[name] = torch.where(speaks < 0, -1.0, 1.0).to(plain)
        total = plain + sum((_taken(signed, signs, p) for p in signed), torch.zeros_like(plain))
        if best is None:
            best = total, signs
        else:
            better = total > best[0]
            chosen = {name: torch.where(better, signs[name], best[1][name]) for name in signs}
            best = torch.maximum(total, best[0]), chosen
    assert best is not None
    return best


def _taken(
    signed: Mapping[tuple[str, ...], Tensor],
    signs: Mapping[str, Tensor],
    pattern: tuple[str, ...],
    without: str | None = None,
) -> Tensor:
    """The evidence of the weights that take a pattern, under all of its signs but one."""
    found = signed[pattern]
    for name in pattern:
        if name != without:
            found = found * signs[name]
    return found


def _planes(gauge: Gauge, view: Tensor) -> Tensor:
    """The turned units of (*outer units, units, rest) as complex numbers, (*outer units, planes, rest)."""
    turned = view.narrow(-2, 0, gauge.turned)
    if gauge.pairing == "halves":
        real, imaginary = turned.unflatten(-2, (2, -1)).unbind(-3)
    else:
        real, imaginary = turned.unflatten(-2, (-1, 2)).unbind(-2)
    return torch.complex(real.contiguous(), imaginary.contiguous())


def _phase(evidence: Tensor) -> Tensor:
    """The z of length one that maximises Re(z C), for C the sum of conj(ours) times theirs."""
    size = evidence.abs()
    return torch.where(size > 0, evidence.conj() / size.clamp_min(1e-300), torch.ones_like(evidence))


def wide(graph: SymmetryGraph, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the graph in float64 on the CPU, where evidence and assignments are, under their own keys."""
    found = graph.program.lookup(weights)
    names = graph.program.keys
    return {key: found[names[key]].detach().double().cpu() for key in graph.layout}
