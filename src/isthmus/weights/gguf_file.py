"""GGUF files, as llama.cpp keeps models: read, not written."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from isthmus.errors import MissingExtraError, WeightsError
from isthmus.weights.stored import Stored

# ggml types whose bytes are numbers of torch; any other is quantised, and read as float32.
_PLAIN = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


@runtime_checkable
class _Tensor(Protocol):
    """The part of the package's tensors that we use; it types them by numpy's memmap."""

    name: str
    shape: Any  # numpy integers, innermost dimension first
    data: Any  # a memmap: elements, or bytes if quantised; rows first
    tensor_type: Any  # an enumeration of the package


def read_gguf(path: Path) -> GgufFile:
    """Open a GGUF file; tensors are read, and dequantised to float32 where they need be, when asked for.

    Args:
        path: an existing file.

    Raises:
        MissingExtraError: the package `gguf` is not installed.
        WeightsError: the file is broken, or its tensors lie outside of it.
    """
    try:
        gguf = importlib.import_module("gguf")
    except ImportError:
        raise MissingExtraError(
            f"{path} needs the package gguf", hint="pip install 'isthmus[gguf]'"
        ) from None
    try:
        tensors = cast("list[_Tensor]", gguf.GGUFReader(path).tensors)
    except Exception as error:  # noqa: BLE001 - broken bytes make the package raise anything at all
        raise WeightsError(
            f"{path} is not a readable GGUF file",
            [f"{type(error).__name__}: {error}".splitlines()[0]],
            hint="it is cut short or of another format: fetch it again",
        ) from None
    return GgufFile(path, tensors, gguf)


class GgufFile(Mapping[str, Tensor]):
    """The tensors of one file, under llama.cpp's names.

    Args:
        path: of the file.
        tensors: as the package read them.
        gguf: the package.
    """

    def __init__(self, path: Path, tensors: list[_Tensor], gguf: Any):
        self.path = path
        found = {tensor.name: tensor for tensor in tensors}
        self._tensors = {name: InGguf(str(path), found[name], gguf) for name in sorted(found)}

    @property
    def kinds(self) -> dict[str, str]:
        """What ggml calls the numbers of each tensor, `Q4_K`; what torch has not is read as float32."""
        return {name: tensor.tensor.tensor_type.name for name, tensor in self._tensors.items()}

    def stored(self, name: str) -> Stored:
        """A tensor as it lies in the file."""
        return self._tensors[name]

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        return tensor.elements(0, math.prod(tensor.shape)).view(tensor.shape)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class InGguf:
    """One tensor in a GGUF file."""

    file: str
    tensor: _Tensor
    gguf: Any

    @property
    def dtype(self) -> torch.dtype:
        return _PLAIN.get(self.tensor.tensor_type.name, torch.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self.tensor.shape))

    def elements(self, start: int, stop: int) -> Tensor:
        data = self.tensor.data
        if self.tensor.tensor_type.name in _PLAIN:
            size = self.dtype.itemsize
            raw = np.array(data.reshape(-1).view(np.uint8)[start * size : stop * size])
            return torch.from_numpy(raw).view(self.dtype)
        # Quantised in groups along a row: whole rows are widened, and the run cut out of them.
        row = self.shape[-1]
        first, last = start // row, -(-stop // row)
        rows = data.reshape(math.prod(self.shape[:-1]), -1)[first:last]
        wide = torch.from_numpy(np.ascontiguousarray(self.gguf.dequantize(rows, self.tensor.tensor_type)))
        return wide.reshape(-1)[start - first * row : stop - first * row]

    def expect(self, start: int, stop: int) -> None:
        """The package maps the file."""

    def drop(self, start: int, stop: int) -> None:
        """What was read is a copy."""
