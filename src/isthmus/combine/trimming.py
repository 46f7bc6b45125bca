"""Which elements of a task vector are kept: the largest, all but outliers, at random, at random by rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from isthmus.combine.blocks import Layout, Place, scratch
from isthmus.combine.compiled import Kept, Mask, Pair
from isthmus.combine.order_statistics import Boundary, OrderStatistics
from isthmus.combine.random_masks import bernoulli

#: Which elements as large as the smallest one kept are kept too: the first ones, so that exactly so many are
#: kept as asked for; all; or all, and one more rank (the paper's code compares with the largest one dropped).
Equals = Literal["first", "all", "rank-below"]

#: Bytes of masks that the trims of one rule may remember together.
HELD = 16 << 20


class Trim:
    """Keeps some elements of one model's task vector and sets the others to zero.

    Attributes:
        layout: how tensors must be cut.
        passes: measuring passes.
        held: bytes that it may remember between a preview and what follows it.
        compiles: whether compiled loops can do it.
    """

    layout: Layout = "elements"
    passes: int = 0
    held: int = 0
    compiles: bool = False

    def skips(self, index: int) -> bool:
        """Whether a pass has turned out not to be needed."""
        return index >= self.passes

    def thins(self, index: int) -> bool:
        """Whether a pass looks at a part of each block only (`thinned`)."""
        del index
        return False

    def measure(self, index: int, vector: Tensor) -> object:
        """What a pass wants to know of a block of the task vector. Pure."""
        raise NotImplementedError

    def add(self, index: int, partial: object, place: Place) -> None:
        """Take in what a block had, in the order of the blocks."""
        raise NotImplementedError

    def close(self, index: int) -> None:
        """All blocks of a pass were taken in."""
        raise NotImplementedError

    def apply(self, vector: Tensor, place: Place) -> Tensor:
        """The trimmed block; the memory of `vector` may be used for it."""
        raise NotImplementedError

    def preview(self, size: Tensor, place: Place) -> Tensor:
        """What is kept of a block's magnitudes, before it is written; their memory may be used for it."""
        return self.apply(size, place)

    # The same for compiled loops, which go over the block themselves. Both give the same numbers.

    def told(self, pair: Pair, place: Place) -> Kept | None:
        """What `apply` does with a block, if it can be told."""
        del pair, place
        return None

    def previewed(self, pair: Pair, place: Place) -> tuple[float, float] | None:
        """The sums of a block's magnitudes and of their `preview`, if loops can say."""
        del pair, place
        return None


class _Ranked(Trim):
    """Keeps elements by the rank of their magnitude.

    Args:
        found: the magnitudes of the ranks that decide.
        passes: measuring passes.
    """

    def __init__(self, found: OrderStatistics, passes: int):
        self._found = found
        self.passes = passes

    def skips(self, index: int) -> bool:
        return index >= self.passes or self._found.skips(index)

    def thins(self, index: int) -> bool:
        return index == 0

    def measure(self, index: int, vector: Tensor) -> object:
        return self._found.measure(index, magnitude(vector))

    def add(self, index: int, partial: object, place: Place) -> None:
        self._found.add(index, partial, place)

    def close(self, index: int) -> None:
        self._found.close(index)


class Largest(_Ranked):
    """Keeps the elements of largest magnitude.

    Args:
        density: the part that is kept, in (0, 1]; of n elements, the whole part of density n, at least one.
        equals: what happens to elements as large as the smallest one kept.
    """

    def __init__(self, density: float, equals: Equals = "first"):
        self.compiles = True
        self._density = density
        self._equals = equals
        found = OrderStatistics(lambda count: [count - self._kept(count) - (equals == "rank-below")])
        super().__init__(found, 0 if density >= 1 else OrderStatistics.passes)

    def _kept(self, count: int) -> int:
        return max(1, int(self._density * count))

    def apply(self, vector: Tensor, place: Place) -> Tensor:
        if self.passes == 0:
            return vector
        return _kept_from(vector, *self._least(place))

    def told(self, pair: Pair, place: Place) -> Kept | None:
        del pair
        if self.passes == 0:
            return Kept()
        least, quota, here = self._least(place)
        if quota not in (0, here):  # some of those that equal the smallest one: which, is looked up
            return None
        return Kept(bound=_just_below(least) if quota else least)

    def _least(self, place: Place) -> tuple[float, int, int]:
        """The smallest magnitude that is kept, and how many of those in a block that equal it are, of how many."""
        (least,) = self._found.boundaries
        above = self._found.count - least.below - least.equal
        quota = least.equal if self._equals != "first" else self._kept(self._found.count) - above
        earlier, here = least.equals(place)
        return least.value, min(max(quota - earlier, 0), here), here


class Middle(_Ranked):
    """Drops the smallest elements and the very largest.

    Args:
        density: the part that is kept, in (0, 1].
        gamma: the part of the largest that is dropped first, in [0, 1).
        row: within each row, instead of the whole tensor.
        whole: whether density 1 keeps everything, gamma or not.
    """

    def __init__(self, density: float, gamma: float, row: bool = False, whole: bool = True):
        self._density = density
        self._gamma = gamma
        self._row = row
        self._everything = whole and density >= 1
        self.layout = "rows" if row else "elements"
        self.compiles = not row  # rows are sorted
        passes = 0 if row or self._everything else OrderStatistics.passes
        super().__init__(OrderStatistics(self._window), passes)

    def _window(self, count: int) -> tuple[int, int]:
        """The first rank that is kept and the first that is not, from the smallest."""
        kept, top = int(self._density * count), int(self._gamma * count)
        start = max(0, count - kept - top)
        return start, start + kept

    def apply(self, vector: Tensor, place: Place) -> Tensor:
        if self._everything:
            return vector
        if self._row:
            return self._apply_to_rows(vector)
        low, high = self._found.boundaries
        start, stop = self._window(self._found.count)
        size = magnitude(vector).reshape(-1).numpy(force=True)
        kept = _ranked_from(size, low, start, place)
        if stop < self._found.count:
            kept &= ~_ranked_from(size, high, stop, place)
        if stop <= start:
            kept[:] = False
        return masked(vector, torch.from_numpy(kept))

    def told(self, pair: Pair, place: Place) -> Kept | None:
        del pair
        if self._everything:
            return Kept()
        if self._row:
            return None
        low, high = self._found.boundaries
        start, stop = self._window(self._found.count)
        if stop <= start:
            return Kept(bound=math.inf, top=math.inf)
        bound = _below(low, start, place)
        top = math.inf if stop >= self._found.count else _below(high, stop, place)
        return None if bound is None or top is None else Kept(bound=bound, top=top)

    def _apply_to_rows(self, vector: Tensor) -> Tensor:
        start, stop = self._window(vector.shape[-1])
        order = ranked(magnitude(vector))
        kept = torch.zeros(vector.shape, dtype=torch.bool, device=vector.device)
        return masked(vector, kept.scatter_(-1, order[..., start:stop], True))


class Drawn(Trim):
    """Keeps elements at random, each with a probability of its own.

    A mask that is wanted in two passes is remembered, of a tensor's first elements: drawing it again costs more.

    Args:
        held: bytes of masks to remember, eight elements in each.
    """

    def __init__(self, held: int):
        self.held = held
        self._masks: dict[tuple[str, int], np.ndarray] = {}

    def draw(self, vector: Tensor, place: Place) -> Tensor:
        """The mask of a block, flat, in memory that numpy can read. Pure."""
        raise NotImplementedError

    def drawn(self, pair: Pair, place: Place) -> tuple[Mask, tuple[float, float] | None]:
        """The same by compiled loops, with the sums of magnitudes if that is no trouble."""
        raise NotImplementedError

    def mask(self, vector: Tensor, place: Place) -> Tensor:
        """The same, as it was drawn or drawn now."""
        held = self._remembered(place)
        return self.draw(vector, place) if held is None else torch.from_numpy(held)

    def preview(self, size: Tensor, place: Place) -> Tensor:
        kept = self.draw(size, place)
        self._remember(kept.numpy(), place)
        return masked(size, kept)

    def previewed(self, pair: Pair, place: Place) -> tuple[float, float]:
        kept, sums = self.drawn(pair, place)
        self._remember(kept, place)
        return sums or pair.summed(kept)

    def _remember(self, kept: Mask, place: Place) -> None:
        if place.stop <= 8 * self.held:
            self._masks[place.key, place.start] = np.packbits(kept)

    def _remembered(self, place: Place) -> Mask | None:
        packed = self._masks.pop((place.key, place.start), None)
        if packed is None:
            return None
        return np.unpackbits(packed, count=place.stop - place.start).view(np.bool_)


class AtRandom(Drawn):
    """Keeps each element with the same probability.

    Args:
        density: the probability, in (0, 1].
        stream: which of the models' random numbers to use.
        rescale: divide what is kept by the density.
        held: bytes of masks to remember.
    """

    def __init__(self, density: float, stream: int, rescale: bool, held: int = HELD):
        super().__init__(held)
        self.compiles = True
        self._density = density
        self._stream = stream
        self._rescale = rescale

    def draw(self, vector: Tensor, place: Place) -> Tensor:
        del vector
        return bernoulli(place, self._stream, self._density)

    def drawn(self, pair: Pair, place: Place) -> tuple[Mask, None]:
        del pair
        return bernoulli(place, self._stream, self._density).numpy(), None

    def apply(self, vector: Tensor, place: Place) -> Tensor:
        if self._density >= 1:
            return vector
        masked(vector, self.mask(vector, place))
        return vector.mul_(1 / self._density) if self._rescale else vector

    def told(self, pair: Pair, place: Place) -> Kept:
        if self._density >= 1:
            return Kept()
        held = self._remembered(place)
        mask = self.drawn(pair, place)[0] if held is None else held
        return Kept(mask, times=1 / self._density if self._rescale else 1.0)


def magnitude(vector: Tensor) -> Tensor:
    """In scratch memory."""
    return torch.abs(vector, out=scratch("magnitude", vector, vector.dtype))


def ranked(size: Tensor) -> Tensor:
    """Positions along the last axis in ascending order of numbers that are not negative; stable.

    float32 numbers are sorted together with their positions, as 64-bit integers: several times faster
    than sorting positions by numbers.
    """
    length = size.shape[-1]
    if size.dtype != torch.float32 or length >= 1 << 31:
        return torch.argsort(size, dim=-1, stable=True)
    bits = size.cpu().view(torch.int32)
    pairs = scratch("pairs", bits, torch.int64).copy_(bits)
    pairs.bitwise_left_shift_(32).bitwise_or_(torch.arange(length))
    pairs.numpy().sort(axis=-1)
    return pairs.bitwise_and_(0xFFFFFFFF).to(size.device)


def masked(vector: Tensor, kept: Tensor) -> Tensor:
    """The vector with what is not kept set to zero, in place."""
    kept = kept.view(vector.shape)
    if vector.is_cpu and kept.is_cpu:
        # A few thousand elements of the mask at a time become floats, which takes less memory than all at once.
        with np.errstate(invalid="ignore"):  # infinity becomes NaN, which whoever looks at the result refuses
            np.multiply(vector.numpy(), kept.numpy(), out=vector.numpy())
        return vector
    return vector.mul_(kept.to(vector.device))


def _kept_from(vector: Tensor, least: float, quota: int, equal: int) -> Tensor:
    """What is larger than a bound, and the first `quota` of the `equal` elements that equal it, in place."""
    narrow = np.float32 if vector.dtype == torch.float32 else np.float64
    value = narrow(least)
    if quota == 0 or quota == equal:
        return _shrunk(vector, float(np.nextafter(value, narrow(-1)) if quota else value))
    size = magnitude(vector).reshape(-1).numpy(force=True)
    kept = size > value
    kept[np.flatnonzero(size == value)[:quota]] = True
    return masked(vector, torch.from_numpy(kept))


def _shrunk(vector: Tensor, bound: float) -> Tensor:
    """The vector with magnitudes up to a bound set to zero, in place; a negative bound keeps all."""
    return vector if bound < 0 else torch.hardshrink(vector, bound, out=vector)


def _below(boundary: Boundary, rank: int, place: Place) -> float | None:
    """A magnitude: those of a block up to it rank below a rank, others do not; None if equal ones do and do not."""
    earlier, here = boundary.equals(place)
    skipped = min(max(rank - boundary.below - earlier, 0), here)
    if skipped not in (0, here):
        return None
    return boundary.value if skipped else _just_below(boundary.value)


def _just_below(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(-1)))


def _ranked_from(size: np.ndarray, boundary: Boundary, rank: int, place: Place) -> np.ndarray:
    """Which elements rank at least so high, from the smallest; equal ones by position."""
    value = size.dtype.type(boundary.value)
    kept = size > value
    equal = np.flatnonzero(size == value)
    skipped = max(rank - boundary.below - boundary.equals(place)[0], 0)
    kept[equal[skipped:]] = True
    return kept


def unit_interval(name: str, values: Sequence[float], *, zero: bool = False, one: bool = True) -> list[str]:
    """What is wrong with numbers that should lie between 0 and 1, one line each."""
    wrong = [
        v
        for v in values
        if not math.isfinite(v) or v < 0 or v > 1 or (v == 0 and not zero) or (v == 1 and not one)
    ]
    span = ("[" if zero else "(") + "0, 1" + ("]" if one else ")")
    return [f"{name} = {v:g} is not in {span}" for v in dict.fromkeys(wrong)]
