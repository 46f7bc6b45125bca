"""TSV-M: task singular vectors, kept apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.combine.blocks import BlockRule
from isthmus.combine.rules import rule
from isthmus.combine.singular import OfMatrices, orthogonalised


class _TaskSingularVectors(OfMatrices):
    def merge(self, vectors: Sequence[Float[Tensor, "out in"]]) -> Float[Tensor, "out in"]:
        rank = max(min(vectors[0].shape) // len(vectors), 1)
        lefts: list[Tensor] = []
        values: list[Tensor] = []
        rights: list[Tensor] = []
        for vector in vectors:
            left, value, right = torch.linalg.svd(vector, full_matrices=False)
            lefts.append(left[:, :rank])
            values.append(value[:rank])
            rights.append(right[:rank].T)
        left = orthogonalised(torch.cat(lefts, dim=1))
        right = orthogonalised(torch.cat(rights, dim=1))
        return (left * torch.cat(values)) @ right.T


@rule(
    "tsv-merge",
    needs=("base",),
    weighing="coefficients",
    claims=("order-free", "streaming-equals-memory"),
    costs="singular values of every matrix of every model",
    source="Gargiulo et al., Task singular vectors, arXiv:2412.00081, algorithm 1",
)
def tsv_merge(weights: Sequence[float], *, lam: float = 1.0, convolutions: bool = True) -> BlockRule:
    """Every task's largest singular triplets, made orthogonal to each other's (TSV-M).

    Of each of T task matrices the largest min(out, in) / T singular triplets are kept; all left and all right
    singular vectors are each brought to the nearest orthogonal set. Other tensors are averaged.

    Args:
        weights: one per model, of any size; one each where not given.
        lam: what the merged task vector is multiplied by.
        convolutions: read a convolution's weight as the matrix (out, in * kernel); the authors' code averages
            them.

    Source:
        Algorithm 1. At least one triplet per task is kept, also where there are more tasks than min(out, in).
        Exclude what should not be decomposed (embeddings, CLIP's text projection) by merging it apart.

    Examples:
        >>> import torch, isthmus
        >>> base = {"w": torch.zeros(2, 2)}
        >>> models = [{"w": torch.diag(torch.tensor(v))} for v in ([3.0, 0.0], [0.0, 2.0])]
        >>> isthmus.combine(models, "tsv-merge", base=base)["w"].diag().round(decimals=4)
        tensor([3., 2.])
    """
    return _TaskSingularVectors(weights, lam, convolutions)
