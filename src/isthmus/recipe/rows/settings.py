"""The value of a parameter for one tensor: precedence, filters, lists over the layers.

Levels, highest first: our `blocks`, the source (a model's own parameters), the slice, the module, the
recipe. Within a level the first filter that fits decides; where none fits, the next level is asked.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from isthmus.recipe.language.dialect import REQUIRED, Parameter, parameter
from isthmus.recipe.language.ours import Block
from isthmus.recipe.language.parameters import Filtered, Preset
from isthmus.recipe.language.reference import Reference

#: What a level says: parameters by name.
Level = Mapping[str, object]


@dataclass(frozen=True)
class Spot:
    """What of a tensor decides its parameters.

    Args:
        name: of the tensor in the output.
        t: how far through its slice's layers it is, 0 to 1; 0 outside the layers, as in mergekit.
        layer: its layer in the output, None outside the layers.
        layers: how many layers the output has.
        before: for a tensor outside the layers, whether it comes before them.
    """

    name: str
    t: float = 0.0
    layer: int | None = None
    layers: int = 0
    before: bool = True


def value_of(
    name: str, default: object, spot: Spot, levels: Iterable[Level | None], source_name: str | None = None
) -> object:
    """The value of a parameter at a spot.

    Args:
        name: of the parameter.
        default: where no level says anything; `REQUIRED` where one must.
        spot: the tensor.
        levels: highest first.
        source_name: the tensor's name in the model that the parameter is of: filters are compared with
            it, since layers of a slice have another number there.

    Raises:
        LookupError: it is required and nowhere given.
        ValueError: a value is of the wrong kind.
    """
    kind = parameter(name)
    for level in levels:
        if level is not None and name in level:
            found = _resolve(level[name], kind, spot, source_name or spot.name)
            if found is not None:
                return found
    if default is REQUIRED:
        raise LookupError(name)
    return default


def _resolve(setting: object, kind: Parameter, spot: Spot, name: str) -> object | None:
    if isinstance(setting, Preset):
        return kind.read(_preset(setting, spot))
    entries = [setting] if isinstance(setting, Filtered) else cast("list[object]", setting)
    if isinstance(entries, list) and entries and isinstance(entries[0], Filtered):
        for entry in cast("list[Filtered]", entries):
            if entry.filter is None or entry.filter == "*" or entry.filter in name:
                return _resolve(entry.value, kind, spot, name)
        return None
    if isinstance(setting, list):
        return gradient([kind.read(v) for v in cast("list[object]", setting)], spot.t)
    return kind.read(setting)


def gradient(values: Sequence[float | int | bool | str], t: float) -> float | int | bool | str:
    """A list's value at t: numbers are interpolated, words and true and false are not.

    Examples:
        >>> gradient([0.0, 1.0, 0.5], 0.75)
        0.75
        >>> gradient([True, False], 0.9)
        True
    """
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return values[int(t * (len(values) - 1))]
    position = t * (len(values) - 1)
    low = int(position)
    part = position - low
    return (1 - part) * numbers[low] + part * numbers[min(low + 1, len(values) - 1)]


def _preset(preset: Preset, spot: Spot) -> float:
    """A curve at a spot; what lies before the layers is at its beginning, what lies after at its end."""
    if spot.layer is None:
        at = 0.0 if spot.before else 1.0
    else:
        at = spot.layer / (spot.layers - 1) if spot.layers > 1 else 0.0
    if preset.preset == "cosine":
        at = (1 - math.cos(math.pi * at)) / 2
    elif preset.preset == "peak":
        at = 1 - abs(2 * at - 1)
    return preset.start + (preset.end - preset.start) * at


def fits(block: Block, spot: Spot) -> bool:
    """Whether a block of ours is about a tensor."""
    if not fnmatch.fnmatchcase(spot.name, block.match):
        return False
    return block.layers is None or (
        spot.layer is not None and block.layers[0] <= spot.layer < block.layers[1]
    )


def block_levels(blocks: Sequence[Block], spot: Spot, model: Reference | None) -> dict[int, Level]:
    """What our own blocks say of a tensor, for a model or (None) for all models, by their indices."""
    levels: dict[int, Level] = {}
    for index, block in enumerate(blocks):
        if (block.model is not None and block.model != model) or not fits(block, spot):
            continue
        values: dict[str, object] = dict(block.parameters)
        if block.layers is not None and spot.layer is not None:
            # A list runs over the block's own range.
            first, end = block.layers
            t = (spot.layer - first) / (end - first - 1) if end - first > 1 else 1.0
            for key, value in values.items():
                if isinstance(value, list):
                    read = [parameter(key).read(item) for item in cast("list[object]", value)]
                    values[key] = gradient(read, t)
        levels[index] = values
    return levels


def filters(setting: object) -> Iterator[tuple[int | None, str]]:
    """The filters of a parameter that are about some tensors only, each with its index in a list."""
    if isinstance(setting, Filtered):
        entries: list[tuple[int | None, object]] = [(None, setting)]
    else:
        entries = list(enumerate(cast("list[object]", setting))) if isinstance(setting, list) else []
    for index, entry in entries:
        if isinstance(entry, Filtered) and entry.filter not in (None, "*"):
            yield index, str(entry.filter)
