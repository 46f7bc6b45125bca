"""Values of parameters: one, a list over the layers, either for some tensors, a curve."""

from __future__ import annotations

import math
from typing import Annotated, Literal, cast

from pydantic import BeforeValidator, Discriminator, Field, Tag

from isthmus.recipe.language.strict import Strict, short


def _scalar(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    if isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{short(value)} is no number, word or true/false")


Plain = Annotated[object, BeforeValidator(_scalar)]


def _gradient(value: object) -> object:
    if isinstance(value, list) and not value:
        raise ValueError("a list of values over the layers is empty")
    return cast("object", value)


Gradient = Annotated[list[Plain], BeforeValidator(_gradient)]


def _one_or_list(value: object) -> str:
    return "#list" if isinstance(value, list | tuple) else "#one"


Value = Annotated[
    Annotated[Plain, Tag("#one")] | Annotated[Gradient, Tag("#list")], Discriminator(_one_or_list)
]


class Filtered(Strict):
    """A value for the tensors whose names contain `filter` (all where it is absent or `*`)."""

    value: Value
    filter: str | None = None


def _kind(value: object) -> str:
    if isinstance(value, Filtered | dict):
        return "#filtered"
    if isinstance(value, list) and any(
        isinstance(item, dict | Filtered) for item in cast("list[object]", value)
    ):
        return "#filters"
    return _one_or_list(value)


#: A parameter: one value, a list over the layers, or such for some tensors.
Setting = Annotated[
    Annotated[Plain, Tag("#one")]
    | Annotated[Gradient, Tag("#list")]
    | Annotated[Filtered, Tag("#filtered")]
    | Annotated[list[Filtered], Tag("#filters")],
    Discriminator(_kind),
]

#: What the tags above begin with: pydantic names them in a place, where the YAML has no such key.
TAG = "#"

Parameters = dict[str, Setting]


class Preset(Strict):
    """A curve over all layers: `ramp` and `cosine` go from `from` to `to`, `peak` goes there and back."""

    preset: Literal["ramp", "cosine", "peak"]
    start: float = Field(0.0, alias="from")
    end: float = Field(1.0, alias="to")


def _block_kind(value: object) -> str:
    return "#preset" if isinstance(value, dict | Preset) else _one_or_list(value)


BlockValue = Annotated[
    Annotated[Plain, Tag("#one")] | Annotated[Gradient, Tag("#list")] | Annotated[Preset, Tag("#preset")],
    Discriminator(_block_kind),
]
