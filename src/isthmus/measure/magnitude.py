"""The same weights, larger: what is left of a network's answers when its weights are multiplied."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from isthmus.errors import InputError

#: What is multiplied: see `magnified`.
Scope = Literal["everything", "parameters", "weights"]


def magnified(weights: Mapping[str, Tensor], factor: float, scope: Scope = "everything") -> dict[str, Tensor]:
    """Weights multiplied by a factor.

    Args:
        weights: a state dict.
        factor: by what.
        scope: "everything" is every tensor, running statistics and integer counters included (what the code of
            arXiv:2411.09263 does, whose running variances would have to grow by the square); "parameters" are
            weights, biases and norms; "weights" are tensors of two and more dimensions alone. Running means and
            variances follow the weights in front of them, by the factor and its square: that is exact for
            "weights", while after "parameters" they are to be estimated again.

    Raises:
        InputError: a factor that is not finite, or another scope.

    Examples:
        >>> import torch
        >>> magnified({"w": torch.ones(1, 1), "b": torch.ones(1)}, 3.0, "weights")
        {'w': tensor([[3.]]), 'b': tensor([1.])}
    """
    if not abs(factor) < float("inf"):
        raise InputError(f"a factor of {factor} is not finite")
    if scope not in ("everything", "parameters", "weights"):
        raise InputError(f"scope={scope!r} is none of everything, parameters, weights")
    return {key: _scaled(key, value, factor, scope) for key, value in weights.items()}


def _scaled(key: str, value: Tensor, factor: float, scope: str) -> Tensor:
    if scope == "everything":
        return (value * factor).to(value.dtype)
    if not value.is_floating_point():
        return value
    if re.search(r"(^|\.)running_var$", key):
        return value * factor**2
    if re.search(r"(^|\.)running_mean$", key) or scope == "parameters" or value.ndim > 1:
        return value * factor
    return value


def not_finite(answers: Tensor) -> float:
    """The share of answers, rows of logits, in which a number is infinite or none.

    Examples:
        >>> import torch
        >>> not_finite(torch.tensor([[0.0, 1.0], [torch.inf, 0.0]]))
        0.5
    """
    return 1 - answers.flatten(1).isfinite().all(1).double().mean().item() if len(answers) else 0.0
