"""Combining state dicts tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from isthmus import weights as files
from isthmus.combine.blocks import BlockRule, Job, measure, write
from isthmus.combine.rules import Terms, asked_too_much, blockwise, terms_of, weighed
from isthmus.errors import InputError, MismatchError

Weights = Mapping[str, Tensor]


def combine(
    models: Sequence[Weights],
    method: str = "average",
    *,
    base: Weights | None = None,
    weights: Sequence[float] | None = None,
    statistics: Sequence[Weights] | None = None,
    seed: int = 0,
    tied: Mapping[str, str] | None = None,
    names: Sequence[str] | None = None,
    options: Mapping[str, object] | None = None,
) -> dict[str, Tensor]:
    """Combine state dicts into one, tensor by tensor.

    Integer and boolean tensors are no weights: those that are equal in all models are kept, counters
    (`num_batches_tracked`) are taken from the first model, and any other difference is an error.

    Args:
        models: state dicts with the same keys and shapes.
        method: a registered rule; see `isthmus.methods("combination")`.
        base: what the models were trained from, for rules of task vectors; with their keys and shapes.
        weights: one per model: shares that sum to one (uniform where not given) or, for rules of task
            vectors, coefficients (one each where not given).
        statistics: one mapping per model, for rules that take them (Fisher information, Gram matrices). A
            tensor without statistics in every model is averaged.
        seed: for rules that draw.
        tied: key -> the key under which the same tensor is stored; it is combined once. Tensors
            that share their memory in every model are tied without being named.
        names: what errors call the models.
        options: of the rule.

    Raises:
        MismatchError: keys or shapes differ; all of them are listed.
        WeightsError: a weight is not finite.
        InputError: no models, no base or statistics where they are needed, wrong weights or options,
            integers that differ.

    Examples:
        >>> import torch, isthmus
        >>> a, b = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 2.0])}
        >>> isthmus.combine([a, b])
        {'w': tensor([2., 2.])}
    """
    if not models:
        raise InputError("there is nothing to merge: no models were given")
    terms = terms_of(method)
    check_asked(method, terms, len(models), weights, options, base is not None, statistics is not None)
    labels = list(names or (f"models[{i}]" for i in range(len(models))))
    for label, other in [*zip(labels[1:], models[1:], strict=True), *([("the base", base)] if base else [])]:
        files.check_same(models[0], other, (labels[0], label))
    for label, model in [*zip(labels, models, strict=True), *([("the base", base)] if base else [])]:
        files.check_finite(model, label)
    made = blockwise(method, len(models) if weights is None else weights, options)
    known = _statistics(made, models, statistics, labels)

    same = {**_shared(models), **(tied or {})}
    learned: dict[str, Job] = {}
    result: dict[str, Tensor] = {}
    problems: list[str] = []
    for key, first in models[0].items():
        if same.get(key) in learned or same.get(key) in result:
            continue  # tied: combined once
        if len({_learned(m[key]) for m in models}) > 1:
            problems.append(f"{key} (an integer in some models, a weight in others)")
        elif _learned(first):
            here = first.device
            if first.is_complex() and not made.complex:
                problems.append(f"{key} (complex: {method} orders numbers by size and sign)")
            learned[key] = Job(
                key,
                [m[key].to(here) for m in models],
                base[key].to(here) if base is not None else None,
                [s[key].to(here) for s in known if key in s],
            )
        elif key.endswith("num_batches_tracked") or all(torch.equal(first, m[key]) for m in models[1:]):
            result[key] = first.clone()
        else:
            problems.append(f"{key} ({str(first.dtype).removeprefix('torch.')})")
    if problems:
        raise MismatchError(f"{len(problems)} tensors differ in a way that {method} cannot combine", problems)

    jobs = [job for job in learned.values() if job.models[0].numel()]
    if made.scope == "model":
        measure(made, jobs, seed)
    for key, job in learned.items():
        if made.scope == "tensor":
            made = blockwise(method, len(models) if weights is None else weights, options)
            if job.models[0].numel():
                measure(made, [job], seed)
        result[key] = write(made, job, seed)
    # In the order of the first model; a tied key holds the very tensor.
    return {key: result[key] if key in result else result[same[key]] for key in models[0]}


def check_asked(
    method: str,
    terms: Terms,
    models: int,
    weights: Sequence[float] | None,
    options: Mapping[str, object] | None,
    base: bool,
    statistics: bool,
) -> None:
    """Say all that is wrong with a call of a rule, before anything is read.

    Raises:
        InputError: too few or too many models, no base, no statistics, wrong weights, wrong options.
    """
    told: list[InputError] = []
    lacking = asked_too_much(method, terms, models, base, statistics)
    if base and terms.base == "no":
        lacking.append(f"{method} takes no base model")
    if statistics and terms.statistics == "no":
        lacking.append(f"{method} takes no statistics")
    if lacking:
        first, *others = lacking
        told.append(InputError(first, others))
    for tell in (
        lambda: weighed(terms.weighing, weights, models),
        lambda: blockwise(method, min(max(models, terms.least), terms.most or models), options),
    ):
        try:
            tell()
        except InputError as error:
            told.append(error)
    if not told:
        blockwise(method, models if weights is None else weights, options)  # what is wrong of both together
    if len(told) == 1:
        raise told[0]
    if told:
        raise InputError(
            f"{method} cannot merge these",
            [line for e in told for line in [e.what, *(f"  {w}" for w in e.where)]],
            hint=next((e.hint for e in told if e.hint), None),
        )


def _statistics(
    rule: BlockRule, models: Sequence[Weights], statistics: Sequence[Weights] | None, labels: Sequence[str]
) -> Sequence[Weights]:
    """The statistics, checked against the models.

    Raises:
        MismatchError: some models have statistics of a tensor and some have none, or of another shape.
        InputError: another number of them than models.
        WeightsError: a statistic is not finite.
    """
    if statistics is None:
        return ()
    if len(statistics) != len(models):
        raise InputError(f"{len(statistics)} mappings of statistics for {len(models)} models")
    problems: list[str] = []
    for key in dict.fromkeys(key for known in statistics for key in known):
        have = [s[key] for s in statistics if key in s]
        if key not in models[0]:
            problems.append(f"{key} (no model has such a tensor)")
        elif len(have) < len(models):
            problems.append(f"{key} (of {len(have)} of {len(models)} models only)")
        elif rule.statistics == "elements" and any(h.shape != models[0][key].shape for h in have):
            problems.append(f"{key} ({', '.join(str(tuple(h.shape)) for h in have)})")
    if problems:
        raise MismatchError(f"{len(problems)} statistics do not fit the models", problems)
    for label, known in zip(labels, statistics, strict=True):
        files.check_finite(known, f"the statistics of {label}")
    return statistics


def _learned(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _shared(models: Sequence[Weights]) -> dict[str, str]:
    """Keys whose tensor is another key's tensor in every model: same memory, shape and stride."""
    found = [dict(_shared_in(model)) for model in models]
    return {key: other for key, other in found[0].items() if all(f.get(key) == other for f in found)}


def _shared_in(model: Weights) -> Iterator[tuple[str, str]]:
    first: dict[tuple[object, ...], str] = {}
    for key, tensor in model.items():
        if tensor.numel() == 0 or tensor.is_meta:
            continue
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        earlier = first.setdefault(place, key)
        if earlier != key:
            yield key, earlier
