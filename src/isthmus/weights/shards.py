"""Which tensor goes where in which file: known from names, dtypes and shapes alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from isthmus.errors import WeightsError
from isthmus.weights.dense import DTYPES
from isthmus.weights.header import Entry


@dataclass(frozen=True)
class Shard:
    """One file that is to be written.

    Args:
        file: its name.
        header: its first bytes, length included.
        entries: where each tensor lies, counted from the start of the file.
        size: of the file, bytes.
    """

    file: str
    header: bytes
    entries: Mapping[str, Entry]
    size: int


@dataclass(frozen=True)
class Layout:
    """All files of a checkpoint.

    Args:
        shards: in order.
        index: the content of the index, None for a checkpoint of one file.
        index_file: the name of the index.
    """

    shards: tuple[Shard, ...]
    index: bytes | None
    index_file: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(shard.size for shard in self.shards) + len(self.index or b"")


def lay_out(
    tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
    *,
    shard_size: int,
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
) -> Layout:
    """Plan the files of a checkpoint.

    Shards are filled in the order given. One shard is a single file without an index, as `transformers` writes it.

    Args:
        tensors: name, dtype and shape of each.
        shard_size: bytes of tensors per file, at most, unless one tensor alone is larger.
        metadata: free text for every header.
        stem: what the files' names begin with.

    Raises:
        WeightsError: names stand twice or cannot be written, dtypes that safetensors has not, nothing to
            write, or a shard size below one. All of them are listed.
    """
    names = [name for name, _, _ in tensors]
    problems = [
        f"{name!r}    stands there twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    for name, dtype, _ in tensors:
        if dtype not in DTYPES:
            problems.append(f"{name!r}    is of {dtype}, which safetensors does not have")
        problems += [f"{name!r}    {why}" for why in [objection_to_name(name)] if why]
    if shard_size < 1:
        problems.append(f"a shard size of {shard_size} bytes")
    if problems or not tensors:
        raise WeightsError("such a checkpoint cannot be written", problems or ["it has no tensors"])
    groups: list[dict[str, Entry]] = [{}]
    held = 0
    for name, dtype, shape in tensors:
        entry = Entry(dtype, tuple(shape))
        if groups[-1] and held + entry.nbytes > shard_size:
            groups.append({})
            held = 0
        groups[-1][name] = entry
        held += entry.nbytes
    count = len(groups)
    files = (
        [f"{stem}.safetensors"]
        if count == 1
        else [f"{stem}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    )
    shards = tuple(_shard(file, group, metadata or {}) for file, group in zip(files, groups, strict=True))
    index = None if count == 1 else _index(shards)
    return Layout(shards, index, f"{stem}.safetensors.index.json")


def objection_to_name(name: str) -> str | None:
    """Why safetensors cannot keep a tensor of this name, if so."""
    if name == "__metadata__":
        return "the format keeps this name for itself"
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON and pickles can smuggle one in
        return "is no valid Unicode"
    return None


def header(
    tensors: Iterable[tuple[str, Entry]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Entry]]:
    """The first bytes of a file, and where each tensor lies in it.

    The layout is that of the reference writer, which puts the metadata in another order at each run; here
    it is sorted, since the same inputs must give the same bytes.

    Args:
        tensors: names and what they are; where they lie is decided here.
        metadata: free text.
    """
    # Wide dtypes first, as the reference writer does: so every tensor is aligned to its dtype.
    rank = list(DTYPES).index
    content: dict[str, object] = {"__metadata__": {"format": "pt", **dict(sorted(metadata.items()))}}
    placed: dict[str, Entry] = {}
    start = 0
    for name, entry in sorted(tensors, key=lambda item: (-rank(item[1].dtype), item[0])):
        stop = start + entry.nbytes
        content[name] = {
            "dtype": DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, stop],
        }
        placed[name] = Entry(entry.dtype, entry.shape, start, stop)
        start = stop
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    moved = {n: Entry(e.dtype, e.shape, e.start + first, e.stop + first) for n, e in placed.items()}
    return len(text).to_bytes(8, "little") + text, moved


def _shard(file: str, group: Mapping[str, Entry], metadata: Mapping[str, str]) -> Shard:
    first, entries = header(group.items(), metadata)
    return Shard(file, first, entries, max([len(first), *(entry.stop for entry in entries.values())]))


def _index(shards: Iterable[Shard]) -> bytes:
    weight_map = {name: shard.file for shard in shards for name in shard.entries}
    total = sum(math.prod(e.shape) * e.dtype.itemsize for shard in shards for e in shard.entries.values())
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(content, ensure_ascii=False, indent=2).encode() + b"\n"
