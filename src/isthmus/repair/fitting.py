"""Places that a least-squares repair fits: what is measured there, and what is written into the weights for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from isthmus.errors import DataError
from isthmus.features import Patches, working_dtype
from isthmus.program import Program
from isthmus.repair.regression import Fit, Regression
from isthmus.repair.result import Change
from isthmus.repair.targets import Target
from isthmus.repair.writers import Writer, statistics_of

aten = torch.ops.aten

#: Numbers of a layer's input that are laid out at a time: a convolution's windows are as many times its input.
CHUNK = 1 << 24

# Operation: where its weight and its bias are, and its channels' axis (None: the last).
_NORMS: dict[object, tuple[int, int, int | None]] = {
    aten.batch_norm.default: (1, 2, 1),
    aten.layer_norm.default: (2, 3, None),
    aten.group_norm.default: (2, 3, 1),
}


@dataclass(frozen=True)
class Norm:
    """A norm with a factor and a summand of its own per channel.

    Attributes:
        value: what it puts out.
        source: what it reads.
        axis: its channels.
        weight: key of the factors.
        bias: key of the summands.
        statistics: keys of running mean and variance, and what is added to that; None for a norm of the example.
    """

    value: str
    source: str
    axis: int
    weight: str
    bias: str
    statistics: tuple[str, str, float] | None


def norm_of(program: Program, node: fx.Node) -> Norm | None:
    """The norm that a node is, if it has a weight and a bias per channel that nothing else reads."""
    if node.target not in _NORMS or node.name not in program.dynamic:
        return None
    weight_at, bias_at, axis = _NORMS[node.target]
    source = node.args[0]
    found = [node.args[i] if len(node.args) > i else None for i in (weight_at, bias_at)]
    keys = [
        program.weights[a.name]
        for a in found
        if isinstance(a, fx.Node)
        and a.name in program.weights
        and len(a.users) == 1
        and len(program.size(a.name)) == 1
    ]
    if not isinstance(source, fx.Node) or len(keys) != 2:
        return None
    held = statistics_of(program, node)
    if node.target is aten.batch_norm.default and (
        held is None or any(len(program.nodes[name].users) != 1 for name in held)
    ):
        return None
    return Norm(
        value=node.name,
        source=source.name,
        axis=len(program.size(node.name)) - 1 if axis is None else axis,
        weight=keys[0],
        bias=keys[1],
        statistics=None
        if held is None
        else (program.weights[held[0]], program.weights[held[1]], float(str(node.args[7]))),
    )


@dataclass
class LayerPlace:
    """A linear or conv operation, together with the batch norm behind it if that is its only reader.

    Attributes:
        program: of the merged model.
        writer: the operation.
        source: what it reads, and along which axis.
        patches: a convolution's windows.
        groups: of a convolution.
        norm: the batch norm.
        target: of the norm's output, or of the operation's.
        ridge: see `Regression.fit`.
        rank: likewise.
    """

    program: Program
    writer: Writer
    source: tuple[str, int]
    patches: Patches | None
    groups: int
    norm: Norm | None
    target: Target
    ridge: float
    rank: int | None
    regression: Regression = field(default_factory=Regression)

    @property
    def at(self) -> str:
        return self.writer.value

    @property
    def shown(self) -> tuple[str, ...]:
        return (self.source[0], self.writer.value)

    @property
    def shifts(self) -> bool:
        """Whether there is a place for a bias."""
        return self.writer.bias is not None or self.norm is not None

    def add(self, values: Mapping[str, Tensor], target: Tensor) -> None:
        read, made = values[self.source[0]], values[self.writer.value]
        for rows in self._chunks(read):
            self.regression.add(
                self._inputs(read[rows]),
                _samples(made[rows], self.writer.axis, self.groups),
                _samples(target[rows], self.target.axis, self.groups),
            )

    def _chunks(self, read: Tensor) -> Iterator[slice]:
        """Examples that are laid out at a time."""
        if self.source[1] == 0:  # they are columns
            return iter([slice(None)])
        area = 1 if self.patches is None else torch.Size(self.patches.kernel).numel()
        step = max(1, CHUNK // max(1, read[:1].numel() * area))
        return (slice(start, start + step) for start in range(0, len(read), step))

    def _inputs(self, read: Tensor) -> Tensor:
        if self.patches is None:
            return _samples(read, self.source[1], self.groups)
        wide = self.patches.of(read.to(working_dtype(read.dtype)))
        return wide.unflatten(1, (self.groups, -1))

    def write(self, weights: dict[str, Tensor]) -> Change:
        writer, names = self.writer, self.program.weights
        key = names[writer.weight]
        stored = weights[key]
        matrix = (stored if writer.out == 0 else stored.T).flatten(1).double().unflatten(0, (self.groups, -1))
        fit = self.regression.fit(matrix, ridge=self.ridge, rank=self.rank, bias=self.shifts)
        new, keys = fit.weight, [key]
        if self.norm is not None:
            new = self._through_norm(weights, matrix, fit)
            keys += [self.norm.weight, self.norm.bias, *(self.norm.statistics or ())[:2]]
        elif writer.bias is not None:
            _put(weights, names[writer.bias], fit.bias.flatten())
            keys.append(names[writer.bias])
        flat = new.flatten(0, 1).to(stored)
        weights[key] = flat.view_as(stored) if writer.out == 0 else flat.T.contiguous()
        return _change(self.program, writer.value, fit, self.shifts, tuple(keys))

    def _through_norm(self, weights: dict[str, Tensor], old: Tensor, fit: Fit) -> Tensor:
        """The layer that the norm turns into what was fitted, each row as long as it was; the norm's own numbers."""
        assert self.norm is not None and self.norm.statistics is not None
        mean, variance, eps = self.norm.statistics
        length = fit.weight.norm(dim=2)
        factor = torch.where(length > 0, old.norm(dim=2) / length, 1.0)
        factor = torch.where(factor > 0, factor, 1.0).copysign(fit.gain)
        new = fit.weight * factor.unsqueeze(2)
        count = self.regression.count
        spread = self.regression.variance(new).flatten() * (count / (count - 1))
        centre = (new @ self.regression.mean.unsqueeze(2)).flatten()
        if self.writer.bias is not None:
            centre = centre + weights[self.program.weights[self.writer.bias]].double()
        _put(weights, mean, centre)
        _put(weights, variance, spread)
        _put(weights, self.norm.weight, (spread + eps).sqrt() / factor.flatten())
        _put(weights, self.norm.bias, self.regression.target.flatten())
        return new


@dataclass
class NormPlace:
    """A norm that stands by itself: its factors and summands, and its running statistics where it has any.

    Attributes:
        program: of the merged model.
        norm: the norm.
        target: of its output.
    """

    program: Program
    norm: Norm
    target: Target
    regression: Regression = field(default_factory=Regression)

    @property
    def at(self) -> str:
        return self.norm.value

    @property
    def shown(self) -> tuple[str, ...]:
        return (self.norm.source if self.norm.statistics is not None else self.norm.value,)

    def add(self, values: Mapping[str, Tensor], target: Tensor) -> None:
        made = values[self.shown[0]]
        channels = made.shape[self.norm.axis]
        own = _samples(made, self.norm.axis, channels)
        self.regression.add(own, own, _samples(target, self.target.axis, channels))

    def write(self, weights: dict[str, Tensor]) -> Change:
        norm, measured = self.norm, self.regression
        ones = torch.ones_like(measured.target).unsqueeze(2)
        fit = measured.fit(ones, ridge=1.0, rank=0)
        keys = (norm.weight, norm.bias)
        if norm.statistics is None:
            _put(weights, norm.weight, fit.gain.flatten() * weights[norm.weight].double())
            bias = weights[norm.bias].double()
            _put(weights, norm.bias, fit.gain.flatten() * bias + fit.bias.flatten())
        else:
            mean, variance, eps = norm.statistics
            spread = measured.variance(ones).flatten() * (measured.count / (measured.count - 1))
            _put(weights, mean, measured.mean.flatten())
            _put(weights, variance, spread)
            _put(weights, norm.weight, fit.gain.flatten() * (spread + eps).sqrt())
            _put(weights, norm.bias, measured.target.flatten())
            keys = (*keys, mean, variance)
        return _change(self.program, norm.value, fit, True, keys)


#: A place that is fitted: everything before `at` must be finished, `shown` are the values that it is measured by.
Place = LayerPlace | NormPlace


def check(place: Place) -> None:
    """Refuse what cannot be fitted to.

    Raises:
        DataError: activations that are not finite, or a single sample.
    """
    if not place.regression.finite:
        raise DataError(
            "activations are not finite",
            [place.at],
            hint="look at the weights: a value overflowed, or they hold NaN; or at the data",
        )
    if place.regression.count < 2:
        raise DataError(f"{place.at}: one sample has no variance", hint="give more calibration data")


def _samples(value: Tensor, axis: int, groups: int) -> Tensor:
    """(samples, groups, channels of a group), in a precision that products can be taken in."""
    rows = value.movedim(axis, -1).reshape(-1, value.shape[axis]).to(working_dtype(value.dtype))
    return rows.unflatten(1, (groups, -1))


def _put(weights: dict[str, Tensor], key: str, tensor: Tensor) -> None:
    weights[key] = tensor.to(weights[key])


def _change(program: Program, value: str, fit: Fit, shifts: bool, keys: tuple[str, ...]) -> Change:
    gain = fit.gain
    return Change(
        value=value,
        module=program.module_of(value),
        kind="least squares" if shifts else "least squares without bias",
        gain=(float(gain.min()), float(gain.median()), float(gain.max())),
        clamped=0,
        into=keys,
        left=fit.left,
    )
