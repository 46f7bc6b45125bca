"""What has brought the models of a recipe together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from isthmus.align import Alignment


@dataclass(frozen=True)
class Aligned:
    """What has brought the models of a recipe together, as a merge reads it.

    Args:
        files: that are read beside the models' own: one of index tensors, or the moved models' by their names.
        told: what was found, in words.
        orders: (model, tensor) -> (dimension, name of the index) for each dimension that is read in another order.
        moved: tensor -> dtype, of those that each model's file holds in the place of its own.
        alignment: of models that are held whole, where it is still asked for.
    """

    files: Mapping[str, Path]
    told: tuple[str, ...]
    orders: Mapping[tuple[str, str], Sequence[tuple[int, str]]] = field(
        default_factory=dict[tuple[str, str], Sequence[tuple[int, str]]]
    )
    moved: Mapping[str, torch.dtype] = field(default_factory=dict[str, "torch.dtype"])
    alignment: Alignment | None = None
