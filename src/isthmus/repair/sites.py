"""A site is a place that is repaired: what is measured there, and what is written into the weights for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, fx

from isthmus.errors import DataError
from isthmus.features import Centred, Pooled
from isthmus.program import Program
from isthmus.repair.goals import Goal
from isthmus.repair.result import Change
from isthmus.repair.writers import Fusable, Writer, statistics_of

#: A gain above this is not a faded signal but one that is gone: what would be amplified is noise.
#: The sources have no such limit, only an eps of 1e-5 below the root.
MAX_GAIN = 100.0

#: Added to both variances, relative to the mean variance that the value's channels should have: small
#: enough that no channel notices, and 0/0 is 1.
EPS = 1e-8

#: Standard deviation, relative to the mean, up to which a channel is constant.
ROUNDING = torch.finfo(torch.float32).eps


@runtime_checkable
class Site(Protocol):
    """A place that is repaired."""

    pooled: Pooled

    @property
    def events(self) -> tuple[tuple[str, str, int], ...]:
        """(before which node it can be measured, the value to measure, its channel axis), one or more."""
        ...

    def replacement(self, value: Tensor, batch: Centred) -> Tensor | None:
        """What takes the value's place in a joint pass."""
        ...

    def write(self, weights: dict[str, Tensor]) -> Change:
        """Replace entries of `weights` by what the pooled statistics ask for."""
        ...


@dataclass
class AffineSite:
    """The output of a linear or conv operation, brought to a goal by a gain and a shift per channel.

    Attributes:
        program: the graph that `weights` belong to, new parameters included.
        writer: how the value is made.
        goal: what its channels should have.
        fusable: what goes into the writer's weights.
        gain_key: key of an explicit gain, where the gain does not fold.
        shift_key: key of an explicit shift, where one is wanted that does not fold.
        shifts: whether the mean is brought to the goal as well.
        max_gain: limit of a gain; that of a constant channel is 1.
        eps: see `EPS`.
        scales: whether the standard deviation is brought to the goal; gains are 1 where not.
    """

    program: Program
    writer: Writer
    goal: Goal
    fusable: Fusable
    gain_key: str | None
    shift_key: str | None
    shifts: bool
    max_gain: float
    eps: float
    scales: bool = True
    pooled: Pooled = field(default_factory=Pooled)

    @property
    def events(self) -> tuple[tuple[str, str, int], ...]:
        return ((self.writer.value, self.writer.value, self.writer.axis),)

    @property
    def shifted(self) -> bool:
        """Whether there is a place for a shift, and one is wanted."""
        return self.shifts and (self.shift_key is not None or self.fusable.shift is not None)

    def affine(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, int]:
        """Gain and shift (float64) from a mean and a variance to the goal; how many gains were clamped."""
        goal_mean, goal_std = (t.to(mean) for t in (self.goal.mean, self.goal.std))
        if not self.scales:
            return torch.ones_like(mean), goal_mean - mean if self.shifted else torch.zeros_like(mean), 0
        # In both variances, so that a value that is at its goal already is left alone.
        floor = self.eps * goal_std.square().mean() + torch.finfo(torch.float64).tiny
        gain = ((goal_std.square() + floor) / (variance + floor)).sqrt()
        clamped = int((gain > self.max_gain).sum())
        # What varies by no more than rounding has no spread to bring back: a gain would act on its offset alone.
        constant = variance <= (ROUNDING * mean).square()
        gain = torch.where(constant, 1.0, gain.clamp(max=self.max_gain))
        shift = goal_mean - gain * mean if self.shifted else torch.zeros_like(gain)
        return gain, shift, clamped

    def replacement(self, value: Tensor, batch: Centred) -> Tensor:
        alone = Pooled()
        alone.add(batch)
        gain, shift, _ = self.affine(alone.mean, alone.variance)
        shape = self.shape(value.ndim)
        # gain * (x - mean) + (gain * mean + shift): never the difference of two large numbers.
        centre = alone.mean.view(shape)
        target = (gain * alone.mean + shift).view(shape)
        return (value - centre.to(value)) * gain.view(shape).to(value) + target.to(value)

    def shape(self, rank: int) -> tuple[int, ...]:
        """A shape in which one number per channel broadcasts with the value."""
        return (-1, *[1] * (rank - 1 - self.writer.axis))

    def write(self, weights: dict[str, Tensor]) -> Change:
        return self.fold(weights, self.pooled.mean, self.pooled.variance)

    def fold(self, weights: dict[str, Tensor], mean: Tensor, variance: Tensor) -> Change:
        """Write what leads from a mean and a variance per channel to the goal."""
        gain, shift, clamped = self.affine(mean, variance)
        keys: list[str] = []

        def put(key: str, tensor: Tensor) -> None:
            weights[key] = tensor.to(weights[key])
            keys.append(key)

        writer, names = self.writer, self.program.weights
        folded = self.shifted and self.shift_key is None
        if self.gain_key is not None:
            put(self.gain_key, gain.view_as(weights[self.gain_key]))
        elif self.scales:
            put(names[writer.weight], scaled(weights[names[writer.weight]], writer, gain))
        if writer.bias is not None and self.gain_key is None and (self.scales or folded):
            bias = gain * weights[names[writer.bias]].double()
            put(names[writer.bias], bias + shift if folded else bias)
        if self.shifted and self.shift_key is not None:
            put(self.shift_key, shift.view_as(weights[self.shift_key]))
        elif folded and self.fusable.shift == "running_mean":
            (norm,) = self.program.nodes[writer.value].users
            running, _ = _statistics(self.program, norm)
            put(running, weights[running].double() - shift)
        low, middle, high = gain.min(), gain.median(), gain.max()
        return Change(
            value=writer.value,
            module=self.program.module_of(writer.value),
            kind=("scale and shift" if self.shifted else "scale") if self.scales else "shift",
            gain=(float(low), float(middle), float(high)),
            clamped=clamped,
            into=tuple(keys),
        )


def scaled(
    weight: Float[Tensor, "..."], writer: Writer, gain: Float[Tensor, " channels"]
) -> Float[Tensor, "..."]:
    """A stored weight with each output channel multiplied by its gain, in float64."""
    wide = weight.double()
    if writer.groups == 1:
        return wide * gain.view(-1, *[1] * (weight.ndim - 1 - writer.out))
    # A transposed convolution: (groups x inputs of a group, outputs of a group, kernel).
    blocks = wide.unflatten(0, (writer.groups, -1))
    return (blocks * gain.view(writer.groups, 1, -1, *[1] * (weight.ndim - 2))).flatten(0, 1)


@dataclass
class NormSite:
    """The running statistics of a batch norm, taken anew; one norm may be called at several places.

    Attributes:
        program: the graph.
        calls: the nodes that share these statistics.
    """

    program: Program
    calls: tuple[str, ...]
    pooled: Pooled = field(default_factory=Pooled)

    @property
    def events(self) -> tuple[tuple[str, str, int], ...]:
        return tuple((call, _input(self.program.nodes[call]).name, 1) for call in self.calls)

    def replacement(self, value: Tensor, batch: Centred) -> None:
        """Nothing: the norm itself is run with the batch's statistics."""

    def write(self, weights: dict[str, Tensor]) -> Change:
        count = self.pooled.count
        if count < 2:
            key, _ = _statistics(self.program, self.program.nodes[self.calls[0]])
            raise DataError(f"{key}: one sample has no variance", hint="give more calibration data")
        # What torch keeps is the unbiased estimate.
        return self.replace(weights, self.pooled.mean, self.pooled.variance * (count / (count - 1)))

    def replace(self, weights: dict[str, Tensor], new_mean: Tensor, new: Tensor) -> Change:
        """Write a mean and a variance per channel."""
        node = self.program.nodes[self.calls[0]]
        mean, variance = _statistics(self.program, node)
        eps = float(str(node.args[7]))
        old = weights[variance].double()
        gain = ((old + eps) / (new + eps)).sqrt()
        weights[mean] = new_mean.to(weights[mean])
        weights[variance] = new.to(weights[variance])
        return Change(
            value=self.calls[0],
            module=self.program.module_of(self.calls[0]),
            kind="statistics",
            gain=(float(gain.min()), float(gain.median()), float(gain.max())),
            clamped=0,
            into=(mean, variance),
        )


def norm_sites(program: Program, norms: tuple[str, ...]) -> list[NormSite]:
    """A site for each set of running statistics that the norms read."""
    shared: dict[str, list[str]] = {}
    for name in norms:
        shared.setdefault(_statistics(program, program.nodes[name])[0], []).append(name)
    return [NormSite(program, tuple(calls)) for calls in shared.values()]


def _statistics(program: Program, norm: fx.Node) -> tuple[str, str]:
    found = statistics_of(program, norm)
    assert found is not None, f"{norm} has no running statistics"
    return program.weights[found[0]], program.weights[found[1]]


def _input(norm: fx.Node) -> fx.Node:
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    return source
