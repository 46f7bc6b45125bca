"""What every part of a report is: a frozen record, whose numbers survive JSON and whose text is UTF-8."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, model_validator


def _fraction(value: float) -> float:
    if math.isfinite(value) and not 0 <= value <= 1:
        raise ValueError(f"{value:g} is no fraction: accuracies lie in [0, 1], so divide percent by 100")
    return value


def _ratio(value: float) -> float:
    if math.isfinite(value) and value < 0:
        raise ValueError(f"{value:g} is negative")
    return value


_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as JSON is made to hold them


def _named(value: object) -> object:
    return _NAMES.get(value, value) if isinstance(value, str) else value


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else next(k for k, v in _NAMES.items() if str(v) == str(value))


Number = Annotated[float, BeforeValidator(_named), PlainSerializer(_plain, when_used="json")]
Fraction = Annotated[Number, AfterValidator(_fraction)]
Positive = Annotated[Number, AfterValidator(_ratio)]


def _encodable(value: object) -> object:
    """Text that UTF-8 can hold: a file name or an argument with wrong bytes in it must not cost a report."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value


class Record(BaseModel):
    """A part of a report."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return _encodable(value)
