"""The table of pruners."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool
from torch import Tensor

from isthmus.registry import Registry


@dataclass(frozen=True, eq=False)
class Choice:
    """What a pruner chose.

    Attributes:
        keep: weight -> which of its elements stay, of its shape. A layer that is not in it is not pruned.
        weights: weight -> new values, where a pruner changes what it keeps (pruned ones are zeros in it).
        left: weight -> why it was not pruned.
        notes: what was seen of the data.
    """

    keep: Mapping[str, Bool[Tensor, "..."]]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)


#: A pruner takes a program, a state dict and the layers to prune, and chooses the weights that stay. `sparsity` and,
#: where it needs it, `data` come as keywords.
PRUNERS = Registry[Callable[..., Choice]]("pruner", package=__package__, supplied=("sparsity", "data"))
