"""One safetensors file as a mapping."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, cast

from safetensors import SafetensorError, safe_open
from torch import Tensor

from isthmus.errors import WeightsError
from isthmus.weights.dense import DTYPES


class _Handle(Protocol):
    """The part of `safe_open` that we use; the package gives it no types."""

    def metadata(self) -> dict[str, str] | None: ...
    def get_tensor(self, name: str) -> Tensor: ...


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of one file, mapped when asked for.

    Args:
        path: an existing file.

    Raises:
        WeightsError: the header is broken, or offsets, shapes and file size contradict each other.
    """

    def __init__(self, path: Path):
        try:
            # The reference reader is the authority on offsets, overlaps and lengths.
            self._file = cast("_Handle", safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path} is not a readable safetensors file",
                [str(error)],
                hint="it is cut short or was changed after it was written: fetch or write it again",
            ) from None
        header = _header(path)
        self.metadata: dict[str, str] = dict(self._file.metadata() or {})
        self._names = dict.fromkeys(sorted(header))
        known = set(DTYPES.values())
        if strange := [f"{name}    {dtype}" for name, dtype in header.items() if dtype not in known]:
            raise WeightsError(f"{path} holds dtypes that torch has not", strange)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _header(path: Path) -> dict[str, str]:
    """Dtypes by name, from a header that `safe_open` has found sound.

    It lets one thing pass that would lose weights without a word: a name that stands there twice.
    """
    twice: list[str] = []

    def collect(pairs: list[tuple[str, object]]) -> dict[str, object]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend(sorted({name for name in names if names.count(name) > 1}))
        return seen

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = cast("dict[str, dict[str, str]]", json.loads(file.read(length), object_pairs_hook=collect))
    if twice:
        raise WeightsError(f"{path} names tensors twice", twice, hint="which one is meant cannot be known")
    return {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
