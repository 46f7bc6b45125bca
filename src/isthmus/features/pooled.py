"""Moments of a value's channels, pooled exactly: however the samples are split into batches, the same."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Scratch:
    """Buffers that are used again for every batch: touching fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self._flat: dict[object, Tensor] = {}

    def take(self, key: object, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor of `shape`; what was taken before under the same key is overwritten."""
        flat = self._flat.get(key)
        if flat is None or flat.numel() < prod(shape) or (flat.dtype, flat.device) != (dtype, like.device):
            flat = self._flat[key] = torch.empty(prod(shape), dtype=dtype, device=like.device)
        return flat[: prod(shape)].view(shape)


@dataclass(frozen=True)
class Centred:
    """One batch of one value with its own mean taken off, all axes but the channel axis flattened.

    Attributes:
        data: channels x samples, or samples x channels where `last`.
        mean: of the batch, per channel, float64.
        squares: sum of the squares of `data` per channel, float64.
        last: whether the channels are the last axis of `data`, as they were of the value.
    """

    data: Float[Tensor, "rows columns"]
    mean: Float[Tensor, " channels"]
    squares: Float[Tensor, " channels"]
    last: bool

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.data.shape[0 if self.last else 1]

    @property
    def variance(self) -> Float[Tensor, " channels"]:
        """Of the batch, over its samples (not the unbiased estimate)."""
        return self.squares / self.count

    def products(self, other: Centred) -> Float[Tensor, "own others"]:
        """Sum over samples of this value's channels times the other's."""
        a = self.data.T if self.last else self.data
        b = other.data if other.last else other.data.T
        if a.dtype != b.dtype:
            a, b = a.double(), b.double()
        return a @ b


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products are taken in: float32 for anything narrower, else the value's own."""
    return torch.promote_types(dtype, torch.float32)


def centre(value: Tensor, axis: int, scratch: Scratch | None = None, key: object = None) -> Centred:
    """Take a value's own mean off, channel by channel.

    Args:
        value: any shape; floating.
        axis: the channel axis; every other axis counts samples.
        scratch: where the result lives, under `key`, until the same key is taken again.
        key: see `scratch`.
    """
    scratch = scratch or Scratch()
    dtype = working_dtype(value.dtype)
    axis %= value.ndim
    # Either way the innermost axis of the value stays the innermost: the copy runs at memory speed.
    last = axis == value.ndim - 1
    samples = value if last else value.movedim(axis, 0)
    channels, count = value.shape[axis], value.numel() // max(value.shape[axis], 1)
    over = tuple(range(samples.ndim - 1)) if last else tuple(range(1, samples.ndim))
    mean = samples.mean(over, dtype=dtype) if over else samples.to(dtype)
    data = scratch.take(key, tuple(samples.shape), value, dtype)
    torch.sub(samples.to(dtype), mean if last else mean.view(-1, *[1] * (samples.ndim - 1)), out=data)
    data = data.view(count, channels) if last else data.view(channels, count)
    # The mean was rounded where values may be large; what it missed is found where they are small.
    missed = data.mean(0 if last else 1).double()
    return Centred(data, mean.double() + missed, _squares(data, last, scratch), last)


def _squares(data: Tensor, last: bool, scratch: Scratch) -> Tensor:
    """Sum of squares per channel, float64."""
    if last:
        # A norm down the rows is ten times slower than squaring into a buffer and adding up.
        squared = scratch.take("squared", tuple(data.shape), data, data.dtype)
        return torch.mul(data, data, out=squared).sum(0).double()
    # Along a row a norm is one fused pass, but it adds up naively: short blocks keep its error at
    # 1e-7 (one of 65536 samples has 5e-5).
    whole = data.shape[1] - data.shape[1] % 256
    blocks = torch.linalg.vector_norm(data[:, :whole].unflatten(1, (-1, 256)), dim=2).double()
    rest = torch.linalg.vector_norm(data[:, whole:], dim=1).double()
    return blocks.square().sum(1) + rest.square()


class Pooled:
    """Count, mean and sum of squared deviations of everything added, in float64.

    Source: Chan, Golub and LeVeque 1979, the update of a mean and a sum of squares by those of a batch.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None
        self._eps = 0.0

    def add(self, batch: Centred) -> None:
        """Pool one batch in."""
        self._eps = max(self._eps, torch.finfo(batch.data.dtype).eps)
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = batch.count, batch.mean, batch.squares
            return
        total = self.count + batch.count
        delta = batch.mean - self._mean
        self._squares = self._squares + batch.squares + delta**2 * (self.count * batch.count / total)
        self._mean = self._mean + delta * (batch.count / total)
        self.count = total

    @property
    def mean(self) -> Float[Tensor, " channels"]:
        """Per channel."""
        assert self._mean is not None, "nothing was added"
        return self._mean

    @property
    def variance(self) -> Float[Tensor, " channels"]:
        """Per channel, over all samples: sum of squared deviations / count.

        Deviations within the rounding of the channel's own mean are none: a constant channel has variance 0.
        """
        assert self._squares is not None, "nothing was added"
        variance = self._squares / self.count
        return torch.where(variance > (8 * self._eps * self.mean) ** 2, variance, 0.0)

    @property
    def finite(self) -> Bool[Tensor, ""]:
        """Whether all of it is, as a tensor: asking a device for its truth is left to the caller."""
        assert self._mean is not None, "nothing was added"
        assert self._squares is not None, "nothing was added"
        return (self._mean + self._squares).isfinite().all()


class PooledProducts:
    """Sum of the products of two values' deviations, pooled like `Pooled`, in float64."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, a: Centred, b: Centred, pooled_a: Pooled, pooled_b: Pooled) -> None:
        """Pool one batch in; the two `Pooled` must not hold this batch yet."""
        products = a.products(b)
        if self._sum is None:
            self._sum = products.double()
            return
        self._sum += products
        weight = pooled_a.count * a.count / (pooled_a.count + a.count)
        self._sum.addr_(a.mean - pooled_a.mean, (b.mean - pooled_b.mean) * weight)

    def covariance(self, count: int) -> Float[Tensor, "own others"]:
        """Sum of products / count."""
        assert self._sum is not None, "nothing was added"
        return self._sum / count
