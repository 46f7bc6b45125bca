"""One output tensor: what it is made of, with which parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from isthmus.recipe.parents.sizes import SIZES, size_of


@dataclass(frozen=True)
class Part:
    """One model's tensor in a row.

    Args:
        model: the recipe's name of the model.
        name: of the tensor there.
        values: of the parameters that each model has its own of.
        base: whether it is what the others are compared with.
    """

    model: str
    name: str
    values: Mapping[str, object] = field(default_factory=lambda: cast("dict[str, object]", {}))
    base: bool = False


@dataclass(frozen=True)
class Row:
    """One tensor of the output.

    Args:
        name: of the tensor.
        shape: of the tensor.
        dtype: torch's name, or safetensors' for what is no weight.
        how: merged by the method; taken from one model; an integer that all models must agree on.
        parts: what it is made of, in the recipe's order.
        values: of the parameters that the tensor has as a whole.
        tokens: whether it has a row per token, remade for the output's tokenizer.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    how: Literal["merged", "copied", "agreed"]
    parts: tuple[Part, ...]
    values: Mapping[str, object] = field(default_factory=lambda: cast("dict[str, object]", {}))
    tokens: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the output."""
        return math.prod(self.shape) * (SIZES[self.dtype] if self.dtype in SIZES else size_of(self.dtype))


@dataclass
class Rows:
    """All rows, and what should be known about them.

    Args:
        rows: in natural order of the names.
        notes: what was inferred, left out or not read.
    """

    rows: list[Row]
    notes: list[str]
