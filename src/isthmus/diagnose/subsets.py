"""A part of the data, in memory, and the same data with other inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from isthmus.errors import DataError
from isthmus.features import feed
from isthmus.program import Batch, batches

#: A batch as data yields it.
Item = object


def take(data: Iterable[object], limit: int) -> list[Item]:
    """The first examples of the data, batched as they come."""
    return [_item(batch) for batch in feed(data, "reading", limit)]


def halves(data: Iterable[object]) -> tuple[list[Item], list[Item]]:
    """Every other batch, and the rest; a single batch is cut in two.

    Raises:
        DataError: there is but one example.
    """
    items = [_item(batch) for batch in batches(data)]
    if len(items) > 1:
        return items[::2], items[1::2]
    (batch,) = batches(items)
    half = batch.size // 2
    if not half:
        raise DataError("one example cannot be calibration and validation data", hint="pass validation=")
    first = take(items, half)
    return first, [_item(_cut(batch, half))]


def moments(data: Iterable[object]) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation of the first input: per channel of images, else of all numbers.

    Returns:
        Both shaped to be taken off a batch of it; None where it is not floating.
    """
    count, total, squares = 0, 0.0, 0.0
    for batch in batches(data):
        value = _first(batch)
        if value is None:
            return None
        rows = value.double().movedim(1, 0).flatten(1) if value.ndim > 3 else value.double().reshape(1, -1)
        count += rows.shape[1]
        total, squares = total + rows.sum(1), squares + rows.square().sum(1)
    assert isinstance(total, Tensor) and isinstance(squares, Tensor)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean, deviation


def standardised(data: Sequence[Item], mean: Tensor, deviation: Tensor) -> list[Item]:
    """The data with its first input shifted and scaled to mean 0 and deviation 1."""

    def change(value: Tensor) -> Tensor:
        shape = (-1, *[1] * (value.ndim - 2)) if value.ndim > 3 else (1,) * value.ndim
        own, scale = mean.to(value).view(shape), deviation.to(value).view(shape)
        return (value - own) / torch.where(scale > 0, scale, 1)

    return [_item(_with_first(batch, change)) for batch in batches(data)]


def _first(batch: Batch) -> Tensor | None:
    value = next((v for v in pytree.tree_leaves((batch.args, batch.kwargs)) if isinstance(v, Tensor)), None)
    return value if value is not None and value.is_floating_point() and value.ndim else None


def _with_first(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    chosen = _first(batch)
    args, kwargs = pytree.tree_map(
        lambda v: change(v) if v is chosen and isinstance(v, Tensor) else v, (batch.args, batch.kwargs)
    )
    return Batch(args, kwargs, batch.targets)


def _cut(batch: Batch, start: int) -> Batch:
    size = batch.size
    args, kwargs = pytree.tree_map(
        lambda v: v[start:] if isinstance(v, Tensor) and v.shape[:1] == (size,) else v,
        (batch.args, batch.kwargs),
    )
    return Batch(args, kwargs, None if batch.targets is None else batch.targets[start:])


def _item(batch: Batch) -> Item:
    if batch.kwargs:
        return batch.kwargs if batch.targets is None else {**batch.kwargs, "labels": batch.targets}
    return (batch.args,) if batch.targets is None else (batch.args, batch.targets)
