"""Fashion-MNIST, from the IDX files that it is published in."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from isthmus.errors import DataError

from .dataset import Dataset

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
LARGEST = 2**30  # bytes; a header may promise anything, and reading allocates what is asked for
SIZES = {"train": 60000, "test": 10000}


def fashion_mnist(folder: str | Path) -> Dataset:
    """Fashion-MNIST: 60000 and 10000 grey images of 28x28 pixels, ten classes in equal numbers.

    Args:
        folder: holds the four IDX files, gzipped or not, at any depth (an unpacked Debian package
            `dataset-fashion-mnist` will do).

    Raises:
        DataError: files missing, truncated or of other data.

    Source: Xiao, Rasul and Vollgraf 2017; mean 0.2860 and deviation 0.3530 of the training pixels.
    """
    parts = read_idx_folder(folder)
    wrong = [
        f"{split}: {len(y)} labels, per class {np.bincount(y).tolist()}"
        for split, (_, y) in parts.items()
        if np.bincount(y, minlength=10).tolist() != [SIZES[split] // 10] * 10
    ]
    if wrong:
        raise DataError(
            f"{folder}: this is not Fashion-MNIST, which has 6000 and 1000 images per class",
            where=wrong,
            hint="MNIST and its other descendants have files of the same names",
        )
    return Dataset.of(
        "fashion-mnist", parts["train"], parts["test"], classes=CLASSES, mean=(0.2860,), std=(0.3530,)
    )


def read_idx_folder(folder: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of both splits, the four files being searched for by their published names."""
    folder = Path(folder)
    paths = {p.name.removesuffix(".gz"): p for p in sorted(folder.rglob("*-ubyte*")) if p.is_file()}
    missing = [name for names in FILES.values() for name in names if name not in paths]
    if missing:
        raise DataError(f"{folder}: IDX files not found", where=[f"{name}[.gz]" for name in missing])
    parts = {split: tuple(read_idx(paths[name]) for name in names) for split, names in FILES.items()}
    return {split: (images, labels) for split, (images, labels) in parts.items()}


def read_idx(path: str | Path) -> np.ndarray:
    """One array of unsigned bytes from an IDX file, gzipped if its name ends in .gz.

    The header's sizes are believed only as far as the bytes are there, exactly.

    Raises:
        DataError: not such a file, truncated, or with bytes to spare.

    Source: the format's description by LeCun, Cortes and Burges: two zero bytes, the type (8: unsigned
        byte), the number of dimensions, each size as a big-endian 32-bit integer, the data.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
                raise DataError(
                    f"{path}: not an IDX file of unsigned bytes (it begins with {magic.hex(' ')})"
                )
            header = file.read(4 * magic[3])
            shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4))
            size = math.prod(shape)
            body = file.read(min(size, LARGEST) + 1)
    except (OSError, EOFError, zlib.error) as error:  # gzip reports damage as any of these
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(header) < 4 * magic[3] or len(body) != size:
        more = "more" if len(body) > size else f"only {len(body)}"
        raise DataError(f"{path}: the header promises {size} bytes of shape {shape}, but there are {more}")
    return np.frombuffer(body, np.uint8).reshape(shape)
