"""Keeping elements at random, those of larger magnitude more often: DELLA's masks, without sorting.

An element is to be kept with a probability that grows in equal steps with its rank in its row. Ranks need not be
known for that: the element is compared with another one of its row, drawn at random, and is the larger of the two
in rank of length - 1 cases. One random number decides all: below one bound the element is kept, above another it
is dropped, and between the two it says which element to compare with.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.combine.blocks import Layout, Place, scratch
from isthmus.combine.random_masks import bernoulli, integers
from isthmus.combine.trimming import HELD, Drawn, magnitude, masked

# Up to this length, float32 has some hundred random numbers for each element of a row.
_SHORT = 1 << 16


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
    length = vector.shape[-1]
    if length == 1 or not epsilon:
        return bernoulli(place, stream, density)
    wide, whole = (torch.float32, torch.int32) if length <= _SHORT else (torch.float64, torch.int64)
    size = magnitude(vector).cpu()
    # Below 0 where the element is kept whatever its rank, from length - 1 on where it is dropped; between, which of
    # the others to compare with. Product and sum are rounded one by one, so that all machines agree.
    drawn = scratch("drawn", size, wide).copy_(integers(place, stream).view(size.shape))
    scale = (length - 1) / (2 * epsilon)
    drawn.mul_(scale * 2.0**-32).add_(scale * (0.5 - density + epsilon))
    own, position = drawn.numpy(), torch.arange(length, dtype=wide)
    kept, open_, later, larger, equal = (
        scratch(name, size, torch.bool).numpy() for name in ("kept", "open", "later", "larger", "equal")
    )
    np.less(own, 0, out=kept)
    np.less(own, length - 1, out=open_)
    # The others are all but the element itself: those behind it are one further on.
    np.greater_equal(own, position.numpy(), out=later)
    drawn.add_(torch.ge(drawn, position, out=scratch("step", size, wide))).clamp_(0, length - 1)
    other = scratch("other", size, whole).copy_(drawn)
    other.add_(torch.arange(0, size.numel(), length, dtype=whole).unsqueeze(-1))
    peer = scratch("peer", size, size.dtype)
    torch.index_select(size.view(-1), 0, other.view(-1), out=peer.view(-1))
    np.greater(size.numpy(), peer.numpy(), out=larger)
    np.equal(size.numpy(), peer.numpy(), out=equal)
    equal &= ~later
    larger |= equal
    larger &= open_
    kept |= larger
    return torch.from_numpy(kept).view(-1)


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
