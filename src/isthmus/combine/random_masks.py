"""Random numbers of an element, from the seed, the tensor's name, the model and the element's position alone.

A counter-based generator (Philox 4x64-10, Salmon et al., SC 2011) is asked for exactly the numbers of a block, so
that a stream draws what memory draws, whatever the blocks and threads.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from isthmus.combine.blocks import Place


def _key(place: Place, stream: int) -> NDArray[np.uint64]:
    # JSON-like, so that no name can pass for another one's seed or stream.
    told = f"{place.seed}/{stream}/{place.key}".encode()
    return np.frombuffer(hashlib.blake2b(told, digest_size=16).digest(), dtype="<u8").astype(np.uint64)


def _draw(place: Place, stream: int, bits: int) -> NDArray[np.unsignedinteger]:
    """Uniform integers of 16 or 32 bits, one per element of a place."""
    each = 64 // bits
    counter, skipped = divmod(place.start, 4 * each)  # one count of the counter gives four 64-bit words
    need = skipped + place.stop - place.start
    generator = np.random.Philox(key=_key(place, stream), counter=[counter, 0, 0, 0])
    words = generator.random_raw(-(-need // each))
    parts = words.astype("<u8", copy=False).view(f"<u{bits // 8}")
    return parts[skipped:need]


def bernoulli(place: Place, stream: int, probability: float) -> Bool[Tensor, " n"]:
    """One draw per element of a place, true with a probability.

    16 random bits decide, and where they leave it open (once in 65,536) another 32: the probability is met
    to 48 bits.
    """
    drawn = _draw(place, stream, 16)
    whole, rest = divmod(probability * 65536, 1)
    if whole >= 65536:
        return torch.ones(len(drawn), dtype=torch.bool)
    kept = drawn < np.uint16(whole)
    if rest:
        open_ = np.flatnonzero(drawn == np.uint16(whole))
        kept[open_] = _mixed(open_.astype(np.uint64) + np.uint64(place.start), _key(place, stream)) < rest
    return torch.from_numpy(kept)


def uniform(place: Place, stream: int) -> Float[Tensor, " n"]:
    """One float32 number per element of a place, in [0, 1), of 24 random bits."""
    drawn = _draw(place, stream, 32)
    return torch.from_numpy((drawn >> np.uint32(8)).astype(np.float32) * np.float32(2**-24))


def _mixed(counter: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) for a few counters (the finaliser of SplitMix64, Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        x = (counter + key[0]) * np.uint64(0x9E3779B97F4A7C15) + key[1]
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
