"""What a model's outputs say of its targets: the gradients of log p that Fisher information is made of.

All functions here see the outputs of one example, classes last: (*positions, classes). They return *scores*,
gradients of log p(y | outputs) with respect to the outputs, of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

#: A user's own loss: (outputs, targets) -> scalar, called with batches of one example.
Loss = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Likelihood(Protocol):
    """A distribution of targets given outputs."""

    def parts(self, outputs: Tensor) -> int:
        """How many vectors `expected` has."""
        ...

    def expected(self, outputs: Tensor, part: int) -> Tensor:
        """Vectors v_k, (rows, classes) each, with sum_k v_k v_k^T the expectation of score score^T."""
        ...

    def drawn(self, outputs: Tensor, uniform: Tensor) -> Tensor:
        """The score at targets drawn by uniform numbers, of which there is one per output."""
        ...

    def observed(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The score at given targets."""
        ...


def _at(rows: Tensor, row: int, vector: Tensor) -> Tensor:
    """A vector in one row, zeros elsewhere."""
    chosen = torch.arange(rows.shape[0], device=rows.device) == row
    return chosen.to(rows.dtype).unsqueeze(1) * vector


@dataclass(frozen=True)
class Categorical:
    """One class of several at each position: softmax and cross-entropy."""

    def parts(self, outputs: Float[Tensor, "rows classes"]) -> int:
        return outputs.numel()

    def expected(self, outputs: Float[Tensor, "rows classes"], part: int) -> Float[Tensor, "rows classes"]:
        row, name = divmod(part, outputs.shape[-1])
        p = outputs[row].softmax(-1)
        return _at(outputs, row, p[name].sqrt() * (_one(outputs, name) - p))

    def drawn(
        self, outputs: Float[Tensor, "rows classes"], uniform: Float[Tensor, "rows classes"]
    ) -> Float[Tensor, "rows classes"]:
        p = outputs.softmax(-1)
        # The inverse of the distribution function, of one number per position.
        below = p.double().cumsum(-1) < uniform[:, :1].double()
        return _chosen(outputs, below.sum(-1).clamp(max=outputs.shape[-1] - 1)) - p

    def observed(
        self, outputs: Float[Tensor, "rows classes"], targets: Tensor
    ) -> Float[Tensor, "rows classes"]:
        return _chosen(outputs, targets.reshape(-1).clamp(min=0)) - outputs.softmax(-1)


@dataclass(frozen=True)
class Bernoulli:
    """Each output says yes or no, independently: sigmoid and binary cross-entropy (multi-label)."""

    def parts(self, outputs: Float[Tensor, "rows classes"]) -> int:
        return outputs.numel()

    def expected(self, outputs: Float[Tensor, "rows classes"], part: int) -> Float[Tensor, "rows classes"]:
        row, name = divmod(part, outputs.shape[-1])
        p = outputs[row].sigmoid()
        return _at(outputs, row, (p * (1 - p)).sqrt() * _one(outputs, name))

    def drawn(
        self, outputs: Float[Tensor, "rows classes"], uniform: Float[Tensor, "rows classes"]
    ) -> Float[Tensor, "rows classes"]:
        p = outputs.sigmoid()
        return (uniform < p).to(p.dtype) - p

    def observed(
        self, outputs: Float[Tensor, "rows classes"], targets: Tensor
    ) -> Float[Tensor, "rows classes"]:
        return targets.reshape(outputs.shape).to(outputs.dtype) - outputs.sigmoid()


@dataclass(frozen=True)
class Gaussian:
    """Each output is the mean of a normal distribution of variance 1 (regression, half the squared error)."""

    def parts(self, outputs: Float[Tensor, "rows classes"]) -> int:
        return outputs.numel()

    def expected(self, outputs: Float[Tensor, "rows classes"], part: int) -> Float[Tensor, "rows classes"]:
        row, name = divmod(part, outputs.shape[-1])
        return _at(outputs, row, _one(outputs, name))

    def drawn(
        self, outputs: Float[Tensor, "rows classes"], uniform: Float[Tensor, "rows classes"]
    ) -> Float[Tensor, "rows classes"]:
        least = torch.finfo(torch.float64).tiny  # the quantile of 0 is no number
        return torch.special.ndtri(uniform.double().clamp_min(least)).to(outputs.dtype)

    def observed(
        self, outputs: Float[Tensor, "rows classes"], targets: Tensor
    ) -> Float[Tensor, "rows classes"]:
        return targets.reshape(outputs.shape).to(outputs.dtype) - outputs


LIKELIHOODS: dict[str, Likelihood] = {
    "categorical": Categorical(),
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(),
}


def _one(outputs: Tensor, name: int) -> Tensor:
    """One class as a vector."""
    return (torch.arange(outputs.shape[-1], device=outputs.device) == name).to(outputs.dtype)


def _chosen(outputs: Tensor, names: Tensor) -> Tensor:
    """A class per position as rows of zeros and a one."""
    every = torch.arange(outputs.shape[-1], device=outputs.device)
    return (every == names.unsqueeze(-1)).to(outputs.dtype)
