"""Exact order statistics of a tensor that is seen block by block, without sorting it.

A sample says roughly where the wanted ranks fall; one look at all numbers counts those below and collects those
around. What comes out is what sorting the whole tensor would give, numbers that are equal included: they rank by
position. Where the sample misled, or more numbers lie around than are to be held, more looks follow: a histogram of the
upper bits of every number (floats that are not negative are ordered as their bits are), one of the next bits of those
in the bins found if they are still too many, and a count of what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from isthmus.combine.blocks import Place, scratch

_BINS = 1 << 15
# Runs of 64 numbers, one in 33 of them: whole cache lines, whose columns drift through rows of any usual length.
_RUN, _EVERY = 64, 33
#: Tensors with fewer numbers are looked at whole: the time would go elsewhere.
_SMALL = 1 << 14
#: About as many numbers as a sample needs; more than four times as many are not kept.
_SAMPLE = 1 << 17
#: Values in a window that are counted one by one, if the sample has no others.
_KNOWN = 6
#: A block with more than one in so many numbers to gather is likely to have them several times.
_MANY = 64
#: Numbers that are held between two passes. Those of larger tensors are counted by value, block by block, so that
#: fewer are.
_HELD, _LARGE = 1 << 21, 1 << 26
#: Bits that one histogram tells apart.
_BITS = 16

Numbers = NDArray[np.floating]


@dataclass(frozen=True)
class Window:
    """Where the number of a rank is thought to be.

    Attributes:
        low: the smallest it may be.
        high: the largest.
        known: numbers in it that were seen, if they are few.
    """

    low: float
    high: float
    known: tuple[float, ...] = ()


@dataclass(frozen=True)
class Tally:
    """What one block has.

    Attributes:
        below: how many numbers lie below each window.
        values: the numbers inside the windows.
        counts: how many of each.
    """

    below: tuple[int, ...]
    values: Numbers
    counts: NDArray[np.integer]


@dataclass(frozen=True)
class Boundary:
    """The number of one rank, and how many are below it.

    Attributes:
        value: the number.
        below: how many numbers are smaller.
        equal: how many are equal to it.
        blocks: key and start of a block -> how many equal ones lie in the blocks before it, and in it.
    """

    value: float
    below: int
    equal: int
    blocks: dict[tuple[str, int], tuple[int, int]]

    def equals(self, place: Place) -> tuple[int, int]:
        """How many numbers equal to this one lie in the blocks before a place, and in its own."""
        return self.blocks[place.key, place.start]


def thinned(values: Tensor, place: Place) -> Tensor:
    """The part of a block that the first pass looks at, a view; all of it where the tensor is small."""
    flat = values.reshape(-1)
    whole = math.prod(place.shape)
    if whole < _SMALL:
        return flat
    stride = _RUN * _EVERY * max(1, whole // (_SAMPLE * _EVERY))
    runs = flat.numel() // stride
    if runs == 0:
        return flat[:_RUN]
    return flat.as_strided((runs, _RUN), (stride, 1))


class OrderStatistics:
    """The numbers of given ranks among all that were seen, in five passes, of which three are seldom needed.

    Args:
        ranks: how many numbers there are -> the ranks wanted, from 0 (the smallest); those outside are
            brought inside.
    """

    passes = 5

    def __init__(self, ranks: Callable[[int], Sequence[int]]):
        self._ranks = ranks
        self._sample: list[tuple[Numbers, float]] = []
        self._held = 0
        self._histogram: NDArray[np.int64] | None = None  # seldom needed, and a model has many tensors
        self._shift = 16
        self._fine: list[NDArray[np.int64]] = []  # of the next bits, of each window
        self._before: list[int] = []  # numbers below each window
        self._gathered = 0
        self._windows: tuple[Window, ...] = ()
        self._tallies: list[tuple[tuple[str, int], Tally]] = []
        self.count = 0
        self.boundaries: tuple[Boundary, ...] = ()

    def skips(self, index: int) -> bool:
        """Whether a pass has turned out not to be needed."""
        return index >= 1 and bool(self.boundaries)

    def measure(self, index: int, values: Float[Tensor, "..."]) -> object:
        """What a pass wants to know of a block's numbers, none of them negative (nor minus zero).

        In the first pass they are `thinned`.
        """
        if self.skips(index):
            return None
        flat = values if values.ndim == 1 else values.reshape(-1)
        if index == 0:
            return flat.numpy(force=True).copy()
        if index == 3 and self._fine:
            return self._next_bits(flat.numpy(force=True))
        if index != 2:
            return self._tally(flat)
        word, shift = (torch.int32, 16) if flat.dtype == torch.float32 else (torch.int64, 48)
        upper = torch.bitwise_right_shift(flat.view(word), shift, out=scratch("upper", flat, word))
        return shift, torch.bincount(upper, minlength=_BINS).numpy(force=True)

    def _tally(self, values: Tensor) -> Tally:
        numbers = values.numpy(force=True)
        number = numbers.dtype.type
        # Fresh arrays of this size would cost as much as looking at them.
        inside, mask, other = (
            scratch(name, values, torch.bool).numpy(force=True) for name in ("inside", "mask", "other")
        )
        below: list[int] = []
        seen: dict[float, int] = {}
        gather = False

        def count(compared: np.ufunc, bound: float, out: NDArray[np.bool_]) -> int:
            return int(np.count_nonzero(compared(numbers, number(bound), out=out)))

        for window in self._windows:
            above = count(np.greater_equal, window.low, mask)
            below.append(len(numbers) - above)
            left = above - count(np.greater, window.high, other)
            if window.low == window.high:
                seen[window.low], left = left, 0
            if not left:
                continue
            mask ^= other  # from low on, and not above high
            for value in window.known:
                seen[value] = count(np.equal, value, other)
                left -= seen[value]
                mask ^= other
            if left:
                np.logical_or(inside, mask, out=inside) if gather else np.copyto(inside, mask)
                gather = True
        found = np.compress(inside, numbers) if gather else numbers[:0]
        if len(found) > len(numbers) // _MANY or self.count > _LARGE:
            found, counts = np.unique(found, return_counts=True)
        else:
            counts = np.broadcast_to(np.int32(1), found.shape)
        # Numbers that were counted one by one are not counted again among those gathered.
        fresh = ~np.isin(found, np.array([*seen], found.dtype)) if seen and gather else slice(None)
        values_ = np.concatenate([np.array([*seen], numbers.dtype), found[fresh]])
        return Tally(
            tuple(below), values_, np.concatenate([np.array([*seen.values()], np.int32), counts[fresh]])
        )

    def add(self, index: int, partial: object, place: Place) -> None:
        """Take in what a block had, in the order of the blocks."""
        if partial is None:
            return
        if index == 0:
            assert isinstance(partial, np.ndarray)
            size = place.stop - place.start
            self.count += size
            self._sample.append((partial, size / len(partial)))
            if len(partial) == size:
                here = Tally((0,), partial, np.ones(size, np.int32))
                self._tallies.append(((place.key, place.start), here))
            self._forget()
        elif isinstance(partial, Tally):
            self._gathered += len(partial.values)
            if index > 1 or self._gathered <= _HELD:
                self._tallies.append(((place.key, place.start), partial))
        elif isinstance(partial, list):
            for fine, (bits, times) in zip(self._fine, partial, strict=True):
                fine[bits] += times
        else:
            self._shift, histogram = partial  # type: ignore[misc]  # a shift and a histogram
            self._histogram = histogram if self._histogram is None else self._histogram + histogram

    def _next_bits(self, numbers: Numbers) -> list[tuple[NDArray[np.integer], NDArray[np.integer]]]:
        """For each window, the bits that tell its numbers apart best, and how many have them."""
        word = np.int32 if numbers.dtype == np.float32 else np.int64
        whole = numbers.view(word)
        found: list[tuple[NDArray[np.integer], NDArray[np.integer]]] = []
        for window in self._windows:
            low, high = (np.array(end, numbers.dtype).view(word) for end in (window.low, window.high))
            inside = whole[(whole >= low) & (whole <= high)] - low
            found.append(np.unique(inside >> (self._shift - _BITS), return_counts=True))
        return found

    def _forget(self) -> None:
        """Keep every other number of a sample that is much larger than it needs to be."""
        self._held += len(self._sample[-1][0])
        if self._held > 4 * _SAMPLE:
            self._sample = [(s[::2], w * len(s) / len(s[::2])) for s, w in self._sample]
            self._held = sum(len(s) for s, _ in self._sample)

    def close(self, index: int) -> None:
        """All blocks were taken in."""
        if self.skips(index):
            return
        wanted = [min(max(r, 0), self.count - 1) for r in self._ranks(self.count)]
        if index == 0:
            self._windows = tuple(self._guessed(wanted))
            if sum(len(t.values) for _, t in self._tallies) == self.count:
                everything = Window(0.0, math.inf)
                self._settle([(rank, everything, 0) for rank in wanted])
            self._sample.clear()
        elif index == 2:
            self._bin(wanted)
        elif index == 3 and self._fine:
            self._windows = tuple(
                self._narrowed(window, rank - before, fine)
                for window, rank, before, fine in zip(
                    self._windows, wanted, self._before, self._fine, strict=True
                )
            )
            self._fine = []
        elif index > 1 or self._gathered <= _HELD:
            below = [sum(t.below[i] for _, t in self._tallies) for i in range(len(wanted))]
            self._settle(list(zip(wanted, self._windows, below, strict=True)))
        self._tallies.clear()
        self._gathered = 0

    def _guessed(self, wanted: Sequence[int]) -> Iterator[Window]:
        """Where the numbers of some ranks very likely are, by the sample."""
        values = np.concatenate([s for s, _ in self._sample])
        weights = [w for _, w in self._sample]
        if max(weights) < 1.2 * min(weights):
            values.sort()
            upto = np.arange(1, len(values) + 1)
        else:
            order = np.argsort(values)
            values = values[order]
            upto = np.cumsum(np.concatenate([np.full(len(s), w) for s, w in self._sample])[order])
        for rank in wanted:
            part = (rank + 0.5) / self.count
            # Six standard deviations of a sample's quantile, as if half of its numbers told anything.
            spread = 6 * math.sqrt(2 * part * (1 - part) / len(values)) + 8 / len(values)
            ends = np.clip([part - spread, part + spread], 0, 1) * upto[-1]
            first, last = np.minimum(np.searchsorted(upto, ends), len(values) - 1)
            low = float(values[first]) if ends[0] > 0 else 0.0
            high = float(values[last]) if ends[1] < upto[-1] else float(np.finfo(values.dtype).max)
            known = np.unique(values[first : last + 1])
            yield Window(low, high, tuple(known.tolist()) if len(known) <= _KNOWN else ())

    def _bin(self, wanted: Sequence[int]) -> None:
        """Where the numbers of some ranks surely are, by the histogram of all; and whether too many are there."""
        assert self._histogram is not None
        upto = np.cumsum(self._histogram)
        bins = [int(np.searchsorted(upto, rank, side="right")) for rank in wanted]
        self._windows = tuple(self._window(at << self._shift, self._shift) for at in bins)
        self._before = [int(upto[at] - self._histogram[at]) for at in bins]
        if sum(int(self._histogram[at]) for at in bins) > _HELD:
            self._fine = [np.zeros(1 << _BITS, np.int64) for _ in bins]
        self._histogram = None

    def _narrowed(self, window: Window, rank: int, fine: NDArray[np.int64]) -> Window:
        """The part of a window where the number of a rank is, counted from the window's first one."""
        narrow, word = (np.float32, np.int32) if self._shift == 16 else (np.float64, np.int64)
        at = int(np.searchsorted(np.cumsum(fine), rank, side="right"))
        shift = self._shift - _BITS
        return self._window(int(np.array(window.low, narrow).view(word)) + (at << shift), shift)

    def _window(self, bits: int, shift: int) -> Window:
        """The numbers whose bits are these, but for the last ones."""
        narrow, word = (np.float32, np.int32) if self._shift == 16 else (np.float64, np.int64)
        low, high = np.array([bits, bits + (1 << shift) - 1], np.int64).astype(word).view(narrow)
        return Window(float(low), float(min(high, np.finfo(narrow).max)))

    def _settle(self, wanted: Sequence[tuple[int, Window, int]]) -> None:
        """Find the numbers of the ranks among what was collected; if they are all there, it is over."""
        found = [self._boundary(*one) for one in wanted]
        if all(f is not None for f in found):
            self.boundaries = tuple(f for f in found if f is not None)

    def _boundary(self, rank: int, window: Window, below: int) -> Boundary | None:
        """The number of a rank, given how many are below its window; None if it is not in it."""
        kept = [(t.values >= window.low) & (t.values <= window.high) for _, t in self._tallies]
        values = [t.values[k] for (_, t), k in zip(self._tallies, kept, strict=True)]
        counts = [t.counts[k] for (_, t), k in zip(self._tallies, kept, strict=True)]
        together, times = np.concatenate(values), np.concatenate(counts)
        total = int(times.sum())
        if not below <= rank < below + total:
            return None
        if len(together) == total:
            value = np.partition(together, rank - below)[rank - below]
        else:
            order = np.argsort(together)
            value = together[order[np.searchsorted(np.cumsum(times[order]), rank - below, side="right")]]
        blocks: dict[tuple[str, int], tuple[int, int]] = {}
        seen = 0
        for (block, _), inside, each in zip(self._tallies, values, counts, strict=True):
            here = int(each[inside == value].sum())
            blocks[block] = (seen, here)
            seen += here
        return Boundary(float(value), below + int(times[together < value].sum()), seen, blocks)
