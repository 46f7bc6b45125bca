"""What the weights of several models say about each other, without running them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.measure.finding import Finding
from isthmus.weights import check_same

State = Mapping[str, Tensor]


def weight_cosine(models: Sequence[State]) -> Finding:
    """Cosine of two models' matrices and kernels, the mean over the pairs of models.

    Independent trainings have about 0 (units come in another order), fine-tunings of one model nearly 1. Vectors
    are left out: norms' scales are positive in any model, so that they point one way.

    Args:
        models: two or more state dicts of one architecture.

    Returns:
        The cosine of all matrices as one vector; its layers are the matrices.

    Raises:
        InputError: fewer than two models.
        MismatchError: other keys or shapes.

    Examples:
        >>> a, b = {"w": torch.tensor([[1.0, 0.0]])}, {"w": torch.tensor([[1.0, 1.0]])}
        >>> round(weight_cosine([a, b]).value, 4)
        0.7071
    """

    def cosine(own: Tensor, other: Tensor) -> float:
        lengths = own.norm() * other.norm()
        # Two models that both have nothing here agree about it.
        return float(own @ other / lengths) if lengths else float(own.norm() == other.norm())

    found, layers = _pairs(models, cosine)
    note = f"matrices and kernels of {len(models)} models"
    return Finding("weight cosine", found, "1", "higher", (-1.0, 1.0), layers, note)


def weight_distance(models: Sequence[State]) -> Finding:
    """Length of the difference of two models over their mean length, the mean over the pairs of models.

    0 for copies, about the root of 2 for independent trainings of equal length.

    Args:
        models: two or more state dicts of one architecture.

    Returns:
        The distance of all matrices as one vector; its layers are the matrices.

    Raises:
        InputError: fewer than two models.
        MismatchError: other keys or shapes.

    Examples:
        >>> weight_distance([{"w": torch.ones(1, 4)}, {"w": torch.zeros(1, 4)}]).value
        2.0
    """

    def distance(own: Tensor, other: Tensor) -> float:
        mean = (own.norm() + other.norm()) / 2
        return float((own - other).norm() / mean) if mean else 0.0

    found, layers = _pairs(models, distance)
    note = f"matrices and kernels of {len(models)} models"
    return Finding("weight distance", found, "1", "lower", (0.0, 2.0), layers, note)


def sign_conflict(models: Sequence[State], *, base: State | None = None) -> Finding:
    """Share of weights on whose sign the models do not agree: those that an average plays off against each other.

    Weights that are zero in a model have no sign there; where fewer than two models have one, nothing is in
    conflict. Two independent models disagree about half of their weights.

    Args:
        models: two or more state dicts of one architecture.
        base: what they were trained from, whose difference to each model (task vector) is then looked at.

    Returns:
        The share of all elements of floating parameters; its layers are the tensors. Buffers of norms are left out.

    Raises:
        InputError: fewer than two models.
        MismatchError: other keys or shapes.

    Source: Yadav et al. 2023 (arXiv:2306.01708), whose sign conflict is among trimmed task vectors; here nothing
        is trimmed.

    Examples:
        >>> sign_conflict([{"w": torch.tensor([1.0, -1.0, 0.0])}, {"w": torch.tensor([1.0, 2.0, 3.0])}]).value
        0.3333333333333333
    """
    _check(models)
    if base is not None:
        check_same(models[0], base, ("models[0]", "the base"))
    keys = [k for k, v in models[0].items() if v.is_floating_point() and not k.endswith(_RUNNING)]
    counts: dict[str, tuple[int, int]] = {}
    for key in keys:
        stack = torch.stack([m[key] - (base[key] if base is not None else 0) for m in models])
        mixed = (stack > 0).any(0) & (stack < 0).any(0)
        counts[key] = int(mixed.sum()), mixed.numel()
    total = sum(n for _, n in counts.values())
    layers = {key: count / n if n else 0.0 for key, (count, n) in counts.items()}
    value = sum(c for c, _ in counts.values()) / total if total else 0.0
    note = f"of {total:,} weights of {len(models)} models" + (
        ", without the base" if base is not None else ""
    )
    return Finding("sign conflict", value, "1", "lower", (0.0, 1.0), layers, note)


_RUNNING = ("running_mean", "running_var")


def _check(models: Sequence[State]) -> None:
    if len(models) < 2:
        raise InputError(f"two or more models can agree, got {len(models)}")
    for index, other in enumerate(models[1:], start=1):
        check_same(models[0], other, ("models[0]", f"models[{index}]"))


def _pairs(
    models: Sequence[State], compare: Callable[[Tensor, Tensor], float]
) -> tuple[float, dict[str, float]]:
    """A comparison of two vectors, of all matrices and of each, its mean over the pairs."""
    _check(models)
    keys = [k for k, v in models[0].items() if v.is_floating_point() and v.ndim > 1]
    if not keys:
        raise InputError("the models have no matrix to compare")
    pairs = list(combinations(models, 2))

    def mean(own: Sequence[str]) -> float:
        flat = ([torch.cat([m[k].double().flatten() for k in own]) for m in pair] for pair in pairs)
        return sum(compare(a, b) for a, b in flat) / len(pairs)

    return mean(keys), {key: mean([key]) for key in keys}
