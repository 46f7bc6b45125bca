"""Combining state dicts tensor by tensor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from isthmus import weights as files
from isthmus.errors import InputError, MismatchError
from isthmus.registry import Registry

#: A rule: (tensors, *, weights, **options) -> tensor, all of one shape.
Rule = Callable[..., Tensor]

COMBINATIONS: Registry[Rule] = Registry("combination", package="isthmus.combine")


def normalised(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """The models' weights, uniform where none are given.

    Raises:
        InputError: another number of weights than models, a weight that is not finite, or a sum that
            is not one.
    """
    if weights is None:
        return (1.0 / count,) * count
    values = tuple(float(w) for w in weights)
    problems = []
    if len(values) != count:
        problems.append(f"{len(values)} weights for {count} models")
    if not all(torch.isfinite(torch.tensor(values)).tolist()):
        problems.append(f"not all finite: {values}")
    elif abs(sum(values) - 1) > 1e-6:
        problems.append(f"they sum to {sum(values):g}, not 1")
    if problems:
        raise InputError("the models' weights are wrong", problems)
    return values


def combine(
    models: Sequence[Mapping[str, Tensor]],
    method: str = "average",
    *,
    weights: Sequence[float] | None = None,
    tied: Mapping[str, str] | None = None,
    names: Sequence[str] | None = None,
    options: Mapping[str, object] | None = None,
) -> dict[str, Tensor]:
    """Combine state dicts into one, tensor by tensor.

    Integer and boolean tensors are no weights: those that are equal in all models are kept, counters
    (`num_batches_tracked`) are taken from the first model, and any other difference is an error.

    Args:
        models: state dicts with the same keys and shapes.
        method: a registered rule.
        weights: one per model, summing to one; uniform where not given.
        tied: key -> the key under which the same tensor is stored; it is combined once. Tensors
            that share their memory in every model are tied without being named.
        names: what errors call the models.
        options: of the rule.

    Raises:
        MismatchError: keys or shapes differ; all of them are listed.
        WeightsError: a weight is not finite.
        InputError: no models, wrong weights or options, integers that differ.
    """
    if not models:
        raise InputError("there is nothing to merge: no models were given")
    rule = COMBINATIONS.get(method)
    known = [n for n, p in inspect.signature(rule.function).parameters.items() if p.kind is p.KEYWORD_ONLY]
    given = dict(options or {})
    unknown = [name for name in given if name not in known or name == "weights"]
    if unknown:
        takes = ", ".join(n for n in known if n != "weights") or "none"
        raise InputError(f"{method} has no option {', '.join(map(repr, unknown))}", hint=f"it takes {takes}")
    shares = normalised(weights, len(models))
    labels = list(names or (f"models[{i}]" for i in range(len(models))))
    for index, other in enumerate(models[1:], start=1):
        files.check_same(models[0], other, (labels[0], labels[index]))
    for label, model in zip(labels, models, strict=True):
        files.check_finite(model, label)
    same = {**_shared(models), **(tied or {})}
    result: dict[str, Tensor] = {}
    problems: list[str] = []
    for key, first in models[0].items():
        if same.get(key) in result:
            result[key] = result[same[key]]
        elif len({_learned(m[key]) for m in models}) > 1:
            problems.append(f"{key} (an integer in some models, a weight in others)")
        elif _learned(first):
            here = first.device
            result[key] = rule.function([m[key].to(here) for m in models], weights=shares, **given)
        elif key.endswith("num_batches_tracked") or all(torch.equal(first, m[key]) for m in models[1:]):
            result[key] = first.clone()
        else:
            problems.append(f"{key} ({str(first.dtype).removeprefix('torch.')})")
    if problems:
        raise MismatchError(
            f"{len(problems)} integer tensors differ between the models and cannot be averaged",
            problems,
        )
    return result


def _learned(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _shared(models: Sequence[Mapping[str, Tensor]]) -> dict[str, str]:
    """Keys whose tensor is another key's tensor in every model: same memory, shape and stride."""
    found = [_shared_in(model) for model in models]
    return {key: other for key, other in found[0].items() if all(f.get(key) == other for f in found)}


def _shared_in(model: Mapping[str, Tensor]) -> dict[str, str]:
    first: dict[tuple[object, ...], str] = {}
    found: dict[str, str] = {}
    for key, tensor in model.items():
        if tensor.numel() == 0 or tensor.is_meta:
            continue
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        earlier = first.setdefault(place, key)
        if earlier != key:
            found[key] = earlier
    return found
