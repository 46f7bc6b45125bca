"""Keeping elements at random, those of larger magnitude more often: DELLA's masks, without sorting.

An element is to be kept with a probability that grows in equal steps with its rank in its row. Ranks need not be
known for that: the element is compared with another one of its row, drawn at random, and is the larger of the two
in rank of length - 1 cases.

What is drawn: for each element one number, independent of all others; below one bound the element is kept, above
another it is dropped, and between the two the comparison decides. For each run of up to 64 neighbours of a row one
distance, uniform in 1 .. length - 1: their peers lie so much further on in the row, which begins again at its end,
and are read in one piece.

So each element's own probability is exact, and given the distances elements are independent. Two elements of different
runs are independent without that too. Two of one run share its distance: if C is the covariance, over all distances,
of their being larger than their peers, that of their being kept is 4 epsilon^2 C: between -epsilon^2 and epsilon^2,
and near zero unless magnitudes go up and down along the row together.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from isthmus.combine.blocks import BLOCK, Layout, Place, scratch
from isthmus.combine.compiled import Kept, Mask, Pair
from isthmus.combine.random_masks import below, bernoulli, integers
from isthmus.combine.trimming import HELD, Drawn, magnitude, masked, ranked

#: Neighbouring elements of a row that are compared with elements at one distance.
RUN = 64

# Elements that are compared at once: a few times as many bytes fit in a core's own cache.
_TOGETHER = 1 << 15

# The last rows of a block are fewer, and so are those of a tensor's last block.
_TABLES_HELD = 4


class AtRandomByRank(Drawn):
    """Keeps an element with a probability that grows with the rank of its magnitude in its row.

    A row is all that one output reads: for a convolution, a filter. Of equal magnitudes the earlier one ranks
    lower.

    Args:
        density: the mean probability, in (0, 1].
        epsilon: the smallest and largest probability are this much below and above it.
        stream: which of the models' random numbers to use.
        rescale: divide what is kept by its own probability.
        held: bytes of masks to remember.
    """

    layout: Layout = "filters"

    def __init__(self, density: float, epsilon: float, stream: int, rescale: bool, held: int = HELD):
        super().__init__(held)
        self.compiles = not rescale  # each by its own probability, and that by its rank: rows are sorted
        self._density = density
        self._epsilon = epsilon
        self._stream = stream
        self._rescale = rescale

    def apply(self, vector: Tensor, place: Place) -> Tensor:
        if self._density >= 1:
            return vector
        chance = self._probabilities(vector) if self._rescale else None
        kept = masked(vector, self.mask(vector, place))
        return kept if chance is None else kept.div_(chance)

    def draw(self, vector: Tensor, place: Place) -> Tensor:
        if self._density >= 1:
            return torch.ones(vector.numel(), dtype=torch.bool)
        return kept_by_rank(vector, place, self._stream, self._density, self._epsilon)

    def drawn(self, pair: Pair, place: Place) -> tuple[Mask, tuple[float, float] | None]:
        if self._density >= 1:
            return np.ones(place.stop - place.start, np.bool_), None
        if pair.length == 1 or not self._epsilon:
            return bernoulli(place, self._stream, self._density).numpy(), None
        low, high = below(place, self._stream, _bounds(self._density, self._epsilon))
        distances = _shifts(place, self._stream, pair.length).numpy() + 1
        return pair.drawn_by_rank(distances, _width(pair.length), low, high)

    def told(self, pair: Pair, place: Place) -> Kept | None:
        if self._density >= 1:
            return Kept()
        held = self._remembered(place)
        return Kept(self.drawn(pair, place)[0] if held is None else held)

    def _probabilities(self, vector: Tensor) -> Tensor:
        length = vector.shape[-1]
        if length == 1:
            return torch.full_like(vector, self._density)
        step = 2 * self._epsilon / (length - 1)
        ladder = self._density - self._epsilon + step * torch.arange(length, dtype=torch.float64)
        chance = scratch("chance", vector, vector.dtype)
        return chance.scatter_(-1, ranked(magnitude(vector)), ladder.to(vector).expand(vector.shape))


def kept_by_rank(
    vector: Float[Tensor, "rows length"], place: Place, stream: int, density: float, epsilon: float
) -> Bool[Tensor, " n"]:
    """One draw per element of a block, true with probability density + epsilon (2 rank / (length - 1) - 1).

    Args:
        vector: rows in which elements rank by magnitude, and where that is equal by position.
        place: where the block lies.
        stream: which of the models' random numbers to use.
        density: the mean probability.
        epsilon: how far the probabilities reach below and above it.
    """
    if vector.shape[-1] == 1 or not epsilon:
        return bernoulli(place, stream, density)
    kept, open_ = below(place, stream, _bounds(density, epsilon))
    open_ &= _outrank(vector.cpu(), place, stream).reshape(-1)
    kept |= open_
    return torch.from_numpy(kept)


class _Table:
    """Memory in which rows are compared with themselves, run by run, and the views of it.

    A row is followed by itself, less one: what is found there lies before the element that it is compared with,
    which then outranks its equal.

    Args:
        rows: at once.
        length: of a row.
        dtype: of integers.
    """

    def __init__(self, rows: int, length: int, dtype: torch.dtype):
        runs, width = _runs(length), _width(length)
        twice = torch.empty(rows, length + runs * width, dtype=dtype)
        self._size, self._before = twice[:, :length], twice[:, length : 2 * length]
        self._windows = twice.as_strided((twice.numel() - width + 1, width), (1, 1))
        self._peers = torch.empty(rows * runs, width, dtype=dtype)
        self._own, self._other = self._size.numpy(), self._peers.view(rows, -1)[:, :length].numpy()
        nearest = torch.arange(1, runs * width + 1, width)
        self._nearest = torch.arange(0, twice.numel(), twice.shape[-1]).unsqueeze(-1) + nearest
        self._largest = torch.iinfo(dtype).max

    def compare(self, bits: Tensor, shifts: Tensor, larger: NDArray[np.bool_]) -> None:
        """Which numbers are larger than others of their rows, in magnitude.

        Args:
            bits: numbers as integers; but for the sign those of magnitudes are in the same order.
            shifts: how far behind the nearest element those lie that a run is compared with.
            larger: what is found.
        """
        torch.bitwise_and(bits, self._largest, out=self._size)
        torch.sub(self._size, 1, out=self._before)
        starts = torch.add(shifts, self._nearest).view(-1)
        torch.index_select(self._windows, 0, starts, out=self._peers)
        np.greater(self._own, self._other, out=larger)


class _Tables(threading.local):
    def __init__(self) -> None:
        self._held: dict[tuple[int, int, torch.dtype], _Table] = {}

    def of(self, rows: int, length: int, dtype: torch.dtype) -> _Table:
        """A table of the calling thread: making its views takes as long as comparing."""
        kind = rows, length, dtype
        if (found := self._held.get(kind)) is not None:
            return found
        made = _Table(*kind)
        if length <= BLOCK:  # as for scratch memory
            if len(self._held) == _TABLES_HELD:
                self._held.clear()
            self._held[kind] = made
        return made


_TABLES = _Tables()


def _runs(length: int) -> int:
    """Runs of a row; they are as even as they can be."""
    return -(-length // RUN)


def _width(length: int) -> int:
    """Elements of a run; the last one of a row may be short of a few."""
    return -(-length // _runs(length))


def _bounds(density: float, epsilon: float) -> tuple[float, float]:
    """The draws below which the smallest and the largest element of a row are kept."""
    return density - epsilon, density + epsilon


def _shifts(place: Place, stream: int, length: int) -> Int64[Tensor, "rows runs"]:
    """How far behind the next element the peers of each run of a block are, from 0 to length - 2."""
    runs = _runs(length)
    first, last = place.start // length * runs, place.stop // length * runs
    return integers(place, stream, range(first, last), length - 1).view(-1, runs)


def _outrank(vector: Tensor, place: Place, stream: int) -> NDArray[np.bool_]:
    """Which elements of rows rank above the one that they are compared with."""
    rows, length = vector.shape
    bits = vector.view(torch.int32 if vector.dtype == torch.float32 else torch.int64)
    shifts = _shifts(place, stream, length)
    larger = scratch("larger", bits, torch.bool).numpy()
    step = max(_TOGETHER // length, 1)
    for begin, piece, shift in zip(range(0, rows, step), bits.split(step), shifts.split(step), strict=True):
        table = _TABLES.of(len(piece), length, bits.dtype)
        table.compare(piece, shift, larger[begin : begin + step])
    return larger
