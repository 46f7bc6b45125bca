"""Data sets in npz files: our own, and those of others that name their arrays in a known way."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from isthmus.errors import DataError, UnsafeFileError

from .dataset import SPLITS, Dataset
from .loader import Augment

# Split -> names of its images and labels: ours (and Keras's), and those of MedMNIST.
LAYOUTS = (
    {split: (f"x_{split}", f"y_{split}") for split in SPLITS},
    {
        s: (f"{k}_images", f"{k}_labels")
        for s, k in (("train", "train"), ("validation", "val"), ("test", "test"))
    },
)
OPTIONAL = ("name", "classes", "mean", "std", "scale", "augmentation")


def npz(path: str | Path) -> Dataset:
    """A data set from an npz file; nothing in the file is executed.

    Args:
        path: holds `x_train`, `y_train`, `x_test`, `y_test` (and perhaps `x_validation`, `y_validation`) or,
            as MedMNIST names them, `train_images`, `train_labels`, `val_images`, ...: images of unsigned
            bytes, (N, H, W) or (N, H, W, C) with up to 4 channels, and integer labels, (N,) or (N, 1).
            What `save_npz` adds is read as well: name, classes, mean, std, scale, augmentation.

    Raises:
        UnsafeFileError: the file, or an array in it, is pickled.
        DataError: not such a file, arrays missing, misshapen or miscounted.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):
        _refuse_pickle(path)
        raise DataError(f"{path}: {'not an npz file' if path.exists() else 'no such file'}")
    try:  # an encrypted member is a RuntimeError
        with np.load(path, allow_pickle=False) as file:
            arrays = _chosen(path, file.files)
            found = {key: file[name] for key, name in arrays.items()}
            raw = [name for key, name in arrays.items() if not isinstance(found[key], np.ndarray)]
            if raw:
                raise DataError(f"{path}: not arrays", where=raw)
    except (
        OSError,
        EOFError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
        MemoryError,
    ) as error:
        if isinstance(error, DataError):
            raise
        if "allow_pickle" in str(error):
            raise UnsafeFileError(
                f"{path}: holds a pickled array, which would run code on loading"
            ) from error
        raise DataError(f"{path}: cannot be read: {error}") from error
    for split in SPLITS:
        shape = found[f"x_{split}"].shape if f"x_{split}" in found else (0, 0, 0)
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] > 4):
            hint = "transpose to (N, H, W, C)" if len(shape) == 4 and shape[1] <= 4 else None
            raise DataError(
                f"{path}: x_{split}: (N, H, W) or (N, H, W, up to 4) expected, got {shape}", hint=hint
            )
    parts = {split: (found[f"x_{split}"], found[f"y_{split}"]) for split in SPLITS if f"x_{split}" in found}
    try:
        return Dataset.of(
            str(found["name"]) if "name" in found else path.stem,
            parts["train"],
            parts["test"],
            parts.get("validation"),
            classes=[str(c) for c in found["classes"]] if "classes" in found else None,
            mean=[float(v) for v in found["mean"]] if "mean" in found else None,
            std=[float(v) for v in found["std"]] if "std" in found else None,
            scale=float(found["scale"]) if "scale" in found else 255.0,
            augmentation=_augment(found["augmentation"]) if "augmentation" in found else None,
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise DataError(f"{path}: {error.what}", error.where, error.hint) from error
        raise DataError(
            f"{path}: name, classes, mean, std, scale or augmentation is malformed: {error}"
        ) from error


def save_npz(data: Dataset, path: str | Path) -> None:
    """Write a data set to an uncompressed npz file, which `npz` reads back in a fraction of a second.

    The file appears under its name when it is whole; the same data gives the same bytes.
    """
    path = Path(path)
    arrays = {
        f"{key}_{s}": array for s in data.splits for key, array in zip("xy", data.arrays(s), strict=True)
    }
    arrays |= {"name": np.array(data.name), "classes": np.array(data.classes)}
    arrays |= {"mean": np.array(data.mean), "std": np.array(data.std), "scale": np.array(data.scale)}
    if data.augmentation is not None:
        arrays["augmentation"] = np.array([data.augmentation.pad, data.augmentation.flip], np.int64)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _chosen(path: Path, names: list[str]) -> dict[str, str]:
    """Our key -> the file's name of each array to read; the layout that the file is nearest to decides."""
    layout = max(LAYOUTS, key=lambda layout: sum(name in names for pair in layout.values() for name in pair))
    keys = {
        f"{k}_{split}": name for split, pair in layout.items() for k, name in zip("xy", pair, strict=True)
    }
    given_half = keys["x_validation"] in names or keys["y_validation"] in names
    missing = [n for key, n in keys.items() if n not in names and (given_half or "validation" not in key)]
    if missing:
        raise DataError(
            f"{path}: arrays missing", where=missing, hint=f"the file has {', '.join(names) or 'none'}"
        )
    return {key: name for key, name in keys.items() if name in names} | {k: k for k in OPTIONAL if k in names}


def _augment(values: np.ndarray) -> Augment:
    pad, flip = (int(v) for v in values)
    return Augment(pad, bool(flip))


def _refuse_pickle(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            if file.read(1) == b"\x80":  # what a pickle of protocol 2 or later begins with
                raise UnsafeFileError(f"{path}: is a pickle, which would run code on loading")
