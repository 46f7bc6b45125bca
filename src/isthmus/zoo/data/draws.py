"""Random draws that stay the same on every machine and with every version of numpy.

NumPy promises the raw stream of a bit generator and of `SeedSequence` for ever, but not what
`Generator.permutation` makes of it; a test split must not change with an upgrade.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt8, UInt64


def words(n: int, *seed: int) -> UInt64[np.ndarray, " n"]:
    """n uniform 64-bit words, determined by the sequence of non-negative seeds."""
    return np.random.PCG64(np.random.SeedSequence(seed)).random_raw(n)


def permutation(n: int, *seed: int) -> Int64[np.ndarray, " n"]:
    """A uniform permutation of n, determined by the sequence of non-negative seeds."""
    return np.argsort(words(n, *seed), kind="stable")


def stratified(labels: UInt8[np.ndarray, " n"], size: int, seed: int) -> Int64[np.ndarray, " size"]:
    """Rows of a random subset in which every class has its share of `size`, to within one; ascending.

    The shares are rounded by largest remainder, so that they sum to `size` exactly.
    """
    counts = np.bincount(labels)
    share = counts * size / len(labels)
    take = np.floor(share).astype(np.int64)
    most_cut = np.argsort(take - share, kind="stable")
    take[most_cut[: size - take.sum()]] += 1
    order = permutation(len(labels), seed)
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.cumsum(counts) - counts
    rows = [by_class[start : start + k] for start, k in zip(starts, take, strict=True)]
    return np.sort(np.concatenate(rows))
