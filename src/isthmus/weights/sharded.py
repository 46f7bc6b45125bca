"""A checkpoint cut into shards that an index.json lists."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from torch import Tensor

from isthmus.errors import WeightsError
from isthmus.weights.bytes import Where
from isthmus.weights.safetensors_file import SafetensorsFile
from isthmus.weights.stored import Stored, stored

INDEX = ".index.json"


class Sharded(Mapping[str, Tensor]):
    """The tensors of all shards.

    Args:
        index: the index, whose `weight_map` gives the file name of each tensor's shard.
        open_file: opens one shard.

    Raises:
        WeightsError: the index is broken, leads out of its folder, or does not agree with the shards.
    """

    def __init__(self, index: Where, open_file: Callable[[Where], Mapping[str, Tensor]]):
        weight_map = _read(index)
        shards = {name: open_file(index.parent / name) for name in sorted(set(weight_map.values()))}
        self.shards: Mapping[str, Mapping[str, Tensor]] = shards
        held = {(name, shard) for shard, tensors in shards.items() for name in tensors}
        listed = set(weight_map.items())
        if held != listed:
            raise WeightsError(
                f"{index} and its shards do not agree",
                [
                    *(f"{name}    listed in {shard}, not there" for name, shard in sorted(listed - held)),
                    *(f"{name}    in {shard}, not listed there" for name, shard in sorted(held - listed)),
                ],
                hint="the files are of different checkpoints, or one was replaced: fetch them together",
            )
        self._shards = {name: shards[weight_map[name]] for name in sorted(weight_map)}
        told = [
            set(shard.metadata.items()) for shard in shards.values() if isinstance(shard, SafetensorsFile)
        ]
        self.metadata = dict(set[tuple[str, str]].intersection(*told)) if told else {}

    def stored(self, name: str) -> Stored:
        """A tensor as it lies in its shard."""
        return stored(self._shards[name], name)

    def __getitem__(self, name: str) -> Tensor:
        return self._shards[name][name]

    def __contains__(self, name: object) -> bool:
        return name in self._shards

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)


def _read(index: Where) -> dict[str, str]:
    """Tensor name -> shard name, every shard a plain file name beside the index."""
    try:
        content: object = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{index} is not a readable index", [str(error)]) from None
    entries = cast("dict[str, object]", content) if isinstance(content, dict) else {}
    weight_map = entries.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        hint = 'it should say {"weight_map": {tensor: shard file}}'
        raise WeightsError(f"{index} has no weight_map", hint=hint)
    pairs = cast("dict[str, object]", weight_map)
    # An index comes with the download: one that says "../../secret" must not be followed.
    stray = {
        name: shard
        for name, shard in pairs.items()
        if not isinstance(shard, str) or shard in ("", ".", "..") or set(shard) & {"/", "\\", "\0"}
    }
    if stray:
        raise WeightsError(
            f"{index} names shards that are not files beside it",
            [f"{name}    {shard!r}" for name, shard in stray.items()],
        )
    return cast("dict[str, str]", pairs)
