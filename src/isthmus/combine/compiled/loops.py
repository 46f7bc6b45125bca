"""When the loops of `kernels` are used: where numba is there (`isthmus[fast]`), once there is enough to do for them.

They change no bit of any result. To import numba takes a quarter of a second, to compile them seven: once per machine,
dtype and number of models, since numba keeps what it has compiled.
"""

from __future__ import annotations

import importlib
import math
import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.combine.blocks import LANES, Block, scratch, total_of_lanes, widened

#: Elements that a process goes over before it asks for the loops: a second's work, about.
WORTH = 1 << 27

#: Bytes of private memory that numba takes: so many while it compiles, 50 million where that was done before.
MEMORY = 140_000_000

Mask = NDArray[np.bool_]


class Unavailable(Exception):  # noqa: N818  # the caller does it by calls
    """Loops cannot be compiled, or not be read from where they are kept."""


class Loops:
    """The compiled loops of this process.

    Args:
        worth: how many elements are gone over without them first.

    Attributes:
        allowed: whether there is memory for them.
    """

    def __init__(self, worth: int = WORTH):
        self.allowed = True
        self._worth = worth
        self._lock = threading.Lock()
        self._seen = 0
        self._tried = False
        self._found: ModuleType | None = None

    def after(self, count: int) -> ModuleType | None:
        """The loops, if they are there and allowed, once so many more elements make them worth it."""
        if not self._tried and self.allowed:
            with self._lock:
                self._seen += count
                if self._seen > self._worth and not self._tried:
                    self._found, self._tried = _imported(), True
        return self._found if self.allowed else None

    def run(self, name: str, *arguments: object) -> None:
        """Run one of them.

        Raises:
            Unavailable: it could not be had; nothing is asked of loops from now on.
        """
        if (found := self._found) is None:  # another thread has found out
            raise Unavailable
        try:
            getattr(found, name)(*arguments)
        except Exception as error:  # whatever a compiler and its files may raise
            self._found = None
            warnings.warn(
                f"without compiled loops from here on: {type(error).__name__}: {error} (numba keeps them beside "
                f"{__package__}, or in NUMBA_CACHE_DIR: is there room, are its files whole?)",
                RuntimeWarning,
                stacklevel=2,
            )
            raise Unavailable from error


def _imported() -> ModuleType | None:
    try:
        from numba.core import config

        if getattr(config, "DISABLE_JIT", False):  # NUMBA_DISABLE_JIT, by which nothing is compiled
            return None
        return importlib.import_module("isthmus.combine.compiled.kernels")
    except (ImportError, OSError):  # it is not installed, not whole, or not made for this version of numpy
        return None


LOOPS = Loops()


def allow(room: int | None) -> None:
    """Let loops be used from now on if there is memory for them.

    Args:
        room: bytes that nothing else needs; None for no limit.
    """
    LOOPS.allowed = room is None or room >= MEMORY


@dataclass(frozen=True)
class Kept:
    """What is kept of a block of a task vector.

    Attributes:
        mask: of what is kept, flat.
        bound: without a mask, the magnitude up to which elements are set to zero; below zero all are kept.
        top: the magnitude above which elements are multiplied by zero, as are those up to `bound` then; NaN for none.
        times: what is kept is multiplied by this.
    """

    mask: Mask | None = None
    bound: float = -1.0
    top: float = math.nan
    times: float = 1.0


@dataclass(frozen=True)
class Pair:
    """A block of a model and of the base, as compiled loops read them.

    Attributes:
        loops: which go over it.
        model: flat, float32 or the bits of bfloat16.
        base: the same.
        length: of a row, where blocks have rows.
    """

    loops: Loops
    model: NDArray[np.generic]
    base: NDArray[np.generic]
    length: int

    def summed(self, kept: Mask) -> tuple[float, float]:
        """The sum of magnitudes of the task vector, and of what a mask keeps of it."""
        lanes = _lanes()
        self.loops.run("summed", self.model, self.base, kept, lanes)
        return _totals(lanes)

    def drawn_by_rank(
        self, distances: NDArray[np.int64], width: int, low: Mask, high: Mask
    ) -> tuple[Mask, tuple[float, float]]:
        """A mask by rank (`by_rank.kept_by_rank`), and the sums of `summed`.

        Args:
            distances: (rows, runs), of each run to its peers, from 1 to length - 1.
            width: elements of a run.
            low: which elements are kept whatever their rank.
            high: which are kept if they outrank their peers.
        """
        kept, lanes = np.empty(self.model.size, np.bool_), _lanes()
        self.loops.run(
            "drawn_by_rank",
            *(self.model, self.base, self.length, distances, width, low, high, kept, lanes),
        )
        return kept, _totals(lanes)


@dataclass(frozen=True)
class Sum:
    """How trimmed task vectors become one.

    Attributes:
        factors: what each is multiplied by.
        weights: what each is multiplied by where it is added up.
        elects: whether signs are elected, and only what agrees is added up.
        counts: by the number of signs, not by the sum.
        minus: whether minus wins an even vote.
        shares: what the sum of those that agree is divided by: the sum of these, of those that do; empty for nothing.
        counted: whether they are all the same, and those that agree are counted.
        lam: what the result is multiplied by.
    """

    factors: Sequence[float]
    weights: Sequence[float]
    elects: bool = False
    counts: bool = False
    minus: bool = False
    shares: Sequence[float] = ()
    counted: bool = False
    lam: float = 1.0


def merged(pairs: Sequence[Pair], kept: Sequence[Kept], how: Sum, like: Tensor) -> Tensor:
    """base + lam * the sum of what is kept, in scratch memory.

    Args:
        pairs: one per model.
        kept: likewise.
        how: it becomes one.
        like: of the shape of the result.
    """
    out = scratch("merged", like, torch.float32)
    masks = tuple(_ALL if one.mask is None else one.mask for one in kept)
    divides = 0 if not how.shares else 1 if how.counted else 2
    pairs[0].loops.run(
        "merged",
        tuple(pair.model for pair in pairs),
        pairs[0].base,
        masks,
        _singles(one.bound for one in kept),
        _singles(one.top for one in kept),
        _singles(one.times for one in kept),
        _singles(how.factors),
        _singles(how.weights),
        how.elects,
        how.counts,
        np.float32(-1.0 if how.minus else -0.0),
        divides,
        _singles(how.shares or (1.0,)),
        np.float32(how.lam),
        out.view(-1).numpy(),
    )
    return out


_ALL = np.empty(0, np.bool_)


def _singles(numbers: Iterable[float]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # infinity, as torch makes of them
        return np.array(list(numbers), np.float64).astype(np.float32)


def pairs(block: Block) -> list[Pair] | None:
    """Each model's block with the base's, if there are compiled loops for them and they are worth it."""
    assert block.base is not None
    tensors = (block.base, *block.models)
    if not all(t.is_cpu and t.dtype in _READ for t in tensors):
        return None
    if LOOPS.after(block.base.numel() * len(block.models)) is None:
        return None
    stored = all(t.dtype == torch.bfloat16 for t in tensors)
    base, *models = (_array(t, stored, f"wide {i}") for i, t in enumerate(tensors))
    length = block.base.shape[-1] if block.base.dim() else 1
    return [Pair(LOOPS, model, base, length) for model in models]


_READ = (torch.bfloat16, torch.float16, torch.float32)


def _array(tensor: Tensor, stored: bool, name: str) -> NDArray[np.generic]:
    flat = tensor.reshape(-1)
    wide = flat.view(torch.int16) if stored else widened(flat, torch.float32, name)
    found = wide.numpy().view(np.uint16 if stored else np.float32)
    return found if found.flags.aligned else found.copy()  # a header may have any length


def _lanes() -> NDArray[np.float32]:
    return np.zeros((2, LANES), np.float32)


def _totals(lanes: NDArray[np.float32]) -> tuple[float, float]:
    whole, kept = (total_of_lanes(of) for of in lanes)
    return whole, kept
