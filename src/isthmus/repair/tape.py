"""Layer after layer over the calibration data: activations are held, so that nothing is run from the start again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from isthmus.features import explained
from isthmus.program import Batch, Program, home

#: Bytes of activations that may be held instead of computing them again.
HOLD = 2 << 30


class Tape:
    """A network's calibration data together with the activations held of it, and how far those have got.

    The activations from which a layer is computed are held for the next, if they fit: then the network
    is run through about twice, however deep it is. What does not fit is computed again from what is held.

    Args:
        program: the graph.
        weights: of the program, on the device to run on; read anew at each step, so that they may change in between.
        batches: gives the calibration data from the start, as often as it takes.
        values: all that will be asked for.
        hold: bytes of activations that may be held; `HOLD` where not given.

    Attributes:
        examples: how many the last step saw.
        largest: of its largest batch.
    """

    def __init__(
        self,
        program: Program,
        weights: dict[str, Tensor],
        batches: Callable[[], Iterable[Batch]],
        values: Iterable[str],
        *,
        hold: int | None = None,
    ):
        self.program, self.weights, self.batches = program, weights, batches
        self.hold = HOLD if hold is None else hold
        self.held: tuple[str, ...] = ()
        self.stored: list[tuple[Batch, dict[str, Tensor]]] | None = None
        self.examples = self.largest = 0
        self._order = {name: position for position, name in enumerate(program.nodes)}
        self._needed = _ancestors(program, values)

    def advance(self, place: str, values: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """The values, batch by batch; what was computed before `place` and is needed behind it is held, if it fits.

        Everything up to `place` must be finished: what is held is not computed again. The iterator is read to its end.
        """
        frontier = self._frontier(self._order[place])
        runner = self.program.compile([*dict.fromkeys((*frontier, *values))], given=self.held)
        again: list[tuple[Batch, dict[str, Tensor]]] | None = []
        size = examples = largest = 0
        keep_old = self.stored is not None and not self._fits(frontier)
        for index, (batch, given) in enumerate(self._replay(consume=not keep_old)):
            with explained(self.program, batch, f"batch {index}"):
                found = runner(self.weights, batch, given=given)
            assert isinstance(found, dict)
            yield found
            examples, largest = examples + batch.size, max(largest, batch.size)
            if keep_old or again is None:
                continue
            again.append((batch, {name: found[name] for name in frontier}))
            size += sum(_bytes(v) for v in (*batch.args, *batch.kwargs.values(), *again[-1][1].values()))
            if size > self.hold:
                again = None
        self.examples, self.largest = examples, largest
        if not keep_old:
            self.held, self.stored = (frontier, again) if again is not None else ((), None)

    def _frontier(self, position: int) -> tuple[str, ...]:
        """The activations computed before a position that something at or behind it reads."""
        program, order, needed = self.program, self._order, self._needed
        return tuple(
            name
            for name in needed
            if order[name] < position
            and name in program.dynamic
            and name not in program.inputs
            and program.is_tensor(name)
            and any(order[u.name] >= position and u.name in needed for u in program.nodes[name].users)
        )

    def _replay(self, consume: bool) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        if self.stored is None:
            device, dtype = home(self.weights)
            for batch in self.batches():
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
        return size + inputs <= self.hold


def _ancestors(program: Program, values: Iterable[str]) -> frozenset[str]:
    found: set[str] = set()
    stack = [program.nodes[value] for value in dict.fromkeys(values)]
    while stack:
        node = stack.pop()
        if node.name not in found:
            found.add(node.name)
            stack.extend(node.all_input_nodes)
    return frozenset(found)


def _bytes(value: object) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
