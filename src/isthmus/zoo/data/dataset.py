"""Labelled images in memory, checked once, with what is needed to feed them to a network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64, UInt8

from isthmus.errors import DataError, InputError

from .draws import stratified
from .loader import Augment, Loader

SPLITS = ("train", "validation", "test")
VALIDATION = 0.1  # of the training data, where nobody says how much


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and labels of a training, a test and perhaps a validation split, none of them writable.

    Make one by `Dataset.of`, which brings arrays into this form, or by a function of `isthmus.zoo.data`.

    Args:
        name: how tables call it.
        x_train, x_test, x_validation: pixels, unsigned bytes, (N, H, W, C).
        y_train, y_test, y_validation: class numbers, unsigned bytes, (N,).
        classes: names of the classes, by number.
        mean, std: per channel, in units of `scale`, subtracted and divided by before a network sees a pixel.
        scale: the pixel value that stands for 1.0.
        augmentation: what `loader(augment=True)` does to a training image, or None.

    Raises:
        DataError: anything misshapen, empty, miscounted or out of range; all problems at once.
    """

    # Plain types here: what is wrong with an array is said below, in words, and not only in our tests.
    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    augmentation: Augment | None = None
    x_validation: np.ndarray | None = None
    y_validation: np.ndarray | None = None

    def __post_init__(self):
        if (self.x_validation is None) != (self.y_validation is None):
            raise DataError(f"{self.name}: validation images and labels come together or not at all")
        problems = [line for split in self.splits for line in self._problems(split)]
        if not problems:
            channels = self.x_train.shape[3]
            for name, values in (("mean", self.mean), ("std", self.std)):
                if len(values) != channels or not np.isfinite(values).all():
                    problems.append(
                        f"{name}: {channels} finite numbers, one per channel, expected; got {values}"
                    )
            if any(v <= 0 for v in (*self.std, self.scale)):
                problems.append(f"std {self.std} and scale {self.scale}: expected to be positive")
        if problems:
            raise DataError(f"{self.name}: not a set of labelled images", where=problems)
        for split in self.splits:
            for key in (f"x_{split}", f"y_{split}"):
                frozen = getattr(self, key).view()
                frozen.flags.writeable = False
                object.__setattr__(self, key, frozen)

    def _problems(self, split: str) -> list[str]:
        x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
        if x.dtype != np.uint8 or x.ndim != 4 or 0 in x.shape:
            return [f"x_{split}: unsigned bytes of shape (N, H, W, C) expected; got {x.dtype} {x.shape}"]
        found: list[str] = []
        if x.shape[1:] != self.x_train.shape[1:]:
            found.append(f"x_{split}: images are {x.shape[1:]}, those of x_train {self.x_train.shape[1:]}")
        if y.dtype != np.uint8 or y.shape != x.shape[:1]:
            numbers = f"{y.dtype} {y.shape}" + (f" from {y.min()} to {y.max()}" if y.size else "")
            found.append(f"y_{split}: {len(x)} class numbers, 0 to 255, expected; got {numbers}")
        elif y.max() >= len(self.classes):
            found.append(f"y_{split}: class {y.max()}, but there are {len(self.classes)} classes")
        return found

    @classmethod
    def of(
        cls,
        name: str,
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
        validation: tuple[np.ndarray, np.ndarray] | None = None,
        *,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float = 255.0,
        augmentation: Augment | None = None,
    ) -> Dataset:
        """A data set from (images, labels) pairs.

        Args:
            name: how tables call it.
            train: images of unsigned bytes, (N, H, W) or (N, H, W, C), and integer labels, (N,) or (N, 1).
            test: the same of the test split.
            validation: the same of the validation split, if the data comes with one.
            classes: names of the classes; by default their numbers, as many as the labels have.
            mean: per channel, in units of `scale`; by default that of the training images.
            std: standard deviation likewise, that of a channel which never varies being taken as 1.
            scale: the pixel value that stands for 1.0.
            augmentation: what `loader(augment=True)` does to a training image.

        Raises:
            DataError: as for the class.
        """
        parts = {"train": train, "test": test} | ({} if validation is None else {"validation": validation})
        arrays: dict[str, np.ndarray] = {}
        for split, (x, y) in parts.items():
            arrays[f"x_{split}"] = x[..., None] if x.ndim == 3 else x
            arrays[f"y_{split}"] = _as_bytes(y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y)
        if classes is None:
            labels = [arrays[f"y_{split}"] for split in parts]
            most = max((int(y.max()) for y in labels if y.dtype == np.uint8 and y.size), default=0)
            classes = [str(i) for i in range(most + 1)]
        found = _moments(arrays["x_train"], scale) if mean is None or std is None else ((), ())
        return cls(
            name=name,
            classes=tuple(classes),
            mean=found[0] if mean is None else tuple(map(float, mean)),
            std=found[1] if std is None else tuple(map(float, std)),
            scale=scale,
            augmentation=augmentation,
            **arrays,
        )

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits there are, in the order train, validation, test."""
        return SPLITS if self.x_validation is not None else ("train", "test")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        h, w, c = self.x_train.shape[1:]
        return c, h, w

    def arrays(self, split: str) -> tuple[UInt8[np.ndarray, "n h w c"], UInt8[np.ndarray, " n"]]:
        """Pixels and class numbers of a split.

        Raises:
            DataError: no such split.
        """
        if split not in self.splits:
            hint = "call .split() first: it keeps a part of the training data" if split in SPLITS else None
            raise DataError(f"{self.name} has no {split!r} split, only {', '.join(self.splits)}", hint=hint)
        return getattr(self, f"x_{split}"), getattr(self, f"y_{split}")

    def split(self, validation: int | float | None = None, seed: int = 0) -> Dataset:
        """The same data with a validation split kept from the training data, every class in proportion.

        `mean` and `std` stay, so that a checkpoint's normalisation does not depend on the seed.

        Args:
            validation: images to keep (1 or more) or the share to keep (below 1); by default a tenth, or the
                validation split that the data came with.
            seed: which images.

        Raises:
            InputError: a size that leaves a side empty, or a second validation split.
        """
        if self.x_validation is not None:
            if validation is None:
                return self
            kept = len(self.x_validation)
            raise InputError(f"{self.name} has a validation split already, of {kept} images")
        asked = VALIDATION if validation is None else validation
        n = len(self.y_train)
        size = round(asked * n if asked < 1 else asked)
        if not 0 < size < n:
            raise InputError(f"{self.name}: cannot keep {asked} of {n} training images for validation")
        chosen: Int64[np.ndarray, " size"] = stratified(self.y_train, size, seed)
        rest = np.setdiff1d(np.arange(n), chosen, assume_unique=True)
        return replace(
            self,
            x_train=self.x_train[rest],
            y_train=self.y_train[rest],
            x_validation=self.x_train[chosen],
            y_validation=self.y_train[chosen],
        )

    def loader(
        self,
        split: str,
        *,
        batch_size: int = 256,
        augment: bool | Augment = False,
        shuffle: bool = False,
        seed: int = 0,
        limit: int | None = None,
        drop_last: bool = False,
    ) -> Loader:
        """Batches of a split, ready for a network; see `Loader`.

        Args:
            split: "train", "validation" or "test".
            batch_size: images in a batch; the last may have fewer.
            augment: True for the data set's own augmentation, or one to use.
            shuffle: draw the order anew for each epoch.
            seed: of the subset, the order and the augmentation.
            limit: use this many images at most, drawn without replacement.
            drop_last: leave out a last batch that is not full.

        Raises:
            DataError: no such split.
            InputError: True for a data set without an augmentation, or as for `Loader`.
        """
        images, labels = self.arrays(split)
        if augment is True and self.augmentation is None:
            raise InputError(
                f"{self.name} has no augmentation of its own", hint="pass augment=zoo.Augment(...)"
            )
        chosen = self.augmentation if augment is True else augment or None
        return Loader(
            images,
            labels,
            self.mean,
            self.std,
            self.scale,
            batch_size=batch_size,
            augment=chosen,
            shuffle=shuffle,
            seed=seed,
            limit=limit,
            drop_last=drop_last,
        )

    def sha256(self) -> str:
        """Digest of the bytes of x_train, y_train, x_test and y_test, in this order (no validation split)."""
        digest = hashlib.sha256()
        for split in ("train", "test"):
            for array in self.arrays(split):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(self.arrays(split)[1])} {split}" for split in self.splits)
        return f"Dataset({self.name}: {sizes}; {'x'.join(map(str, self.shape))}, {self.num_classes} classes)"


def _as_bytes(labels: np.ndarray) -> np.ndarray:
    """Integer labels as unsigned bytes; what does not fit is left for the checks to name."""
    if np.issubdtype(labels.dtype, np.integer) and labels.size and labels.min() >= 0 and labels.max() < 256:
        return labels.astype(np.uint8)
    return labels


def _parts(x: np.ndarray, rows: int = 4096) -> list[np.ndarray]:
    """Views of a few rows each: counting widens bytes eightfold."""
    return [x[start : start + rows] for start in range(0, len(x), rows)]


def _moments(x: np.ndarray, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, exact (from the counts of the 256 pixel values)."""
    if x.dtype != np.uint8 or x.ndim != 4 or 0 in x.shape:
        return (), ()  # the checks will name it
    values = np.arange(256) / scale
    means: list[float] = []
    deviations: list[float] = []
    for channel in range(x.shape[3]):
        counts = np.sum([np.bincount(p.ravel(), minlength=256) for p in _parts(x[..., channel])], axis=0)
        mean = float(counts @ values / counts.sum())
        deviation = float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum()))
        means.append(mean)
        deviations.append(deviation or 1.0)
    return tuple(means), tuple(deviations)
