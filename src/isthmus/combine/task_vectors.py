"""The rules of trimmed and elected task vectors: what TIES, DARE, Breadcrumbs and DELLA have in common.

Of each model's difference from the base some elements are kept (`trimming`), they are weighted, an election may
decide each element's sign, and what agrees with it is added up, divided, scaled, and added to the base.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from isthmus.combine import compiled
from isthmus.combine.blocks import (
    Block,
    BlockRule,
    Place,
    Scope,
    arithmetic,
    positive,
    scratch,
    sign_bits,
    task_vector,
    total,
    turn,
    widened,
)
from isthmus.combine.order_statistics import thinned
from isthmus.combine.trimming import Trim
from isthmus.errors import InputError

#: Whose arithmetic. Each names one set of a rule's options; an option that is given wins.
Convention = Literal["paper", "mergekit", "peft", "fusion-bench"]

#: What an agreeing sum is divided by: the weights of the models in it, their number, or nothing.
Divide = Literal["weights", "count", "none"]

T = TypeVar("T")


@dataclass(frozen=True)
class Election:
    """How the sign of an element is decided.

    Attributes:
        vote: by the sum of the models' elements, or by the number of their signs.
        weighted: whether the models' weights count in the vote.
        tie: the sign where the vote is even: plus, or that of most elements of the vote.
    """

    vote: Literal["sum", "count"] = "sum"
    weighted: bool = True
    tie: Literal["plus", "majority"] = "plus"

    @property
    def wrong(self) -> list[str]:
        """What is not among the choices."""
        return [
            *wrong_choice("vote", self.vote, ("sum", "count")),
            *wrong_choice("tie", self.tie, ("plus", "majority")),
        ]


class TaskVectors(BlockRule):
    """base + lam * merged(trimmed task vectors).

    Args:
        weights: one per model.
        trims: one per model.
        election: how signs are decided; None adds up all that was kept.
        divide: what the sum is divided by.
        lam: what the result is multiplied by.
        norm: scale each trimmed task vector to its former sum of magnitudes.
        scope: whether trimming and norms see one tensor or all of the model's.
    """

    shows = True  # what is dropped is multiplied by zero, which makes NaN of what is not finite

    def __init__(
        self,
        weights: Sequence[float],
        trims: Sequence[Trim],
        *,
        election: Election | None = None,
        divide: Divide = "none",
        lam: float = 1.0,
        norm: bool = False,
        scope: Scope = "tensor",
    ):
        self._weights = tuple(weights)
        self._trims = tuple(trims)
        self._election = election
        self._divide = divide
        self._lam = lam
        self._norm = norm
        self._scales = [1.0] * len(self._weights)
        self._even = 1.0
        self._trimming = max((t.passes for t in trims), default=0)
        self.layout = trims[0].layout if trims else "elements"
        self.scope = scope
        self.held = sum(t.held for t in trims) if norm else 0
        majority = election is not None and election.tie == "majority"
        self.passes = self._trimming + norm + majority
        self._compiles = all(trim.compiles for trim in trims)
        # What each is multiplied by where it is added up: without an election, and after it.
        self._parts_of_sum = tuple(weight / self._whole() for weight in self._weights)
        self._left = (1.0,) * len(self._weights) if election and election.weighted else self._weights
        # What the sum of those that agree is divided by, of each that does.
        shares: dict[Divide, tuple[float, ...]] = {"weights": self._weights, "none": ()}
        self._shares = shares.get(divide, (1.0,) * len(self._weights))
        self._counted = len(set(self._shares)) == 1 and len(self._shares) < 256  # in bytes

    def _whole(self) -> float:
        """What a sum without an election is divided by; one where that would be nothing."""
        whole = {"weights": sum(self._weights), "count": float(len(self._weights)), "none": 1.0}[self._divide]
        return whole if abs(whole) >= 1e-8 else 1.0

    # Measuring: the trims' own passes, then norms, then the vote of the votes.

    def skips(self, index: int) -> bool:
        return index < self._trimming and all(trim.skips(index) for trim in self._trims)

    def measure(self, index: int, block: Block) -> object:
        if index < self._trimming:
            return block.place, self._looks(index, block)
        if self._norm and index == self._trimming:
            return self._norms(block)
        base, dtype = _base(block)
        vote = self._vote(self._kept(block, base, dtype)).numpy(force=True)
        return int(np.count_nonzero(vote > 0)) - int(np.count_nonzero(vote < 0))

    def _looks(self, index: int, block: Block) -> list[object]:
        """What each model's trim wants to know in a pass."""
        assert block.base is not None
        looking = [trim for trim in self._trims if not trim.skips(index)]
        thin = all(trim.thins(index) for trim in looking)

        def seen(tensor: Tensor) -> Tensor:
            return thinned(tensor, block.place) if thin else tensor

        dtype = arithmetic(block)
        base = widened(seen(block.base), dtype, "base") if looking else block.base
        return [
            None
            if trim.skips(index)
            else trim.measure(index, task_vector(seen(model), base, dtype, "vector"))
            for trim, model in zip(self._trims, block.models, strict=True)
        ]

    def _norms(self, block: Block) -> list[tuple[float, float]]:
        """The sums of each task vector's magnitudes, and of those that are kept."""
        if self._compiles and (pairs := compiled.pairs(block)):
            with contextlib.suppress(compiled.Unavailable):
                found = [
                    trim.previewed(pair, block.place) for trim, pair in zip(self._trims, pairs, strict=True)
                ]
                if told := _all_of(found):
                    return told
        base, dtype = _base(block)
        return [
            _norms_of(trim, task_vector(model, base, dtype, "vector"), block.place)
            for trim, model in zip(self._trims, block.models, strict=True)
        ]

    def reduce(self, index: int, partials: Iterable[object]) -> None:
        if index < self._trimming:
            for partial in partials:
                place, found = cast("tuple[Place, list[object]]", partial)
                for trim, one in zip(self._trims, found, strict=True):
                    if not trim.skips(index):
                        trim.add(index, one, place)
            for trim in self._trims:
                if not trim.skips(index):
                    trim.close(index)
        elif self._norm and index == self._trimming:
            sums = [(0.0, 0.0)] * len(self._trims)
            for partial in partials:
                found = cast("list[tuple[float, float]]", partial)
                sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, found, strict=True)]
            # A vector of (almost) nothing is left alone, as in mergekit.
            self._scales = [a / b if min(a, b) >= 1e-7 else 1.0 for a, b in sums]
        else:
            self._even = -1.0 if sum(cast("Iterable[int]", partials)) < 0 else 1.0

    # Writing.

    def write(self, block: Block) -> Tensor:
        if self._compiles and (pairs := compiled.pairs(block)):
            with contextlib.suppress(compiled.Unavailable):
                found = [trim.told(pair, block.place) for trim, pair in zip(self._trims, pairs, strict=True)]
                if told := _all_of(found):
                    return compiled.merged(pairs, told, self._how, block.models[0])
        base, dtype = _base(block)
        kept = self._kept(block, base, dtype)
        merged = self._sum(kept) if self._election is None else self._agreed(kept)
        if self._lam != 1:
            merged.mul_(self._lam)
        return merged.add_(base)

    @property
    def _how(self) -> compiled.Sum:
        """The same as `_kept`, `_sum` and `_agreed`, for compiled loops."""
        factors = [self._factor(index) for index in range(len(self._weights))]
        if (election := self._election) is None:
            return compiled.Sum(factors, self._parts_of_sum, lam=self._lam)
        return compiled.Sum(
            factors,
            self._left,
            elects=True,
            counts=election.vote == "count",
            minus=self._even < 0,
            shares=self._shares,
            counted=self._counted,
            lam=self._lam,
        )

    def _kept(self, block: Block, base: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """The trimmed task vectors, scaled, and weighted where weights count in the vote."""
        found: list[Tensor] = []
        for index, (trim, model) in enumerate(zip(self._trims, block.models, strict=True)):
            kept = trim.apply(task_vector(model, base, dtype, f"vector {index}"), block.place)
            factor = self._factor(index)
            found.append(kept if factor == 1 else kept.mul_(factor))
        return found

    def _factor(self, index: int) -> float:
        votes = self._election is not None and self._election.weighted
        return self._scales[index] * (self._weights[index] if votes else 1.0)

    def _sum(self, kept: Sequence[Tensor]) -> Tensor:
        summed = kept[0].mul_(self._parts_of_sum[0])
        for weight, vector in zip(self._parts_of_sum[1:], kept[1:], strict=True):
            summed.add_(vector.mul_(weight))
        return summed

    def _vote(self, kept: Sequence[Tensor]) -> Tensor:
        """What decides each sign."""
        assert self._election is not None
        vote = scratch("vote", kept[0], kept[0].dtype)
        if self._election.vote == "sum":
            if len(kept) == 1:
                vote.copy_(kept[0])
            else:
                torch.add(kept[0], kept[1], out=vote)
            for vector in kept[2:]:
                vote.add_(vector)
        else:
            torch.sign(kept[0], out=vote)
            sign = scratch("sign", vote, vote.dtype)
            for vector in kept[1:]:
                vote.add_(torch.sign(vector, out=sign))
        return vote

    def _agreed(self, kept: Sequence[Tensor]) -> Tensor:
        """Of each element, the sum or mean of those with the elected sign; the memory of `kept` is used up."""
        assert self._election is not None
        vote = self._vote(kept)
        left = self._left
        # Signs are bits: what is elected is the sign bit of the vote, and turning a number round is flipping its own.
        # Of an even vote it is plus (the zero of a sum is +0 unless all its terms are -0), unless told otherwise.
        if self._even < 0:
            vote.sub_(torch.eq(vote, 0, out=scratch("even", vote, torch.bool)).view(torch.uint8))
        sign = sign_bits(vote)
        merged = kept[0]
        for vector in kept:
            turn(vector, sign)  # positive where they agree
        parts = self._parts(kept)
        for index, vector in enumerate(kept):
            vector.clamp_(min=0)
            if left[index] != 1:
                vector.mul_(left[index])
            if index:
                merged.add_(vector)
        if parts is not None:
            merged.div_(parts)
        turn(merged, sign)
        return merged

    def _parts(self, along: Sequence[Tensor]) -> Tensor | None:
        """What sums of the positive elements are divided by; one where there are none."""
        weights = self._shares
        if not weights:
            return None
        parts = scratch("parts", along[0], along[0].dtype)
        if self._counted:  # a quarter of the memory
            count, agrees = (scratch(name, parts, torch.uint8) for name in ("count", "agrees"))
            for index, vector in enumerate(along):
                positive(vector, out=agrees if index else count)
                if index:
                    count.add_(agrees)
            parts.copy_(count.clamp_(min=1))
            return parts if weights[0] == 1 else parts.mul_(weights[0])
        agrees = scratch("agrees", parts, parts.dtype)
        for index, (weight, vector) in enumerate(zip(weights, along, strict=True)):
            torch.gt(vector, 0, out=agrees if index else parts)
            parts.add_(agrees, alpha=weight) if index else parts.mul_(weight)
        return parts.add_(torch.eq(parts, 0, out=agrees))


def _all_of(found: Sequence[T | None]) -> list[T]:
    """All of them, or none if one is missing."""
    there = [one for one in found if one is not None]
    return there if len(there) == len(found) else []


def _norms_of(trim: Trim, vector: Tensor, place: Place) -> tuple[float, float]:
    size = vector.abs_()
    return total(size), total(trim.preview(size, place))


def _base(block: Block) -> tuple[Tensor, torch.dtype]:
    assert block.base is not None, "a rule of task vectors has a base"
    dtype = arithmetic(block)
    return widened(block.base, dtype, "base"), dtype


def chosen(
    name: str, convention: str, sets: Mapping[str, Mapping[str, object]], given: Mapping[str, object]
) -> dict[str, Any]:
    """The options of a convention, and in their place those that were given (are not None).

    Raises:
        InputError: the rule has no such convention.
    """
    if convention not in sets:
        raise InputError(f"{name} has no convention {convention!r}", hint=f"it has {', '.join(sets)}")
    return {**sets[convention], **{key: value for key, value in given.items() if value is not None}}


def wrong_choice(name: str, value: object, choices: Sequence[object]) -> list[str]:
    """A line if a value is none of the choices."""
    return [] if value in choices else [f"{name} = {value!r} is none of {', '.join(map(repr, choices))}"]


def refuse(name: str, problems: Sequence[str]) -> None:
    """Say all that is wrong with a rule's options.

    Raises:
        InputError: there are problems.
    """
    if problems:
        raise InputError(f"the options of {name} are wrong", problems)
