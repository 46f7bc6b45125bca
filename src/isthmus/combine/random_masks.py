"""Random numbers of an element, from the seed, the tensor's name, the model and the element's position alone.

A generator whose position can be set (PCG64 with the DXSM output, O'Neill 2014; numpy's) is asked for exactly
the numbers of a block, so that a stream draws what memory draws, whatever the blocks and threads. What is drawn
for runs of elements comes from a sequence of its own, and is found by the number of the run.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy.typing import NDArray
from torch import Tensor

from isthmus.combine.blocks import Place


class _Generator(threading.local):
    def __init__(self) -> None:
        self.bits = np.random.PCG64DXSM(0)


_OWN = _Generator()


def _key(place: Place, sequence: str) -> bytes:
    # A sequence has no slash in it, so that no name can pass for another one's seed or sequence.
    told = f"{place.seed}/{sequence}/{place.key}".encode()
    return hashlib.blake2b(told, digest_size=32).digest()


def _draw(key: bytes, numbers: range, bits: int) -> NDArray[np.unsignedinteger]:
    """Some uniform integers of 16 or 64 bits of a sequence."""
    each = 64 // bits
    first, skipped = divmod(numbers.start, each)
    start, step = (int.from_bytes(half, "little") for half in (key[:16], key[16:]))
    generator = _OWN.bits
    generator.state = {
        "bit_generator": "PCG64DXSM",
        "state": {"state": start, "inc": step | 1},  # an odd step makes a sequence of its own
        "has_uint32": 0,
        "uinteger": 0,
    }
    generator.advance(first)
    need = skipped + len(numbers)
    words = generator.random_raw(-(-need // each))
    return words.astype("<u8", copy=False).view(f"<u{bits // 8}")[skipped:need]


def below(place: Place, stream: int, bounds: Sequence[float]) -> list[NDArray[np.bool_]]:
    """Of each element of a place one uniform draw from [0, 1), compared with all bounds.

    16 random bits decide, and where they leave it open (once in 65,536 for each bound) another 56: the
    probabilities are met as exactly as they can be written.

    Args:
        place: where the elements lie.
        stream: which of the models' random numbers to use.
        bounds: in [0, 1].

    Returns:
        For each bound, of which elements the draw is below it.
    """
    key = _key(place, f"{stream}")
    drawn = _draw(key, range(place.start, place.stop), 16)
    cuts = [divmod(bound * 65536, 1) for bound in bounds]
    under = [drawn < int(whole) for whole, _ in cuts]
    if equal := [drawn == int(whole) for whole, rest in cuts if rest]:
        for index in np.flatnonzero(functools.reduce(np.bitwise_or, equal)).tolist():
            number = drawn[index], _more(key, place.start + index)
            for one, cut in zip(under, cuts, strict=True):
                one[index] = number < cut
    return under


def bernoulli(place: Place, stream: int, probability: float) -> Bool[Tensor, " n"]:
    """One draw per element of a place, true with a probability (see `below`)."""
    return torch.from_numpy(below(place, stream, [probability])[0])


def integers(place: Place, stream: int, runs: range, count: int) -> Int64[Tensor, " runs"]:
    """One number per run of elements, all from 0 to count - 1 equally likely (to one part in 2^64 / count).

    Args:
        place: of the tensor that the runs are of.
        stream: which of the models' random numbers to use.
        runs: which ones, numbered through the whole tensor.
        count: how many numbers there are to choose from.
    """
    drawn = _draw(_key(place, f"{stream} runs"), runs, 64)
    return torch.from_numpy((drawn % np.uint64(count)).astype(np.int64))


def _more(key: bytes, element: int) -> float:
    """Another uniform number of one element, in [0, 1), where those of `_draw` do not suffice."""
    told = hashlib.blake2b(element.to_bytes(8, "little"), key=key, digest_size=7).digest()
    return int.from_bytes(told, "little") / 2.0**56
