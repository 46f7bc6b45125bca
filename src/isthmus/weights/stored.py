"""One tensor as it lies somewhere: any run of its elements, without the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from isthmus.weights.bytes import Bytes
from isthmus.weights.header import Entry


@runtime_checkable
class Stored(Protocol):
    """A tensor of which parts can be read."""

    @property
    def dtype(self) -> torch.dtype:
        """That parts are read in."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        ...

    @property
    def file(self) -> str:
        """What errors call the file that it lies in."""
        ...

    def elements(self, start: int, stop: int) -> Tensor:
        """A run of the flattened (row major) tensor; not to be written to."""
        ...

    def expect(self, start: int, stop: int) -> None:
        """Say that a run is needed soon; it may end behind the tensor."""
        ...

    def drop(self, start: int, stop: int) -> None:
        """Say that a run is not needed soon, so that its pages need not stay."""
        ...


@runtime_checkable
class Lazy(Protocol):
    """A checkpoint whose tensors can be read in parts."""

    def stored(self, name: str) -> Stored:
        """A tensor as it lies there."""
        ...


@dataclass(frozen=True)
class InFile:
    """A tensor in a file of plain bytes."""

    bytes: Bytes
    entry: Entry

    @property
    def dtype(self) -> torch.dtype:
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def file(self) -> str:
        return self.bytes.name

    def elements(self, start: int, stop: int) -> Tensor:
        size, first = self.entry.dtype.itemsize, self.entry.start
        return self.bytes.flat(self.entry.dtype, first + start * size, first + stop * size)

    def expect(self, start: int, stop: int) -> None:
        size, first = self.entry.dtype.itemsize, self.entry.start
        self.bytes.expect(first + start * size, first + stop * size)

    def drop(self, start: int, stop: int) -> None:
        size, first = self.entry.dtype.itemsize, self.entry.start
        self.bytes.drop(first + start * size, first + stop * size)


@dataclass(frozen=True)
class InMemory:
    """A tensor that is all in memory."""

    tensor: Tensor
    file: str = "memory"

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def elements(self, start: int, stop: int) -> Tensor:
        return self.tensor.reshape(-1)[start:stop]

    def expect(self, start: int, stop: int) -> None:
        """It is here."""

    def drop(self, start: int, stop: int) -> None:
        """It is the caller's."""


def stored(tensors: Mapping[str, Tensor], name: str) -> Stored:
    """One tensor of a checkpoint, to be read in parts.

    Args:
        tensors: what `open` gave, or any mapping.
        name: a name in it.

    Returns:
        The tensor as it lies in its file where the checkpoint is lazy, else as it is in memory.

    Raises:
        KeyError: no tensor has that name.
    """
    if isinstance(tensors, Lazy):
        return cast("Lazy", tensors).stored(name)
    place = getattr(tensors, "path", "memory")
    return InMemory(tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous(), str(place))
