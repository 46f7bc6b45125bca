"""RAM: add up what one model alone has moved, average what several have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from isthmus.combine.blocks import Block, BlockRule, arithmetic, scratch, task_vector, widened
from isthmus.combine.rules import rule
from isthmus.combine.task_vectors import refuse

_SOURCE = "Yuan et al., Reinforced Agent Merging, arXiv:2601.13572; as mergekit's"


class _Moved(BlockRule):
    """Elements moved by one model are added, by several averaged.

    Args:
        models: how many.
        epsilon: an element is moved if it is further than this from the base.
        ratio: what the part shared per part alone adds to the factor of what is alone; None for a factor of
            one without measuring.
        most: the largest ratio that counts.
    """

    def __init__(self, models: int, epsilon: float, ratio: float | None = None, most: float = 0.0):
        self._epsilon = epsilon
        self._ratio = ratio
        self._most = most
        self._factors = [1.0] * models
        self.passes = 0 if ratio is None else 1

    def measure(self, index: int, block: Block) -> object:
        del index  # there is one pass only
        vectors, movers = self._vectors(block)
        alone = movers == 1
        return [(int((v != 0).sum()), int(((v != 0) & alone).sum())) for v in vectors]

    def reduce(self, index: int, partials: Iterable[object]) -> None:
        del index
        assert self._ratio is not None
        found = [cast("list[tuple[int, int]]", p) for p in partials]
        for i in range(len(self._factors)):
            moved, alone = (sum(f[i][j] for f in found) for j in (0, 1))
            share = (moved - alone) / max(alone, self._epsilon)
            self._factors[i] = 1 + self._ratio * min(max(share, 0.0), self._most)

    def write(self, block: Block) -> Tensor:
        assert block.base is not None
        vectors, movers = self._vectors(block)
        dtype = movers.dtype
        merged = scratch("merged", movers, dtype).zero_()
        alone = movers == 1
        for factor, vector in zip(self._factors, vectors, strict=True):
            merged.add_(vector if factor == 1 else torch.where(alone, vector * factor, vector))
        return merged.div_(movers.clamp_min_(1)).add_(widened(block.base, dtype, "base"))

    def _vectors(self, block: Block) -> tuple[list[Tensor], Tensor]:
        """The task vectors, zero where not moved, and how many models moved each element."""
        assert block.base is not None
        dtype = arithmetic(block)
        base = widened(block.base, dtype, "base")
        vectors: list[Tensor] = []
        movers = scratch("movers", base, dtype).zero_()
        for i, model in enumerate(block.models):
            vector = task_vector(model, base, dtype, f"vector {i}")
            torch.hardshrink(vector, self._epsilon, out=vector)
            movers.add_(vector != 0)
            vectors.append(vector)
        return vectors, movers


@rule(
    "ram",
    needs=("base",),
    weighing="none",
    claims=("order-free", "streaming-equals-memory"),
    source=f"{_SOURCE} `ram`",
)
def ram(weights: Sequence[float], *, epsilon: float = 1e-5) -> BlockRule:
    """Elements that one model moved keep its change, those that several moved take the mean of theirs.

    For models that moved few elements each, as reinforcement learning leaves them: an average would dilute
    what only one of them has learned.

    Args:
        weights: not used.
        epsilon: an element is moved if it is further than this from the base, >= 0.

    Raises:
        InputError: epsilon is negative.

    Examples:
        >>> import torch, isthmus
        >>> base, models = {"w": torch.zeros(3)}, [{"w": torch.tensor(v)} for v in ([1.0, 2, 0], [0, 4.0, 0])]
        >>> isthmus.combine(models, "ram", base=base)
        {'w': tensor([1., 3., 0.])}
    """
    refuse("ram", [] if epsilon >= 0 else [f"epsilon = {epsilon:g} is not at least 0"])
    return _Moved(len(weights), epsilon)


@rule(
    "ramplus-tl",
    needs=("base", "passes"),
    weighing="none",
    claims=("order-free", "streaming-equals-memory"),
    source=f"{_SOURCE} `ramplus_tl`",
)
def ramplus_tl(
    weights: Sequence[float], *, r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5
) -> BlockRule:
    """RAM, with what a model alone has moved scaled up where it shares much with others.

    The changes that only one model made are multiplied by 1 + r min(shared / alone, alpha), where shared
    and alone are numbers of elements of the tensor that the model moved with others and by itself.

    Args:
        weights: not used.
        r: how strongly to scale up.
        alpha: the largest ratio that counts, >= 0.
        epsilon: an element is moved if it is further than this from the base, >= 0.

    Raises:
        InputError: options out of range.

    Examples:
        >>> import torch, isthmus
        >>> base, models = {"w": torch.zeros(3)}, [{"w": torch.tensor(v)} for v in ([1.0, 2, 0], [0, 4.0, 0])]
        >>> isthmus.combine(models, "ramplus-tl", base=base, options={"r": 1.0})
        {'w': tensor([1.2000, 3.0000, 0.0000])}
    """
    refuse(
        "ramplus-tl",
        [f"{n} = {v:g} is not at least 0" for n, v in (("alpha", alpha), ("epsilon", epsilon)) if not v >= 0],
    )
    return _Moved(len(weights), epsilon, r, alpha)
