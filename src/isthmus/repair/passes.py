"""The two ways to measure what is to be repaired: all layers in one joint pass, or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.errors import DataError, InputError
from isthmus.features import Scratch, centre, explained, feed, sinks
from isthmus.program import Batch, Program, home
from isthmus.repair.result import Change, Mode
from isthmus.repair.sites import Site

#: Bytes of activations that a sequential pass may hold instead of computing them again.
HOLD = 2 << 30


@dataclass(frozen=True)
class Seen:
    """What a pass saw of the data.

    Attributes:
        examples: how many.
        batch_size: of the largest batch.
    """

    examples: int
    batch_size: int


def run(
    program: Program,
    weights: dict[str, Tensor],
    sites: Sequence[Site],
    batch_norms: Iterable[str],
    data: Iterable[object],
    mode: Mode,
    limit: int | None,
) -> tuple[list[Change], Seen]:
    """Measure all sites and write what they ask for into `weights`.

    Args:
        program: the graph.
        weights: of the program, on the device to run on; changed.
        sites: what is repaired.
        batch_norms: those whose running statistics are not valid while measuring: a joint pass
            normalises with the batch's.
        data: calibration data.
        mode: "joint" or "sequential".
        limit: number of examples after which to stop.

    Raises:
        InputError: no such mode.
        DataError: the data is empty or does not fit, a batch of one sample in a joint pass, or
            activations that are not finite.
    """
    if mode not in ("joint", "sequential"):
        raise InputError(f"mode={mode!r} is neither 'joint' nor 'sequential'")
    if not sites:
        return [], Seen(0, 0)
    with torch.no_grad():
        if mode == "sequential":
            return _sequential(program, weights, sites, data, limit)
        return _joint(program, weights, sites, tuple(batch_norms), data, limit)


def _joint(
    program: Program,
    weights: dict[str, Tensor],
    sites: Sequence[Site],
    batch_norms: tuple[str, ...],
    data: Iterable[object],
    limit: int | None,
) -> tuple[list[Change], Seen]:
    """One pass in which every layer already sees its predecessors repaired, by the batch's own statistics."""
    watched: dict[str, list[tuple[Site, int]]] = {}
    for site in sites:
        for _, value, axis in site.events:
            watched.setdefault(value, []).append((site, axis))
    runner = program.compile(sinks(program, watched), taps=watched, batch_statistics=batch_norms)
    scratch = Scratch()

    def tap(name: str, value: Tensor) -> Tensor | None:
        replacement: Tensor | None = None
        for site, axis in watched[name]:
            batch = centre(value, axis, scratch, "passing")
            if batch.count < 2:
                raise DataError(
                    f"{name}: a batch of one sample has no statistics of its own",
                    hint="use larger batches, drop the last one where it is that small, or mode='sequential'",
                )
            site.pooled.add(batch)
            replacement = site.replacement(value, batch) if replacement is None else replacement
        return replacement

    examples = largest = 0
    device, dtype = home(weights)
    for index, batch in enumerate(feed(data, "repair", limit)):
        here = batch.to(device, dtype)
        with explained(program, here, f"batch {index}"):
            runner(weights, here, tap=tap)
        examples, largest = examples + batch.size, max(largest, batch.size)
    for site in sites:
        _check(site)
    return [site.write(weights) for site in sites], Seen(examples, largest)


def _check(site: Site) -> None:
    if not bool(site.pooled.finite):
        raise DataError(
            "the merged model's activations are not finite",
            [site.events[0][1]],
            hint="look at the merged weights: a value overflowed, or they hold NaN; or at the data",
        )


def _sequential(
    program: Program,
    weights: dict[str, Tensor],
    sites: Sequence[Site],
    data: Iterable[object],
    limit: int | None,
) -> tuple[list[Change], Seen]:
    """Layer after layer, each measured on all the data with everything before it finished.

    The activations from which a layer is computed are held for the next, if they fit: then the network
    is run through about twice, however deep it is. What does not fit is computed again from what is held.
    """
    order = {name: position for position, name in enumerate(program.nodes)}
    events = sorted(
        ((place, value, axis, site) for site in sites for place, value, axis in site.events),
        key=lambda event: order[event[0]],
    )
    needed = _ancestors(program, {value for _, value, _, _ in events})
    tape = _Tape(program, weights, data, limit)
    changes: dict[str, Change] = {}
    scratch = Scratch()
    for place, value, axis, site in events:

        def measure(x: Tensor, site: Site = site, axis: int = axis) -> None:
            site.pooled.add(centre(x, axis, scratch, "passing"))

        tape.advance(_frontier(program, order, needed, order[place]), value, measure)
        _check(site)
        change = site.write(weights)
        # A norm that is called twice is written twice, the second time with both calls pooled.
        changes[change.value] = change
    return list(changes.values()), Seen(tape.examples, tape.largest)


def _ancestors(program: Program, values: Iterable[str]) -> frozenset[str]:
    found: set[str] = set()
    stack = [program.nodes[value] for value in values]
    while stack:
        node = stack.pop()
        if node.name not in found:
            found.add(node.name)
            stack.extend(node.all_input_nodes)
    return frozenset(found)


def _frontier(
    program: Program, order: dict[str, int], needed: frozenset[str], position: int
) -> tuple[str, ...]:
    """The activations computed before a position that something at or behind it reads."""
    return tuple(
        name
        for name in needed
        if order[name] < position
        and name in program.dynamic
        and name not in program.inputs
        and program.is_tensor(name)
        and any(order[user.name] >= position and user.name in needed for user in program.nodes[name].users)
    )


class _Tape:
    """The calibration data together with the activations held of it, and how far those have got."""

    def __init__(
        self, program: Program, weights: dict[str, Tensor], data: Iterable[object], limit: int | None
    ):
        self.program, self.weights, self.data, self.limit = program, weights, data, limit
        self.held: tuple[str, ...] = ()
        self.stored: list[tuple[Batch, dict[str, Tensor]]] | None = None
        self.examples = self.largest = 0

    def advance(self, frontier: tuple[str, ...], value: str, measure: Callable[[Tensor], None]) -> None:
        """Show a value of each batch to `measure`, and hold the frontier for the next time if it fits."""
        runner = self.program.compile([*dict.fromkeys((*frontier, value))], given=self.held)
        again: list[tuple[Batch, dict[str, Tensor]]] | None = []
        size = examples = largest = 0
        keep_old = self.stored is not None and not self._fits(frontier)
        for index, (batch, given) in enumerate(self._replay(consume=not keep_old)):
            with explained(self.program, batch, f"batch {index}"):
                found = runner(self.weights, batch, given=given)
            assert isinstance(found, dict)
            measure(found[value])
            examples, largest = examples + batch.size, max(largest, batch.size)
            if keep_old or again is None:
                continue
            again.append((batch, {name: found[name] for name in frontier}))
            size += sum(_bytes(v) for v in (*batch.args, *batch.kwargs.values(), *again[-1][1].values()))
            if size > HOLD:
                again = None
        self.examples, self.largest = examples, largest
        if not keep_old:
            self.held, self.stored = (frontier, again) if again is not None else ((), None)

    def _replay(self, consume: bool) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        if self.stored is None:
            device, dtype = home(self.weights)
            for batch in feed(self.data, "repair", self.limit):
                yield batch.to(device, dtype), {}
        elif consume:  # what was held is freed as what comes after it is made
            self.stored.reverse()
            while self.stored:
                yield self.stored.pop()
        else:
            yield from self.stored

    def _fits(self, frontier: tuple[str, ...]) -> bool:
        """Whether the frontier's activations of all the data may be held, by their size in the program."""
        size = 0
        for name in frontier:
            value = self.program.value(name)
            per_example = [n for n in value.shape[1:] if isinstance(n, int)]
            size += self.examples * torch.Size(per_example).numel() * value.element_size()
        assert self.stored is not None
        inputs = sum(_bytes(v) for batch, _ in self.stored for v in (*batch.args, *batch.kwargs.values()))
        return size + inputs <= HOLD


def _bytes(value: object) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
