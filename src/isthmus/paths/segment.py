"""The straight line between two networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from isthmus.errors import InputError, MismatchError


@runtime_checkable
class Path(Protocol):
    """A curve of networks: `at(0)` is where it starts, `at(1)` where it ends."""

    def at(self, t: float) -> dict[str, Tensor]:
        """The weights at `t`, a number from 0 to 1."""
        ...


@dataclass(frozen=True, eq=False)  # tensors have no one truth value to compare by
class Segment:
    """Linear interpolation of two state dicts: (1 - t) a + t b.

    Interpolated in float64 and cast back to the tensors' dtype (the wider of the two where they
    differ). Tensors that count (integers, booleans) cannot be interpolated and are those of `a`.
    At the ends the weights are `a` and `b` to the bit. Every tensor returned is new, and two keys
    that are one tensor in `a` and in `b` (tied weights) are one tensor on the way.

    Args:
        a: the weights at t = 0.
        b: the weights at t = 1, with the keys and shapes of `a`.

    Raises:
        MismatchError: keys or shapes differ; all of them are named.

    Source: Frankle et al. 2020 (arXiv:1912.05671), section 2. t is the weight of `b` here and
        everywhere in isthmus; some papers count it from the other end.

    Examples:
        >>> Segment({"w": torch.zeros(2)}, {"w": torch.ones(2)}).at(0.25)
        {'w': tensor([0.2500, 0.2500])}
    """

    a: Mapping[str, Tensor] = field(repr=False)
    b: Mapping[str, Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        wrong = [f"{key}    only in a" for key in self.a if key not in self.b]
        wrong += [f"{key}    only in b" for key in self.b if key not in self.a]
        for key, start in self.a.items():
            end = self.b.get(key)
            if end is None:
                continue
            if start.shape != end.shape:
                wrong.append(f"{key}    a {tuple(start.shape)}    b {tuple(end.shape)}")
            elif _counts(start) != _counts(end):
                wrong.append(f"{key}    a {start.dtype}    b {end.dtype}")
        if wrong:
            raise MismatchError(
                f"no straight line joins the two: {len(wrong)} tensors differ in key, shape or kind",
                wrong,
                hint="a path joins two sets of weights of one architecture, already aligned",
            )

    def at(self, t: float) -> dict[str, Tensor]:
        """The weights at `t`.

        Args:
            t: from 0 (`a`) to 1 (`b`).

        Returns:
            A new state dict; its tensors are shared with nobody.

        Raises:
            InputError: `t` is outside 0..1.
        """
        if not 0 <= t <= 1:
            raise InputError(f"t = {t} is not on the segment, which runs from 0 to 1")
        # The pair is kept beside what was made of it: a lazy mapping's tensors would be freed, their ids used again.
        made: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
        weights: dict[str, Tensor] = {}
        for key, start in self.a.items():
            end = self.b[key]
            pair = (id(start), id(end))
            if pair not in made:
                made[pair] = (start, end, _between(start.detach(), end.detach(), float(t)))
            weights[key] = made[pair][2]
        return weights


def _counts(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _between(start: Tensor, end: Tensor, t: float) -> Tensor:
    if t in (0.0, 1.0):
        return (start if t == 0.0 else end).clone()
    if _counts(start):
        return start.clone()
    wide = torch.complex128 if start.is_complex() or end.is_complex() else torch.float64
    dtype = start.dtype if start.dtype == end.dtype else torch.promote_types(start.dtype, end.dtype)
    # lerp works from the nearer end, so a tensor that both share comes out as it is, at every t.
    return torch.lerp(start.to(wide), end.to(wide), t).to(dtype)
