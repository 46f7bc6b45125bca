"""How large weights are: the same weights, larger; and those of a merged model beside its parents'."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from isthmus.errors import InputError
from isthmus.measure.finding import Finding
from isthmus.weights import check_same

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


def scale_ratio(
    merged: Mapping[str, Tensor], parents: Sequence[Mapping[str, Tensor]]
) -> tuple[Finding, Finding]:
    """Mean magnitude of a merged model's parameters over that of its parents, tensor by tensor.

    Weights of strangers cancel, their biases often less so: then input-induced features fade from layer to layer, and
    offsets do not.

    Args:
        merged: state dict of the merged model.
        parents: state dicts of the models that it was made of.

    Returns:
        "weight scale ratio", of matrices and kernels, and "bias scale ratio", of what is called a bias. The value of
        each is the mean over its tensors, 1 where there is none (or none that is not zero).

    Raises:
        InputError: no parent.
        MismatchError: other keys or shapes.

    Source: Qu and Horváth 2025 (arXiv:2402.05966), section 4.2, figure 2 (middle): mean|W| / mean_i mean|W_i|.

    Examples:
        >>> import torch
        >>> weights, biases = scale_ratio({"w": torch.ones(2, 2)}, [{"w": torch.full((2, 2), 4.0)}])
        >>> weights.value
        0.25
    """
    if not parents:
        raise InputError("there is no parent to compare the merged model with")
    for index, parent in enumerate(parents):
        check_same(merged, parent, ("the merged model", f"parents[{index}]"))
    found: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for key, value in merged.items():
        bias = value.ndim == 1 and key.rpartition(".")[2].endswith("bias")
        if not value.is_floating_point() or not (bias or value.ndim > 1):
            continue
        theirs = sum(p[key].double().abs().mean().item() for p in parents) / len(parents)
        if theirs:
            found[bias][key] = value.double().abs().mean().item() / theirs
    note = "mean magnitude over the mean of the parents'"
    weights, biases = (
        Finding(f"{kind} scale ratio", _mean(rows), "1", None, (0.0, None), rows, note)
        for kind, rows in zip(("weight", "bias"), found, strict=True)
    )
    return weights, biases


def _mean(rows: Mapping[str, float]) -> float:
    return sum(rows.values()) / len(rows) if rows else 1.0
