"""Rows behind the last token: means of a model's rows of tokens, made before the merge."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from isthmus import weights
from isthmus.engine import Source
from isthmus.engine.sources import reader


@dataclass(frozen=True)
class Padding:
    """Rows behind the last token: the mean of a model's rows of tokens, made when the plan runs.

    Args:
        model: whose embedding.
        name: of its tensor.
        source: the rows of tokens, as the merge takes them.
        key: the name of the mean in a checkpoint of its own.
    """

    model: str
    name: str
    source: Source
    key: str


def write_means(padding: Collection[Padding], checkpoints: Sequence[str]) -> None:
    """Make the means, block by block; a file that holds them already stays as it is.

    Args:
        padding: what is to be made.
        checkpoints: paths, as its sources' indices mean them; where there is any padding, the last is its own.
    """
    if not padding:
        return
    *rest, file = checkpoints
    opened: list[Mapping[str, Tensor]] = [weights.open(path) for path in rest]
    means: dict[str, Tensor] = {}
    for entry in padding:
        source = reader(entry.source, opened)
        width = 1
        for count in source.shape[1:]:
            width *= count
        total = torch.zeros(width, dtype=torch.float64)
        rows = max(1, (1 << 20) // width)
        for first in range(0, source.shape[0], rows):
            last = min(first + rows, source.shape[0])
            block = source.elements(first * width, last * width)
            total += block.view(last - first, width).double().sum(0)
        mean = total / source.shape[0]
        means[entry.key] = mean.float().reshape(1, *source.shape[1:])
    if Path(file).exists():
        held = weights.load(file)
        if set(held) == set(means) and all(torch.equal(held[key], means[key]) for key in means):
            return  # of a run that was killed: the same file, by which that run is known
    weights.save(means, file)
