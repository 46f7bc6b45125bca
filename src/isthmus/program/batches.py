"""Data is anything iterable that yields inputs, or (inputs, targets)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from isthmus.errors import DataError


@dataclass(frozen=True)
class Batch:
    """One batch, split into what the model takes and what it should answer.

    Attributes:
        args: positional inputs.
        kwargs: keyword inputs (a mapping batch, as Hugging Face collators make).
        targets: the targets, or None where the data has none.
    """

    args: tuple[object, ...]
    kwargs: dict[str, object]
    targets: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of examples: the first dimension of the first tensor input."""
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Tensor) and value.ndim:
                return value.shape[0]
        raise DataError("a batch holds no tensor with a batch dimension")

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
        """The same batch on `device`; floating inputs cast to `dtype` where one is given."""

        def move(value: object) -> object:
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype if dtype and value.is_floating_point() else value.dtype)

        args, kwargs = pytree.tree_map(move, (self.args, self.kwargs))
        return Batch(args, kwargs, None if self.targets is None else self.targets.to(device))


#: What a model takes: one tensor, a tuple of positional inputs, a mapping of keyword inputs, or a batch.
Inputs = Tensor | Batch | Sequence[object] | Mapping[str, object]


def example_of(example: Inputs) -> Batch:
    """Read an example input as the model's arguments.

    Args:
        example: one tensor, a tuple of positional inputs, a mapping of keyword inputs, or a batch.
    """
    if isinstance(example, Batch):
        return example
    if isinstance(example, Tensor):
        return Batch((example,), {})
    if isinstance(example, Mapping):
        return Batch((), dict(example))
    return Batch(tuple(example), {})


def batches(data: Iterable[object]) -> Iterator[Batch]:
    """Yield each batch of `data` as a `Batch`.

    Args:
        data: an iterable of inputs, of (inputs, targets) pairs, or of mappings (whose
            "labels" are the targets and are kept out of the model's inputs).

    Raises:
        DataError: nothing came out, or a batch is none of these.
    """
    seen = False
    for index, item in enumerate(data):
        seen = True
        if isinstance(item, Tensor):
            yield Batch((item,), {})
        elif isinstance(item, Mapping):
            labels = item.get("labels")
            inputs = {k: v for k, v in item.items() if k != "labels"}
            yield Batch((), inputs, labels if isinstance(labels, Tensor) else None)
        elif isinstance(item, (tuple, list)) and len(item) in (1, 2):
            inputs = example_of(item[0])
            targets = item[1] if len(item) == 2 else None
            if targets is not None and not isinstance(targets, Tensor):
                raise DataError(f"the targets of batch {index} are a {type(targets).__name__}, not a tensor")
            yield Batch(inputs.args, inputs.kwargs, targets)
        else:
            raise DataError(
                f"batch {index} of the data is a {type(item).__name__}",
                hint="yield inputs, (inputs, targets), or a mapping of keyword inputs",
            )
    if not seen:
        raise DataError(
            "the data is empty: it yielded no batch",
            hint="an iterator is empty after one pass; a DataLoader or a list of batches can be read again",
        )


def home(weights: Mapping[str, Tensor]) -> tuple[torch.device, torch.dtype | None]:
    """Device of the weights and dtype of the first floating one: where and as inputs must come."""
    device = next((w.device for w in weights.values()), torch.device("cpu"))
    return device, next((w.dtype for w in weights.values() if w.is_floating_point()), None)


def first_example(data: Iterable[object]) -> Batch:
    """Two examples of the data's first batch: enough to read a program."""
    first = next(batches(data))
    return Batch(
        *pytree.tree_map(lambda v: v[:2] if isinstance(v, Tensor) else v, (first.args, first.kwargs))
    )
