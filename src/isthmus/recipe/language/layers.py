"""Ranges of layers, as slices and blocks name them."""

from __future__ import annotations

from typing import Annotated, cast

from pydantic import BeforeValidator

from isthmus.recipe.language.strict import short

#: What stands for a range that the recipe gives wrongly: so that the rest can be read.
UNKNOWN_LAYERS = (0, 1 << 62)


def _range(value: object) -> object:
    if not isinstance(value, list | tuple) or len(cast("list[object]", value)) != 2:
        raise ValueError(f"{short(value)} is no range of layers: write [first, end), for example [0, 16]")
    first, end = cast("list[object]", value)
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in (first, end)):
        raise ValueError(f"{short(value)} is no range of layers: both ends are whole numbers")
    if not 0 <= cast("int", first) < cast("int", end):
        raise ValueError(f"[{first}, {end}] holds no layer: the range begins at 0 and its end is not in it")
    return (first, end)


Layers = Annotated[tuple[int, int], BeforeValidator(_range)]
