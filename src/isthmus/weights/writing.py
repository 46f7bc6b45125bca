"""Write safetensors: the same tensors give the same bytes, and a file is whole or absent."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from torch import Tensor

from isthmus.errors import WeightsError
from isthmus.weights.dense import objection, raw
from isthmus.weights.header import Entry
from isthmus.weights.shards import header, objection_to_name


def save(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors to one safetensors file, atomically.

    Every name is written with all its values, tied tensors once per name: such a file loads strictly
    in the user's own class and in any other tool, where dropping the copies (as other writers do)
    asks each reader to know of the tie. It costs their bytes. Dtypes are kept; strides are not.

    The layout is that of the reference writer, with the metadata sorted: the same inputs give the same bytes.

    Args:
        tensors: what to write; they may come from a lazy checkpoint, even from `path` itself.
        path: a name ending in `.safetensors`; its folder is made if needed.
        metadata: free text to keep beside the tensors.

    Raises:
        WeightsError: a tensor cannot be kept (all of them are listed), or the file cannot be written.
    """
    path = Path(path)
    _check(tensors, path)
    shapes = [(name, Entry(tensor.dtype, tuple(tensor.shape))) for name, tensor in tensors.items()]
    first, entries = header(shapes, metadata or {})
    try:
        with atomic(path) as file:
            file.write(first)
            for name in entries:
                file.write(raw(tensors[name]))
    except OSError as error:
        raise WeightsError(f"{path} cannot be written", [str(error.strerror or error)]) from error


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file that appears under `path` complete, or not at all.

    The bytes go to a hidden file in the same folder, which is synced to disk and renamed over `path`
    once the block has ended well; if it has not, it is removed and `path` stays as it was.

    Args:
        path: where the file shall be; its folder is made if needed.

    Yields:
        A binary file to write to.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with draft.open("xb") as file:  # unlike tempfile, with the permissions any new file gets
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _check(tensors: Mapping[str, Tensor], path: Path) -> None:
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} does not end in .safetensors", hint="isthmus writes no other format")
    if path.is_dir():
        raise WeightsError(f"{path} is a folder")
    if not tensors:
        raise WeightsError(f"there are no tensors to write to {path}")
    wrong: list[str] = []
    for name, tensor in tensors.items():
        if problem := objection_to_name(name):
            wrong.append(f"{name if name.isprintable() else repr(name)}    {problem}")
        elif problem := objection(tensor):
            wrong.append(f"{name}    {problem}")
    if wrong:
        raise WeightsError(f"{len(wrong)} of {len(tensors)} tensors cannot be written to {path}", wrong)


def sync_folder(folder: Path) -> None:
    """Make the rename itself last through a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows cannot open folders, and needs no such sync
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
