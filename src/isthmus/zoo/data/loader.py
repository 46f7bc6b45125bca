"""Batches of normalised images, the same ones each time that they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from isthmus.errors import InputError

from .draws import permutation, words

Batch = tuple[Float[Tensor, "n c h w"], Int64[Tensor, "n"]]

SUBSET, ORDER, AUGMENT = range(3)  # what a seed is used for, so that no two uses share their numbers


@dataclass(frozen=True)
class Augment:
    """A random translation by up to `pad` pixels (borders reflected) and, if `flip`, a random mirror image.

    Source: the usual CIFAR augmentation (He et al. 2016, section 4.2), who pad with zeros; the reference
        checkpoints were trained with reflected borders, so these are reflected.
    """

    pad: int = 4
    flip: bool = True

    def __call__(
        self, images: UInt8[np.ndarray, "n h w c"], draw: UInt8[np.ndarray, "n 3"]
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Move image i by the offsets that draw[i, :2] stands for, and mirror it where draw[i, 2] is odd."""
        n, h, w, _ = images.shape
        if self.pad >= min(h, w):
            raise InputError(f"a translation by {self.pad} pixels is too large for images of {h} x {w}")
        shift = draw[:, :2].astype(np.int64) % (2 * self.pad + 1) - self.pad
        rows = _reflected(shift[:, :1] + np.arange(h), h)
        columns = _reflected(shift[:, 1:] + np.arange(w), w)
        if self.flip:
            mirrored: Bool[np.ndarray, " n"] = draw[:, 2] % 2 == 1
            columns[mirrored] = columns[mirrored, ::-1]
        return images[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflected(index: Int64[np.ndarray, "n s"], size: int) -> Int64[np.ndarray, "n s"]:
    """Indices mirrored at both ends of an axis: -1 is 1, and size is size - 2."""
    return (size - 1) - np.abs((size - 1) - np.abs(index))


@dataclass(frozen=True, eq=False, repr=False)
class Loader:
    """An iterable of (inputs, targets): float32 images, normalised, (N, C, H, W), and int64 class numbers.

    Iterating twice gives the same batches. `epoch(k)` gives the k-th reshuffling instead, so a trainer needs
    no hidden counter. What is drawn for an image does not depend on the batch size.

    Args:
        images: pixels, unsigned bytes.
        labels: class numbers.
        mean: per channel, in units of `scale`; subtracted.
        std: per channel, in units of `scale`; divided by.
        scale: the pixel value that stands for 1.0.
        batch_size: images in a batch; the last may have fewer, or is left out with `drop_last`.
        augment: applied to every image, or None.
        shuffle: draw the order anew for each epoch.
        seed: of the subset, the order and the augmentation.
        limit: use this many images at most, drawn without replacement, the same ones in each epoch.
        drop_last: leave out a last batch that is not full.

    Raises:
        InputError: a batch size or a limit below one, or no full batch where one is asked for.
    """

    images: UInt8[np.ndarray, "all h w c"]
    labels: UInt8[np.ndarray, " all"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    batch_size: int = 256
    augment: Augment | None = None
    shuffle: bool = False
    seed: int = 0
    limit: int | None = None
    drop_last: bool = False

    def __post_init__(self):
        if self.batch_size < 1:
            raise InputError(f"batch_size is at least 1, not {self.batch_size}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit is at least 1, not {self.limit}")
        if len(self) == 0:
            raise InputError(f"{self.samples} images do not fill one batch of {self.batch_size}")

    @property
    def samples(self) -> int:
        """Images drawn from, after `limit`."""
        return len(self.labels) if self.limit is None else min(self.limit, len(self.labels))

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self.samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, index: int, seed: int | None = None) -> Iterator[Batch]:
        """The batches of one epoch.

        Args:
            index: number of the epoch, from 0; other epochs have another order and augmentation.
            seed: of the order and the augmentation, in place of the loader's own.
        """
        seed = self.seed if seed is None else seed
        chosen = np.arange(len(self.labels))
        if self.samples < len(chosen):
            chosen = np.sort(permutation(len(chosen), self.seed, SUBSET)[: self.samples])
        if self.shuffle:
            chosen = chosen[permutation(len(chosen), seed, ORDER, index)]
        draws = words(len(chosen), seed, AUGMENT, index).view(np.uint8).reshape(-1, 8)[:, :3]
        mean, std = (torch.tensor(v, dtype=torch.float32).reshape(-1, 1, 1) for v in (self.mean, self.std))
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            rows = chosen[start : start + self.batch_size]
            pixels = self.images[rows]
            augment = self.augment
            if augment is not None:
                pixels = augment(pixels, draws[start : start + self.batch_size])
            inputs = (
                torch.from_numpy(pixels)
                .permute(0, 3, 1, 2)
                .to(torch.float32, memory_format=torch.contiguous_format)
            )
            inputs.div_(self.scale).sub_(mean).div_(std)
            yield inputs, torch.from_numpy(self.labels[rows].astype(np.int64))

    def __repr__(self) -> str:
        h, w, c = self.images.shape[1:]
        return f"Loader({self.samples} images of {c}x{h}x{w}, {len(self)} batches of {self.batch_size})"
