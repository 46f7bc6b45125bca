"""What a merged layer should put out: the average of what the models do there, as what comes behind it sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from isthmus.maps import Transport
from isthmus.program import Program
from isthmus.repair.shares import check_shares

aten = torch.ops.aten

#: "layer": what the layer itself puts out. "activation": where a rectifier reads it, what makes the rectifier put out
#: the average of what it puts out in the models.
Aim = Literal["layer", "activation"]

_RELU = {aten.relu.default, aten.relu_.default}
_LEAKY = {aten.leaky_relu.default, aten.leaky_relu_.default}


@dataclass(frozen=True)
class Models:
    """The merged models as networks, to be run beside the merged one.

    Attributes:
        program: of one model.
        weights: state dicts, in common coordinates, or (with transports) of `Transport.own`.
        shares: how much each counts, with sum 1.
        transports: where units are mixed, what moves the models' values to common coordinates.
    """

    program: Program
    weights: tuple[Mapping[str, Tensor], ...]
    shares: tuple[float, ...]
    transports: tuple[Transport, ...] | None = None

    def __post_init__(self) -> None:
        check_shares(self.shares, self.weights)

    @property
    def programs(self) -> tuple[Program, ...]:
        """Of each model."""
        if self.transports is None:
            return (self.program,) * len(self.weights)
        return tuple(transport.graph.program for transport in self.transports)


@dataclass(frozen=True)
class Target:
    """Where a layer's target is taken.

    Attributes:
        value: the value of the models that is averaged.
        axis: its channels.
        slope: of the rectifier that reads the value, for negative numbers; None where none does, or none counts.
    """

    value: str
    axis: int
    slope: float | None


def target_of(program: Program, value: str, axis: int, aim: Aim) -> Target:
    """Where the target of a layer is taken.

    Args:
        program: of the merged model.
        value: the layer's output.
        axis: its channels.
        aim: see `Aim`.
    """
    slopes = (
        {_slope(node) for node in program.nodes[value].users} if aim == "activation" else set[float | None]()
    )
    return Target(value, axis, slopes.pop() if len(slopes) == 1 else None)


def _slope(node: fx.Node) -> float | None:
    if node.target in _LEAKY:
        slope = float(str(node.args[1])) if len(node.args) > 1 else 0.01
        return slope if slope >= 0 else None
    return 0.0 if node.target in _RELU else None


class Averager:
    """The average of one value of the models, in common coordinates."""

    def __init__(self, models: Models, target: Target):
        self.target, self.shares = target, models.shares
        self._maps: list[tuple[Tensor, Tensor] | None] = [None] * len(models.weights)
        if models.transports is None:
            return
        for index, transport in enumerate(models.transports):
            matrix = transport.bridge(target.value, target.axis, True)
            zeros = torch.zeros(matrix.shape[1], dtype=matrix.dtype)
            shift, _ = transport.statistics(target.value, target.axis, zeros, zeros)
            self._maps[index] = matrix, shift

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """What the layer should put out on a batch, from what every model does there."""
        plain = self._sum(values)
        slope = self.target.slope
        if slope is None:
            return plain
        # The rectifier's outputs are averaged, and taken back through it where it has an inverse.
        seen = self._sum([torch.where(v > 0, v, slope * v) for v in values])
        return torch.where(seen > 0, seen, plain.clamp(max=0) if slope == 0 else seen / slope)

    def _sum(self, values: Sequence[Tensor]) -> Tensor:
        total: Tensor | None = None
        for share, value, held in zip(self.shares, values, self._maps, strict=True):
            moved = share * value if held is None else share * _moved(value, self.target.axis, *held)
            total = moved if total is None else total + moved
        assert total is not None
        return total


def _moved(value: Tensor, axis: int, matrix: Tensor, shift: Tensor) -> Tensor:
    last = value.movedim(axis, -1)
    return (last @ matrix.to(last).mT + shift.to(last)).movedim(-1, axis)
