"""What a measure says: a named number that knows its unit, its bounds and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One measured quantity.

    Attributes:
        name: what was measured, in the field's word ("barrier", "variance ratio").
        value: the number.
        unit: "%", "nats", "1" for a ratio, ...
        better: which way is better, or None where neither is.
        bounds: the least and largest value it can take; None for unbounded.
        layers: the value at each layer, in order of execution, where it was measured there.
        note: one sentence on how it was measured (split, number of examples, definition).
    """

    name: str
    value: float
    unit: str = "1"
    better: Literal["higher", "lower"] | None = None
    bounds: tuple[float | None, float | None] = (None, None)
    layers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        unit = "" if self.unit == "1" else self.unit if self.unit == "%" else f" {self.unit}"
        return f"{self.name}: {self.value:.4g}{unit}"
