"""What a plan knows of a checkpoint: names, dtypes, shapes, from the headers alone and without torch.

A plan takes well under the time in which torch is imported. What is read here is not yet believed: when
the merge runs, `isthmus.weights` checks every offset.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from isthmus.errors import WeightsError
from isthmus.recipe.parents.sizes import NAMES, SIZES

# The reference reader's own limit.
_LONGEST = 100_000_000
_INDEX = ".safetensors.index.json"
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")


class NoHeaderError(WeightsError):
    """A checkpoint of a kind that `isthmus.weights` reads, and nothing else."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: dtype as safetensors calls it, shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def learned(self) -> bool:
        """Whether it holds weights, rather than integers."""
        return self.dtype in NAMES

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * SIZES[self.dtype]

    @property
    def kind(self) -> str:
        """The dtype as torch calls it: float32, int64, bool."""
        integer = re.fullmatch(r"([IU])(\d+)", self.dtype)
        if integer is not None:
            return f"{'int' if integer[1] == 'I' else 'uint'}{integer[2]}"
        return NAMES.get(self.dtype, self.dtype.lower())

    def __str__(self) -> str:
        return f"{self.kind} {self.shape}"


@dataclass(frozen=True)
class Checkpoint:
    """The headers of a checkpoint.

    Args:
        files: that hold tensors, in order.
        entries: by name.
        metadata: free text of the first file's header.
    """

    files: tuple[Path, ...]
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())


def read(path: Path) -> Checkpoint:
    """Read the headers of a checkpoint.

    Args:
        path: a `.safetensors` file, an index, or a folder that holds one of them.

    Raises:
        NoHeaderError: it is a pickle or GGUF, which `opening.headers_of` reads as well.
        WeightsError: there is none, or its header cannot be read.
    """
    file = _locate(path)
    files = _shards(file) if file.name.endswith(_INDEX) else [file]
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for shard in files:
        found, notes = _header(shard)
        if twice := sorted(set(found) & set(entries)):
            raise WeightsError(f"{path} holds tensors twice, in several shards", twice)
        entries.update(found)
        metadata = metadata or notes
    return Checkpoint(tuple(files), entries, metadata)


def of_remote(folder: Path, held: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]]) -> Checkpoint:
    """The same of files that are not here yet.

    Args:
        folder: where they will be.
        held: file -> tensor -> (dtype as a header has it, shape).

    Raises:
        WeightsError: a dtype or shape that no tensor has, or a tensor in two files.
    """
    entries: dict[str, Entry] = {}
    for file, tensors in held.items():
        if twice := sorted(set(tensors) & set(entries)):
            raise WeightsError(f"{folder} holds tensors twice, in several shards", twice)
        try:
            for name, (dtype, shape) in tensors.items():
                entries[name] = _entry(name, {"dtype": dtype, "shape": list(shape)})
        except ValueError as error:
            raise WeightsError(f"{file} is not a readable safetensors file", [str(error)]) from None
    return Checkpoint(tuple(folder / file for file in held), entries, {})


def _locate(path: Path) -> Path:
    if path.is_file():
        if path.suffix == ".safetensors" or path.name.endswith(_INDEX):
            return path
        if path.suffix in (*_PICKLED, ".gguf"):
            raise _without_header(path)
        raise WeightsError(f"{path} is no safetensors file")
    if not path.is_dir():
        raise WeightsError(f"{path} does not exist")
    for pattern in (f"*{_INDEX}", "*.safetensors"):
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            raise WeightsError(f"{path} holds {len(found)} checkpoints", [f.name for f in found])
        if found:
            return found[0]
    for suffix in (*_PICKLED, ".gguf"):
        if found := sorted(path.glob(f"*{suffix}")):
            raise _without_header(found[0])
    raise WeightsError(f"{path} is a folder without a checkpoint in it")


def _without_header(path: Path) -> NoHeaderError:
    kind = "GGUF" if path.suffix == ".gguf" else "a pickle"
    return NoHeaderError(
        f"{path} is {kind}: it has no header that can be read without the rest",
        hint=f"convert it once: isthmus.weights.save(isthmus.weights.load('{path}'), 'model.safetensors')",
    )


def _shards(index: Path) -> list[Path]:
    try:
        content: object = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{index} is not a readable index", [str(error)]) from None
    table = cast("dict[str, object]", content).get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        raise WeightsError(f"{index} has no weight_map")
    names = sorted({str(name) for name in cast("dict[str, object]", table).values()})
    if stray := [name for name in names if name in ("", ".", "..") or set(name) & {"/", "\\", "\0"}]:
        raise WeightsError(f"{index} names shards that are not files beside it", stray)
    if gone := [name for name in names if not (index.parent / name).is_file()]:
        raise WeightsError(f"{index} names shards that are not there", gone, hint="fetch them again")
    return [index.parent / name for name in names]


def _header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 0 < length <= min(_LONGEST, size - 8):
                raise ValueError(f"its header claims {length} bytes, and the file has {size}")
            content = cast("object", json.loads(file.read(length)))
        if not isinstance(content, dict):
            raise TypeError("its header is no JSON object")
        header = cast("dict[str, dict[str, object]]", content)
        notes = header.pop("__metadata__", {})
        entries = {name: _entry(name, value) for name, value in header.items()}
        if (told := sum(entry.nbytes for entry in entries.values())) != size - 8 - length:
            raise ValueError(f"its header tells of {told} bytes, and {size - 8 - length} follow")
    except OSError as error:
        raise WeightsError(f"{path} cannot be read", [str(error.strerror or error)]) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path} is not a readable safetensors file",
            [str(error)],
            hint="it is cut short or was changed after it was written: fetch or write it again",
        ) from None
    return entries, {str(key): str(value) for key, value in notes.items()}


def _entry(name: str, value: Mapping[str, object]) -> Entry:
    dtype, shape = str(value["dtype"]), cast("list[object]", value["shape"])
    if dtype not in SIZES:
        raise ValueError(f"{name} has the dtype {dtype[:20]!r}, which torch has not")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise ValueError(f"{name} has no shape")
    return Entry(dtype, tuple(cast("list[int]", shape)))
