"""Rules whose result is a weighted sum of the models, with weights read off their inner products.

Spherical interpolation, the Karcher mean and Model Stock look at lengths and angles only. One pass measures the
models' Gram matrix, the weights follow from it, and writing is a weighted sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, cast

import torch
from jaxtyping import Float64
from torch import Tensor

from isthmus.combine.average import weighted_sum
from isthmus.combine.blocks import Block, BlockRule, Layout, arithmetic, dot, scratch, widened

#: What lengths and angles are those of: the whole tensor, each row of the last axis, each filter (all that one
#: output reads), or each column (along the first axis).
Per = Literal["tensor", "row", "filter", "column"]

#: Gram matrices (..., n, n) -> the models' factors (..., n).
Factors = Callable[[Float64[Tensor, "*rows n n"]], Float64[Tensor, "*rows n"]]

_LAYOUTS: dict[Per, Layout] = {"tensor": "elements", "row": "rows", "filter": "filters", "column": "whole"}


class FromGram(BlockRule):
    """sum_i c_i v_i with factors from the Gram matrix of v_i, where v_i is W_i, or W_i - base.

    Args:
        factors: Gram matrices to factors.
        per: what the inner products run over.
    """

    def __init__(self, factors: Factors, per: Per = "tensor"):
        self._factors = factors
        self._per: Per = per
        self._found: tuple[float, ...] = ()
        self.layout = _LAYOUTS[per]
        self.passes = 1 if per == "tensor" else 0

    def measure(self, index: int, block: Block) -> object:
        del index  # there is one pass only
        vectors = self._vectors(block)
        return [[dot(a, b) for b in vectors[: i + 1]] for i, a in enumerate(vectors)]

    def reduce(self, index: int, partials: Iterable[object]) -> None:
        del index
        found: Tensor | None = None
        for partial in partials:
            rows = cast("list[list[float]]", partial)
            gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
            for i, row in enumerate(rows):
                gram[i, : i + 1] = torch.tensor(row, dtype=torch.float64)
            found = gram if found is None else found + gram
        assert found is not None
        whole = found + found.tril(-1).mT
        self._found = tuple(self._factors(whole).tolist())

    def write(self, block: Block) -> Tensor:
        dtype = arithmetic(block)
        if self._per == "tensor":
            terms = list(zip(self._found, block.models, strict=True))
            if block.base is not None:
                terms.insert(0, (1.0 - sum(self._found), block.base))
            narrow = all(t.itemsize <= 2 for _, t in terms)
            return weighted_sum(terms, torch.promote_types(dtype, torch.float32 if narrow else torch.float64))
        axis = 0 if self._per == "column" else -1
        vectors = torch.stack(self._vectors(block)).movedim(1 + axis if axis == 0 else axis, -1)
        models = vectors.double().movedim(0, -2)  # (..., n, length)
        factors = self._factors(models @ models.mT)
        merged = (factors.unsqueeze(-1) * models).sum(-2).movedim(-1, axis).to(dtype)
        return merged if block.base is None else merged.add_(block.base.to(dtype))

    def _vectors(self, block: Block) -> list[Tensor]:
        dtype = arithmetic(block)
        if block.base is None:
            return [widened(m, dtype, f"vector {i}") for i, m in enumerate(block.models)]
        base = widened(block.base, dtype, "base")
        found: list[Tensor] = []
        for i, model in enumerate(block.models):
            out = scratch(f"vector {i}", model, dtype)
            found.append(torch.sub(widened(model, dtype, "term"), base, out=out))
        return found


def lengths(gram: Float64[Tensor, "*rows n n"]) -> Float64[Tensor, "*rows n"]:
    """The norms of vectors with given inner products."""
    return gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()


def cosine(gram: Float64[Tensor, "*rows n n"], i: int, j: int) -> Float64[Tensor, "*rows"]:
    """The cosine between two of the vectors; 0 where one of them is zero."""
    product = (gram[..., i, i] * gram[..., j, j]).clamp_min(0).sqrt()
    return torch.where(product > 0, gram[..., i, j] / product.clamp_min(1e-300), 0.0).clamp(-1, 1)
