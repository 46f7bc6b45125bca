"""Open a checkpoint, whatever it is kept in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from isthmus.errors import WeightsError
from isthmus.weights.pickled import SUFFIXES as PICKLED
from isthmus.weights.pickled import read_pickled
from isthmus.weights.safetensors_file import SafetensorsFile
from isthmus.weights.sharded import INDEX, Sharded

# What a folder is searched for, best first: an index knows of all shards, safetensors need no unpickling.
_KINDS = (("*.safetensors" + INDEX,), ("*.safetensors",), ("*.bin" + INDEX,), tuple(f"*{s}" for s in PICKLED))


def open(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:  # noqa: A001 - the verb of this room
    """Open a checkpoint: safetensors lazily, so that bytes are read when touched; pickles whole.

    Args:
        path: a `.safetensors` file; a `.pt`, `.pth`, `.bin` or `.ckpt` file of plain tensors; the
            `.index.json` of a sharded checkpoint; or a folder that holds one of these.

    Returns:
        A read-only mapping, sorted by name, of CPU tensors. Those of safetensors are mapped from the
        file: to change one in place does not change the file, to change the file in place changes them.

    Raises:
        UnsafeFileError: a pickle asks for more than tensors. Nothing of it was run.
        WeightsError: there is no such file, or it is truncated, contradicts itself or is empty.
    """
    file = _locate(Path(path))
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


def _open_file(path: Path) -> Mapping[str, Tensor]:
    _check_file(path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in PICKLED:
        return read_pickled(path)
    raise WeightsError(
        f"{path} is of no kind that isthmus reads",
        hint=f"it reads .safetensors, {', '.join(PICKLED)}, *{INDEX}",
    )


def _check_file(path: Path) -> None:
    """The mistakes that would only confuse a parser."""
    if not path.exists():
        raise WeightsError(f"{path} does not exist")
    if not path.is_file():
        raise WeightsError(f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read", [str(error.strerror)]) from None
    if not start:
        raise WeightsError(f"{path} is empty", hint="the copy or download that made it was cut off")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is only a Git LFS pointer", hint="run `git lfs pull` beside it")


def _locate(path: Path) -> Path:
    """The one file that a folder means; any other path means itself."""
    if not path.is_dir():
        return path
    for patterns in _KINDS:
        found = sorted(file for pattern in patterns for file in path.glob(pattern))
        if len(found) > 1:
            raise WeightsError(
                f"{path} holds {len(found)} checkpoints",
                [file.name for file in found],
                hint="name one of them",
            )
        if found:
            return found[0]
    raise WeightsError(f"{path} is a folder without a checkpoint in it")
