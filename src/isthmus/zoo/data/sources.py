"""`--data SPEC`: one string that names a data set."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
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
    try:
        kind, path = find_data(spec)
    except InputError as error:
        raise type(error)(f"--data {error.what}", error.where, error.hint) from None
    return digits() if path is None else FROM_PATH[kind](path)


def find_data(spec: str | Path, roots: Sequence[Path] = (Path(),)) -> tuple[str, Path | None]:
    """What a data set's name means; nothing of it is read.

    Args:
        spec: as for `open_data`.
        roots: folders in which relative paths begin, the first in which there is something counts.

    Returns:
        Its kind, and where it is; no path for what isthmus brings along.

    Raises:
        InputError: no such kind and no such path.
        DataError: nothing is at the path, or nothing that is known.
    """
    text = str(spec)
    kind, colon, rest = text.partition(":")
    if text == "digits":
        return text, None
    known = bool(colon) and kind in FROM_PATH
    if known and not rest:
        raise InputError(f"{text}: a path is missing after the colon")
    try:
        named = Path(rest if known else text).expanduser()
        found = next((root / named for root in roots if (root / named).exists()), None)
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # no name of a file: too long, of a user that is none
        raise InputError(f"{text[:80]}: {error}", hint=f"data is {USAGE}") from None
    if found is None and known:
        raise DataError(f"{text}: there is no {named}")
    if found is None:
        near = difflib.get_close_matches(kind, ["digits", *FROM_PATH], n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"{text}: neither a kind of data nor a path that exists", hint=f"{guess}data is {USAGE}"
        )
    return kind if known else _sniffed(found), found


def _sniffed(path: Path) -> str:
    """The kind of data at a path, by the names of files alone."""
    if path.is_file():
        return "npz"
    if any(path.rglob("*-ubyte*")):
        return "fashion-mnist"
    if any(found for pattern in ("test_batch*", "*/test_batch*") for found in path.glob(pattern)):
        return "cifar10"
    raise DataError(f"{path}: no data set that we know in this folder", hint=f"data is {USAGE}")
