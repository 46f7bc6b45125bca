"""A method and the options to call it with; how results are compared."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

#: Relative error allowed in each dtype: what rounding does to a network, with room to spare.
TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 3e-2,
    torch.float16: 3e-3,
}


Weights = dict[str, Tensor]
Method = Callable[..., object]


@dataclass(frozen=True, eq=False)
class Call:
    """A method, and the options to call it with."""

    function: Method
    options: Mapping[str, object]

    def takes(self, name: str) -> bool:
        return name in inspect.signature(self.function).parameters

    def __call__(self, *given: object, **offered: object) -> object:
        """Call it with what it takes of the keywords offered."""
        known = {name: value for name, value in offered.items() if self.takes(name)}
        return self.function(*given, **{**known, **self.options})


Law = Callable[[Call], None]


# How results are compared.


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value."""
    if ours.shape != theirs.shape or not bool(ours.isfinite().all()):
        return math.inf
    if not ours.numel():
        return 0.0
    scale = theirs.double().abs().max().item() or 1.0
    return (ours.double() - theirs.double()).abs().max().item() / scale


def close(ours: Tensor, theirs: Tensor, what: str, tolerance: float) -> None:
    """Refuse a result that differs by more than a part of the largest value."""
    error = relative_error(ours, theirs)
    if not error <= tolerance:
        raise AssertionError(f"{what} differs by {error:.1e} of its largest value, {tolerance:.0e} allowed")


def all_close(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], what: str, tolerance: float) -> None:
    """Refuse a state dict in which any tensor differs so."""
    if ours.keys() != theirs.keys():
        raise AssertionError(f"{what} has other keys: {sorted(ours.keys() ^ theirs.keys())}")
    for key, tensor in ours.items():
        close(tensor, theirs[key], f"{what}, {key}", tolerance)


def same_bytes(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Refuse a result that differs in a bit."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        raise AssertionError(
            f"{what}: {ours.dtype} {tuple(ours.shape)}, then {theirs.dtype} {tuple(theirs.shape)}"
        )
    if not torch.equal(ours, theirs):
        count = int((ours != theirs).sum())
        raise AssertionError(
            f"{what}: {count} of {ours.numel()} numbers differ, by up to {relative_error(ours, theirs):.1e}"
        )


def all_same_bytes(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], what: str) -> None:
    """Refuse a state dict in which any tensor does."""
    if ours.keys() != theirs.keys():
        raise AssertionError(f"{what} has other keys: {sorted(ours.keys() ^ theirs.keys())}")
    for key, tensor in ours.items():
        same_bytes(tensor, theirs[key], f"{what}, {key}")


EXACT = TOLERANCE[torch.float64]


R = TypeVar("R")


def with_generator(seed: int, run: Callable[[], R]) -> R:
    """Run with torch's global generator in a state of its own: nobody's results may depend on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return run()


def short(dtype: torch.dtype) -> str:
    """A dtype's name."""
    return str(dtype).removeprefix("torch.")
