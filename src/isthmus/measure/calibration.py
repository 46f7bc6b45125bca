"""How well calibration data determines the statistics that a repair works with, and how much of it is enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from isthmus.errors import DataError
from isthmus.features import Features, Request, collect, feed
from isthmus.measure.finding import Finding
from isthmus.measure.layers import channel_axis, shared_layers
from isthmus.program import Batch, Program

#: A gain that is off by this much is lost among the rest of what a merge changes.
ENOUGH = 0.05


def calibration_error(
    program: Program,
    weights: Mapping[str, Tensor],
    data: Iterable[object],
    *,
    groups: int = 8,
    target: float = ENOUGH,
    split: str = "calibration",
) -> Finding:
    """The relative standard error of a layer's standard deviations, measured on this much data.

    Gains are quotients of such numbers, so theirs is larger by up to sqrt(2). Positions of one image and tokens of
    one text are not independent, which is why examples are what is left out: the delete-a-group jackknife.

    Args:
        program: of a model.
        weights: its weights.
        data: the calibration data that a repair would see; read once for each group.
        groups: into how many equal parts the examples are divided; at least 2.
        target: the relative error that is aimed at, for the note.
        split: what the data is, for the note.

    Returns:
        Per layer the root mean square over its channels of std error / std (dead channels left out), and as value the
        largest layer's. The note says how many examples `target` would take: the error falls with their root.

    Raises:
        DataError: fewer examples than groups, data that does not fit, or activations that are not finite.

    Source: Efron 1982, The jackknife, the bootstrap and other resampling plans; Jordan et al. 2023 (arXiv:2211.08403)
        find 5,000 images to be enough for REPAIR, of CIFAR-10 as of ImageNet.

    Examples:
        >>> import torch
        >>> from isthmus.program import export
        >>> net, x = torch.nn.Linear(4, 3), torch.randn(256, 4)
        >>> found = calibration_error(export(net, x[:2]), net.state_dict(), [x])
        >>> 0 < found.value < 0.2  # of normal numbers: sqrt(1 / 2n) = 0.044
        True
    """
    layers = shared_layers(program, program)
    requests = [Request(name, channel_axis(program, name)) for name in layers.labels]
    found = [collect(program, [weights], _part(data, index, groups), requests) for index in range(groups)]
    errors = {label: _error(found, name) for name, label in layers.labels.items()}
    value = max(errors.values(), default=0.0)
    examples = sum(features.examples for features in found)
    needed = math.ceil(examples * (value / target) ** 2)
    note = f"relative standard error of the standard deviations; {split}: {examples} examples, "
    note += f"{target:.2g} would take {needed}"
    return Finding("calibration error", value, "1", "lower", (0.0, None), errors, note)


def _error(found: Sequence[Features], value: str) -> float:
    """Root mean square over channels of the jackknife's standard error of log std."""
    parts = [features[value] for features in found]
    counts = [float(part.samples) for part in parts]
    left: list[Tensor] = []
    for out in range(len(parts)):
        kept = [
            (n, p.mean[0], p.variance[0])
            for i, (n, p) in enumerate(zip(counts, parts, strict=True))
            if i != out
        ]
        total = sum(n for n, _, _ in kept)
        mean = sum((n / total * m for n, m, _ in kept), torch.zeros_like(parts[0].mean[0]))
        spread = sum((n / total * (v + (m - mean) ** 2) for n, m, v in kept), torch.zeros_like(mean))
        left.append(spread)
    stacked = torch.stack(left)
    alive = (stacked > 0).all(0)
    if not alive.any():
        return 0.0
    logs = stacked[:, alive].log() / 2
    return float(((len(parts) - 1) * logs.var(0, correction=0)).mean().sqrt())


def _part(data: Iterable[object], index: int, groups: int) -> Iterator[object]:
    """Every so manieth example, as a user would give it."""
    seen = 0
    for batch in feed(data, "calibration error"):
        rows = torch.arange(batch.size)[(index - seen) % groups :: groups]
        seen += batch.size
        if len(rows):
            part = _rows(batch, rows)
            yield part.kwargs if part.kwargs else (part.args, None)
    if seen < groups:
        raise DataError(
            f"{seen} examples cannot be divided into {groups} groups", hint="give more, or fewer groups"
        )


def _rows(batch: Batch, rows: Tensor) -> Batch:
    def cut(value: object) -> object:
        whole = isinstance(value, Tensor) and value.shape[:1] == (batch.size,)
        return value[rows.to(value.device)] if whole and isinstance(value, Tensor) else value

    return Batch(*pytree.tree_map(cut, (batch.args, batch.kwargs)))
