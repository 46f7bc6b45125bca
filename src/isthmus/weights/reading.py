"""Open a checkpoint, whatever it is kept in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from isthmus.errors import WeightsError
from isthmus.weights.bytes import FetchedBytes, LocalBytes, Url, Where
from isthmus.weights.gguf_file import read_gguf
from isthmus.weights.hub import download, is_hub_id
from isthmus.weights.pickled import SUFFIXES as PICKLED
from isthmus.weights.pickled import PickledFile
from isthmus.weights.safetensors_file import SafetensorsFile
from isthmus.weights.sharded import INDEX, Sharded

# What a folder is searched for, best first: an index knows of all shards, safetensors need no unpickling.
_KINDS = ((".safetensors" + INDEX,), (".safetensors",), (".bin" + INDEX,), PICKLED, (".gguf",))


def open(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:  # noqa: A001 - the verb of this room
    """Open a checkpoint lazily: bytes are read when touched. (Pickles older than PyTorch 1.6 are read whole.)

    Args:
        path: a `.safetensors` file; a `.pt`, `.pth`, `.bin` or `.ckpt` file of plain tensors; a `.gguf`
            file (extra `gguf`); the `.index.json` of a sharded checkpoint; a folder that holds one of
            these; a URL of one of these that fsspec understands (`s3://`, `hf://`, `https://`, extra
            `remote`), read range by range; or a model on the Hugging Face hub, `org/name` or
            `org/name@revision`, which is downloaded to the hub's cache (extra `hub`). What exists on
            this machine comes first.

    Returns:
        A read-only mapping, sorted by name, of CPU tensors. They are mapped from the file: to change one
        in place does not change the file, to change the file in place changes them.

    Raises:
        UnsafeFileError: a pickle asks for more than tensors. Nothing of it was run.
        WeightsError: there is no such file, or it is truncated, contradicts itself or is empty.
        MissingExtraError: an extra is needed and not installed.
    """
    file = locate(path)
    tensors = Sharded(file, _open_file) if file.name.endswith(INDEX) else _open_file(file)
    if not tensors:
        raise WeightsError(f"{file} holds no tensors")
    return tensors


def load(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a checkpoint into memory of its own: `open`, then a copy of every tensor.

    Args:
        path: as for `open`.

    Returns:
        Contiguous CPU tensors in their stored dtypes, by sorted name.

    Raises:
        UnsafeFileError: as for `open`.
        WeightsError: as for `open`.
    """
    return {k: v.clone(memory_format=torch.contiguous_format) for k, v in open(path).items()}


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The free text stored beside the tensors.

    Args:
        path: as for `open`.

    Returns:
        The safetensors header's metadata, of which several shards give what they agree on; nothing
        for formats that have none.

    Raises:
        WeightsError: as for `open`.
    """
    tensors = open(path)
    return dict(tensors.metadata) if isinstance(tensors, SafetensorsFile | Sharded) else {}


def locate(path: str | os.PathLike[str]) -> Where:
    """The one file that a path, a folder, a URL or a name on the hub means.

    Args:
        path: as for `open`.

    Raises:
        WeightsError: a folder holds no checkpoint, or several; the hub has no such model.
    """
    text = os.fspath(path)
    if "://" in text:
        return _in_folder(Url(text))
    if is_hub_id(text):
        return _in_folder(download(text))
    try:
        return _in_folder(Path(path))
    except OSError as error:  # no name that a disk can have, or a folder that may not be read
        raise WeightsError(f"{text[:80]} cannot be read", [str(error.strerror)]) from None


def _open_file(path: Where) -> Mapping[str, Tensor]:
    _check_file(path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(LocalBytes(path) if isinstance(path, Path) else FetchedBytes(path))
    if path.suffix not in (*PICKLED, ".gguf"):
        raise WeightsError(
            f"{path} is of no kind that isthmus reads",
            hint=f"it reads .safetensors, {', '.join(PICKLED)}, .gguf, *{INDEX}",
        )
    if not isinstance(path, Path):
        raise WeightsError(
            f"{path} can only be read as a whole",
            hint="download it; or use its safetensors, which are read where they are",
        )
    return read_gguf(path) if path.suffix == ".gguf" else PickledFile(path)


def _check_file(path: Where) -> None:
    """The mistakes that would only confuse a parser."""
    if not path.exists():
        raise WeightsError(f"{path} does not exist")
    if not path.is_file():
        raise WeightsError(f"{path} is not a regular file")
    if isinstance(path, Url):
        return
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read", [str(error.strerror)]) from None
    if not start:
        raise WeightsError(f"{path} is empty", hint="the copy or download that made it was cut off")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is only a Git LFS pointer", hint="run `git lfs pull` beside it")


def _in_folder(path: Where) -> Where:
    """The one checkpoint in a folder; any other path means itself."""
    if not path.is_dir():
        return path
    files = sorted(path.iterdir(), key=lambda file: file.name)
    for suffixes in _KINDS:
        found = [file for file in files if file.name.endswith(suffixes) and not file.name.startswith(".")]
        if len(found) > 1:
            raise WeightsError(
                f"{path} holds {len(found)} checkpoints",
                [file.name for file in found],
                hint="name one of them",
            )
        if found:
            return found[0]
    raise WeightsError(f"{path} is a folder without a checkpoint in it")
