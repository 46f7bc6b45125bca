"""What is searched over: models of one architecture, opened, checked and named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from isthmus import weights as files
from isthmus.combine.blocks import widest
from isthmus.errors import InputError, IsthmusError, MismatchError, WeightsError
from isthmus.program import Program
from isthmus.search.fitting import Fitted, ghost

#: A model: a module, a state dict, or a file of weights (read where it lies, tensor by tensor).
Source = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
Weights = Mapping[str, Tensor]

#: Ends of the names of BatchNorm's running statistics.
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class Members:
    """Models of one architecture.

    Attributes:
        names: one per model, each once.
        states: their weights; those of files are mapped, so that no model need be in memory.
        base: what they were trained from, where given.
    """

    names: tuple[str, ...]
    states: tuple[Weights, ...]
    base: Weights | None = None

    def __len__(self) -> int:
        return len(self.states)

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """What each model is, whatever file it is in: the SHA-256 of its tensors."""
        return tuple(files.digest(state) for state in self.states)

    @cached_property
    def base_digest(self) -> str | None:
        return None if self.base is None else files.digest(self.base)

    @cached_property
    def tied(self) -> dict[str, str]:
        """Key -> earlier key of the same tensor, where it is one tensor in every model."""
        found = [dict(_tied(state)) for state in self.states]
        return {key: other for key, other in found[0].items() if all(f.get(key) == other for f in found)}

    @cached_property
    def learned(self) -> tuple[str, ...]:
        """Keys of tensors that are averaged: floating or complex, tied ones once."""
        return tuple(k for k, v in self.states[0].items() if k not in self.tied and is_learned(v))

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """Keys of BatchNorm's running statistics."""
        return tuple(key for key in self.learned if key.endswith(STATISTICS))

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The widest dtype of each averaged tensor among the models."""
        stored = [{key: state[key].dtype for key in self.learned} for state in self.states]
        return {key: widest([torch.empty(0, dtype=s[key]) for s in stored]) for key in self.learned}

    def whole(self, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict in the models' order: what was made, ties, and integers as the first model has them."""
        first = self.states[0]
        return {
            key: made[name] if (name := self.tied.get(key, key)) in made else first[key].clone()
            for key in first
        }


def gather(
    models: Sequence[Source],
    *,
    base: Source | None = None,
    names: Sequence[str] | None = None,
    model: nn.Module | Program | None = None,
    apart: Sequence[str] = (),
) -> Members:
    """Open models and say everything that is wrong with them.

    Args:
        models: modules, state dicts or files.
        base: what they were trained from.
        names: what they are called; by default files by their names, others by their numbers.
        model: the architecture, where it is known: models are read in its dtypes.
        apart: keys that need not fit each other.

    Raises:
        InputError: no model, or names that do not tell them apart.
        MismatchError: keys, shapes or kinds of tensors differ, or integers do.
        WeightsError: a file cannot be read, or holds numbers that are not finite.
    """
    if not models:
        raise InputError("no model was given")
    called = tuple(names) if names is not None else _names(models)
    if len(called) != len(models) or len(set(called)) < len(called):
        raise InputError(f"{len(models)} models need a name each, every name once", sorted(called))
    labels = [*called, *(["the base"] if base is not None else [])]
    states = [_state(source, model) for source in (*models, *([base] if base is not None else []))]
    count = len(models)
    expected = None if model is None else {k: v for k, v in ghost(model).items() if k not in set(apart)}
    _check(labels, states, frozenset(apart), expected)
    return Members(called, tuple(states[:count]), states[count] if base is not None else None)


def is_learned(tensor: Tensor) -> bool:
    """Whether a tensor is one of weights, not of counts or switches."""
    return tensor.is_floating_point() or tensor.is_complex()


def _check(
    labels: Sequence[str], states: Sequence[Weights], apart: frozenset[str], expected: Weights | None
) -> None:
    problems: list[IsthmusError] = []
    parts = [{k: v for k, v in state.items() if k not in apart} for state in states] if apart else states
    first, name = (parts[0], labels[0]) if expected is None else (expected, "the architecture")
    for label, state in zip(labels, parts, strict=True):
        try:
            files.check_same(first, state, (name, label))
        except MismatchError as error:
            problems.append(error)
    for label, state in zip(labels, states, strict=True):
        try:
            files.check_finite(state, label)
        except WeightsError as error:
            problems.append(error)
    if differing := sorted(_integers(labels, parts)):
        problems.append(MismatchError(f"{len(differing)} tensors cannot be averaged", differing))
    if len(problems) == 1:
        raise problems[0]
    if problems:
        kind = MismatchError if any(isinstance(p, MismatchError) for p in problems) else WeightsError
        raise kind(
            f"{len(problems)} things are wrong with the models",
            [line for p in problems for line in (p.what, *(f"  {where}" for where in p.where))],
            hint=next((p.hint for p in problems if p.hint), None),
        )


def _integers(labels: Sequence[str], states: Sequence[Weights]) -> Iterator[str]:
    """Integers that differ between models, and tensors that are integers in some only."""
    for key, first in states[0].items():
        others = [(label, s[key]) for label, s in zip(labels[1:], states[1:], strict=True) if key in s]
        if mixed := [label for label, other in others if is_learned(other) != is_learned(first)]:
            yield f"{key}    integers in one of {labels[0]} and {', '.join(mixed)}, weights in the other"
        elif not is_learned(first) and not key.endswith("num_batches_tracked"):
            unlike = [label for label, t in others if t.shape == first.shape and not torch.equal(t, first)]
            if unlike:
                yield f"{key}    {first.dtype}, other numbers in {', '.join(unlike)} than in {labels[0]}"


def _state(source: Source, model: nn.Module | Program | None) -> Weights:
    if isinstance(source, nn.Module):
        return {key: value.detach() for key, value in source.state_dict().items()}
    state = files.open(source) if isinstance(source, (str, os.PathLike)) else dict(source)
    return state if model is None else Fitted(state, model)


def _names(models: Sequence[Source]) -> tuple[str, ...]:
    """Files by the end of their paths that tells them apart; others by number."""
    paths = [Path(m).with_suffix("") if isinstance(m, (str, os.PathLike)) else None for m in models]
    for parts in range(1, 1 + max((len(p.parts) for p in paths if p is not None), default=1)):
        names = tuple(
            f"models[{index}]" if path is None else "/".join(path.parts[-parts:])
            for index, path in enumerate(paths)
        )
        if len(set(names)) == len(names):
            return names
    return tuple(f"models[{index}]" for index in range(len(models)))


def _tied(state: Weights) -> Iterator[tuple[str, str]]:
    """Keys that are one tensor. What a file gives may be a new tensor each time: only an architecture can tell."""
    if isinstance(state, Fitted):
        yield from state.tied.items()
    if not isinstance(state, dict):
        return
    first: dict[tuple[object, ...], str] = {}
    for key, tensor in state.items():
        if tensor.numel() == 0 or tensor.is_meta:
            continue
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if (earlier := first.setdefault(place, key)) != key:
            yield key, earlier
