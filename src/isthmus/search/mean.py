"""The running mean of some models: sums in wide numbers, and how many went in."""

from __future__ import annotations

import torch
from torch import Tensor

from isthmus.search.members import Members, Weights


class Mean:
    """Models added one by one; each is read once, and rounded once when the mean is asked for.

    Sums are in float64, or float32 where all models are stored in 16 bits or fewer: the same numbers as
    `isthmus.combine`'s average, to the last bit of the result's dtype. Integers are the first model's, tied
    tensors stay one.

    Args:
        members: the models.
    """

    def __init__(self, members: Members):
        self._members = members
        self._sums: dict[str, Tensor] = {}
        self.counts = [0] * len(members)

    def __len__(self) -> int:
        return sum(self.counts)

    def shares(self, extra: int | None = None) -> dict[str, float]:
        """Name of each model in the mean -> its part; with one more, where asked."""
        counts = [count + (index == extra) for index, count in enumerate(self.counts)]
        named = zip(self._members.names, counts, strict=True)
        return {name: count / sum(counts) for name, count in named if count}

    def candidate(self, index: int) -> dict[str, Tensor]:
        """The mean of what is in it and one model more, which is not put in."""
        return self._mean(self._members.states[index], len(self) + 1)

    def add(self, index: int) -> None:
        """Put a model in, once more where it is in already."""
        state = self._members.states[index]
        for key in self._members.learned:
            wide = self._wide(key)
            if key in self._sums:
                self._sums[key].add_(state[key])
            else:
                self._sums[key] = state[key].detach().to(wide, copy=True)
        self.counts[index] += 1

    def weights(self) -> dict[str, Tensor]:
        """The mean."""
        return self._mean(None, len(self))

    def _mean(self, extra: Weights | None, count: int) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for key in self._members.learned:
            total = self._sums.get(key)
            if extra is not None:
                added = extra[key].detach().to(self._wide(key))
                total = added if total is None else total + added
            assert total is not None  # a mean of nothing is never asked for
            made[key] = (total / count).to(self._members.dtypes[key])
        return self._members.whole(made)

    def _wide(self, key: str) -> torch.dtype:
        stored = self._members.dtypes[key]
        if stored.is_complex:
            return torch.complex128
        return torch.float32 if stored.itemsize <= 2 else torch.float64
