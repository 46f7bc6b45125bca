"""The header of a safetensors file, believed only after every number in it was checked."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, cast

import torch

from isthmus.errors import WeightsError
from isthmus.weights.bytes import Bytes
from isthmus.weights.dense import DTYPES

#: The reference reader's own limit, bytes.
LONGEST = 100_000_000

_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}
_MENDING = "it is cut short or was changed after it was written: fetch or write it again"


@dataclass(frozen=True)
class Entry:
    """What a header says of one tensor.

    Args:
        dtype: of its elements.
        shape: of the tensor.
        start: of its bytes, counted from the start of the file.
        stop: one past its last byte.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0
    stop: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """A checked header.

    Args:
        entries: by sorted name.
        metadata: the free text.
        sha256: of the header's own bytes: names, dtypes, shapes and metadata, no values.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    sha256: str


def read_header(file: Bytes) -> Header:
    """Read and check a header; no tensor is read.

    Everything is refused that the reference reader refuses, and two things that it lets pass: a name
    that stands twice (one of the two would be lost without a word), and a dtype that torch has not.

    Args:
        file: a safetensors file.

    Raises:
        WeightsError: it is broken, or names, shapes, offsets and the file's size contradict each other.
    """
    if file.size < 8:
        _refuse(file, f"it has {file.size} bytes, and a header's length takes 8")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > min(LONGEST, file.size - 8):
        _refuse(file, f"its header claims {length} bytes, and the file has {file.size}")
    text = file.read(8, 8 + length)
    content = _parse(file, text)
    metadata = content.pop("__metadata__", {})
    notes = cast("dict[str, object]", metadata) if isinstance(metadata, dict) else {"": None}
    if not all(isinstance(value, str) for value in notes.values()):
        _refuse(file, "its __metadata__ is not text by name")
    start = 8 + length
    entries = {name: _entry(file, name, content[name], start) for name in sorted(content)}
    _check_layout(file, entries, start)
    return Header(entries, cast("dict[str, str]", notes), hashlib.sha256(text).hexdigest())


def _refuse(file: Bytes, why: str) -> NoReturn:
    raise WeightsError(f"{file.name} is not a readable safetensors file", [why], hint=_MENDING)


def _parse(file: Bytes, text: bytes) -> dict[str, object]:
    twice: set[str] = set()

    def collect(pairs: list[tuple[str, object]]) -> dict[str, object]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            twice.update(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return seen

    try:
        decoded = text.decode()  # strictly: json.loads would guess at UTF-16 and let half pairs pass
        content: object = json.loads(decoded, object_pairs_hook=collect, parse_constant=_no_number)
        json.dumps(content, ensure_ascii=False).encode()  # "\ud800" is valid JSON, and no text
    except (ValueError, RecursionError) as error:
        _refuse(file, f"its header is no JSON: {error}")
    if twice:
        raise WeightsError(
            f"{file.name} names tensors twice", sorted(twice), hint="which one is meant cannot be known"
        )
    if not isinstance(content, dict):
        _refuse(file, "its header is no JSON object")
    return cast("dict[str, object]", content)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _entry(file: Bytes, name: str, value: object, data: int) -> Entry:
    fields = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    sizes, ends = _counts(shape), _counts(offsets)
    if not isinstance(dtype, str) or sizes is None or ends is None or len(ends) != 2:
        _refuse(file, f"{name}    needs dtype, shape and data_offsets of its own")
    if dtype not in _BY_NAME:
        raise WeightsError(f"{file.name} holds dtypes that torch has not", [f"{name}    {dtype}"])
    # What is empty by one dimension must not overflow by the others.
    if math.prod(size for size in sizes if size) >= 2**63:
        _refuse(file, f"{name}    has a shape of {sizes}, more than can be counted")
    entry = Entry(_BY_NAME[dtype], sizes, data + ends[0], data + ends[1])
    if entry.nbytes != entry.stop - entry.start:
        _refuse(file, f"{name}    {dtype} {sizes} takes {entry.nbytes} bytes, its offsets are {ends}")
    return entry


def _counts(value: object) -> tuple[int, ...] | None:
    """A list of whole numbers that fit an index, or None."""
    if not isinstance(value, list):
        return None
    items = cast("list[object]", value)
    if not all(type(item) is int and 0 <= item < 2**63 for item in items):
        return None
    return cast("tuple[int, ...]", tuple(items))


def _check_layout(file: Bytes, entries: Mapping[str, Entry], start: int) -> None:
    """Each byte after the header belongs to one tensor, and none is missing."""
    last = "the header"
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            kind = "overlaps" if entry.start < end else "leaves a hole after"
            _refuse(file, f"{name}    {kind} {last}")
        last, end = name, entry.stop
    if end != file.size:
        _refuse(file, f"its tensors end at byte {end}, and the file has {file.size}")
