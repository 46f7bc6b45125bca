"""Random numbers of an element, from the seed, the tensor's name, the model and the element's position alone.

A generator whose position can be set (PCG64 with the DXSM output, O'Neill 2014; numpy's) is asked for exactly
the numbers of a block, so that a stream draws what memory draws, whatever the blocks and threads.
"""

from __future__ import annotations

import hashlib
import threading

import numpy as np
import torch
from jaxtyping import Bool, Int32
from numpy.typing import NDArray
from torch import Tensor

from isthmus.combine.blocks import Place


class _Generator(threading.local):
    def __init__(self) -> None:
        self.bits = np.random.PCG64DXSM(0)


_OWN = _Generator()


def _key(place: Place, stream: int) -> bytes:
    # JSON-like, so that no name can pass for another one's seed or stream.
    told = f"{place.seed}/{stream}/{place.key}".encode()
    return hashlib.blake2b(told, digest_size=32).digest()


def _draw(place: Place, stream: int, bits: int) -> NDArray[np.unsignedinteger]:
    """Uniform integers of 16 or 32 bits, one per element of a place."""
    key, each = _key(place, stream), 64 // bits
    first, skipped = divmod(place.start, each)
    start, step = (int.from_bytes(half, "little") for half in (key[:16], key[16:]))
    generator = _OWN.bits
    generator.state = {
        "bit_generator": "PCG64DXSM",
        "state": {"state": start, "inc": step | 1},  # an odd step makes a sequence of its own
        "has_uint32": 0,
        "uinteger": 0,
    }
    generator.advance(first)
    need = skipped + place.stop - place.start
    words = generator.random_raw(-(-need // each))
    return words.astype("<u8", copy=False).view(f"<u{bits // 8}")[skipped:need]


def bernoulli(place: Place, stream: int, probability: float) -> Bool[Tensor, " n"]:
    """One draw per element of a place, true with a probability.

    16 random bits decide, and where they leave it open (once in 65,536) another 56: the probability is met
    as exactly as it can be written.
    """
    drawn = _draw(place, stream, 16)
    whole, rest = divmod(probability * 65536, 1)
    if whole >= 65536:
        return torch.ones(len(drawn), dtype=torch.bool)
    kept = drawn < np.uint16(whole)
    if rest:
        for index in np.flatnonzero(drawn == np.uint16(whole)).tolist():
            kept[index] = _more(place, stream, place.start + index) < rest
    return torch.from_numpy(kept)


def integers(place: Place, stream: int) -> Int32[Tensor, " n"]:
    """One number per element of a place, all from -2^31 to 2^31 - 1 equally likely."""
    return torch.from_numpy(_draw(place, stream, 32).view("<i4").astype(np.int32, copy=False))


def _more(place: Place, stream: int, element: int) -> float:
    """Another uniform number of one element, in [0, 1), where those of `_draw` do not suffice."""
    told = hashlib.blake2b(element.to_bytes(8, "little"), key=_key(place, stream), digest_size=7).digest()
    return int.from_bytes(told, "little") / 2.0**56
