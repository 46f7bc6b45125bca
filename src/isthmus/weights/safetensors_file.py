"""One safetensors file as a mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from isthmus.weights.bytes import Bytes
from isthmus.weights.header import Entry, read_header
from isthmus.weights.stored import InFile, Stored


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of one file, read when asked for.

    Args:
        file: its bytes.

    Raises:
        WeightsError: the header is broken, or offsets, shapes and file size contradict each other.
    """

    def __init__(self, file: Bytes):
        header = read_header(file)
        self.file = file
        self.entries: Mapping[str, Entry] = header.entries
        self.metadata = dict(header.metadata)
        self.sha256 = header.sha256

    def stored(self, name: str) -> Stored:
        """A tensor as it lies in the file."""
        return InFile(self.file, self.entries[name])

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        return self.file.flat(entry.dtype, entry.start, entry.stop).view(entry.shape)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
