"""What a checkpoint holds and which one it is, from its headers: no tensor is read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from isthmus.weights.gguf_file import GgufFile
from isthmus.weights.header import Entry
from isthmus.weights.pickled import PickledFile
from isthmus.weights.reading import open  # noqa: A004
from isthmus.weights.safetensors_file import SafetensorsFile
from isthmus.weights.sharded import Sharded
from isthmus.weights.stored import Lazy

# The hub's cache keeps a file under the SHA-256 of its bytes and links to it.
_BLOB = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Identity:
    """Which file it is.

    Args:
        file: its name.
        size: in bytes.
        header: SHA-256 of its header (names, dtypes, shapes, metadata); of nothing for other formats.
        content: SHA-256 of the whole file, where it is known without reading it (the hub's cache).
        version: another text once the file was replaced or changed in place.
    """

    file: str
    size: int
    header: str
    content: str | None
    version: str


def headers(path: str | os.PathLike[str] | Mapping[str, Tensor]) -> dict[str, Entry]:
    """Dtype and shape of every tensor, by sorted name.

    Args:
        path: as for `open`, or what it gave.

    Raises:
        UnsafeFileError: as for `open`.
        WeightsError: as for `open`.
    """
    tensors = path if isinstance(path, Mapping) else open(path)
    if isinstance(tensors, SafetensorsFile):
        return dict(tensors.entries)
    if isinstance(tensors, Lazy):
        found = {name: tensors.stored(name) for name in tensors}
        return {name: Entry(lies.dtype, lies.shape) for name, lies in found.items()}
    return {name: Entry(t.dtype, tuple(t.shape)) for name, t in sorted(tensors.items())}


def identify(path: str | os.PathLike[str] | Mapping[str, Tensor]) -> tuple[Identity, ...]:
    """Which files a checkpoint is made of.

    Args:
        path: as for `open`, or what it gave.

    Returns:
        One per file; none for tensors that are in memory.

    Raises:
        UnsafeFileError: as for `open`.
        WeightsError: as for `open`.
    """
    tensors = path if isinstance(path, Mapping) else open(path)
    if isinstance(tensors, Sharded):
        return tuple(found for shard in tensors.shards.values() for found in identify(shard))
    if isinstance(tensors, PickledFile | GgufFile):
        status = tensors.path.stat()
        version = f"{status.st_size} bytes, {status.st_mtime_ns}"
        return (Identity(str(tensors.path), status.st_size, "", _content(tensors.path), version),)
    if not isinstance(tensors, SafetensorsFile):
        return ()
    file = tensors.file
    return (Identity(file.name, file.size, tensors.sha256, _content(Path(file.name)), file.version),)


def changed(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The files of a checkpoint that were changed in place since they were opened.

    Args:
        tensors: what `open` gave.

    Returns:
        Their names. A file that was replaced or removed is not changed: what is open lives on.
    """
    if isinstance(tensors, Sharded):
        return tuple(name for shard in tensors.shards.values() for name in changed(shard))
    if isinstance(tensors, SafetensorsFile) and tensors.file.changed():
        return (tensors.file.name,)
    return ()


def _content(path: Path) -> str | None:
    blob = path.resolve().name if path.is_symlink() else ""
    return blob if _BLOB.fullmatch(blob) else None
