"""`--data SPEC`: one string that names a data set."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from isthmus.errors import DataError, InputError

from .archive import npz
from .cifar import cifar10
from .dataset import Dataset
from .embedded import digits
from .idx import fashion_mnist

FROM_PATH: dict[str, Callable[[Path], Dataset]] = {
    "cifar10": cifar10,
    "fashion-mnist": fashion_mnist,
    "npz": npz,
}
USAGE = "digits, cifar10:FOLDER, fashion-mnist:FOLDER, npz:FILE, or a path to any of these"


def open_data(spec: str | Path) -> Dataset:
    """The data set that a command line names.

    Args:
        spec: "digits", "cifar10:FOLDER", "fashion-mnist:FOLDER", "npz:FILE", or a path, whose kind is then
            told by the files that are there.

    Raises:
        InputError: no such kind and no such path.
        DataError, UnsafeFileError, MissingExtraError: as the reader of that kind.
    """
    text = str(spec)
    kind, colon, rest = text.partition(":")
    if text == "digits":
        return digits()
    if colon and kind in FROM_PATH:
        if not rest:
            raise InputError(f"--data {text}: a path is missing after the colon")
        path = Path(rest).expanduser()
        if not path.exists():
            raise DataError(f"--data {text}: there is no {path}")
        return FROM_PATH[kind](path)
    path = Path(text).expanduser()
    if not path.exists():
        near = difflib.get_close_matches(kind, ["digits", *FROM_PATH], n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"--data {text}: neither a kind of data nor a path that exists",
            hint=f"{guess}data is {USAGE}",
        )
    return FROM_PATH[_sniffed(path)](path)


def _sniffed(path: Path) -> str:
    """The kind of data at a path, by the names of files alone."""
    if path.is_file():
        return "npz"
    if any(path.rglob("*-ubyte*")):
        return "fashion-mnist"
    if any(found for pattern in ("test_batch*", "*/test_batch*") for found in path.glob(pattern)):
        return "cifar10"
    raise DataError(f"{path}: no data set that we know in this folder", hint=f"data is {USAGE}")
