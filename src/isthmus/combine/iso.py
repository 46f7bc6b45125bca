"""Isotropic merging: all directions of the merged task matrix equally long."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.combine.blocks import BlockRule
from isthmus.combine.rules import rule
from isthmus.combine.singular import OfMatrices, orthogonalised
from isthmus.combine.task_vectors import refuse
from isthmus.combine.trimming import unit_interval

_SOURCE = "Marczak et al., No task left behind, arXiv:2502.04959"


class _Common(OfMatrices):
    def merge(self, vectors: Sequence[Float[Tensor, "out in"]]) -> Float[Tensor, "out in"]:
        left, values, right = torch.linalg.svd(torch.stack(list(vectors)).sum(0), full_matrices=False)
        return (left @ right).mul_(values.mean())


class _CommonAndSpecific(OfMatrices):
    def __init__(self, weights: Sequence[float], lam: float, convolutions: bool, common: float):
        super().__init__(weights, lam, convolutions)
        self._common = common

    def merge(self, vectors: Sequence[Float[Tensor, "out in"]]) -> Float[Tensor, "out in"]:
        left, values, right = torch.linalg.svd(torch.stack(list(vectors)).sum(0), full_matrices=False)
        rank = len(values)
        each = round((rank - int(rank * self._common)) / len(vectors))
        each = min(each, rank // len(vectors))
        common = rank - each * len(vectors)
        shared = left[:, :common]
        lefts, lengths, rights = [shared], [values[:common]], [right[:common].T]
        for vector in vectors:
            u, s, v = torch.linalg.svd(vector - shared @ (shared.T @ vector), full_matrices=False)
            lefts.append(u[:, :each])
            lengths.append(s[:each])
            rights.append(v[:each].T)
        merged = orthogonalised(torch.cat(lefts, dim=1)) @ orthogonalised(torch.cat(rights, dim=1)).T
        return merged.mul_(torch.cat(lengths).mean())


@rule(
    "iso-c",
    needs=("base",),
    weighing="coefficients",
    claims=("order-free", "streaming-equals-memory"),
    costs="singular values of every matrix's sum",
    source=f"{_SOURCE}, algorithm 1",
)
def iso_c(weights: Sequence[float], *, lam: float = 1.0, convolutions: bool = True) -> BlockRule:
    """The summed task matrix with all singular values replaced by their mean. Other tensors are averaged.

    Args:
        weights: one per model, of any size; one each where not given.
        lam: what the merged task vector is multiplied by; chosen on validation data.
        convolutions: read a convolution's weight as the matrix (out, in * kernel), instead of averaging it.

    Examples:
        >>> import torch, isthmus
        >>> base = {"w": torch.zeros(2, 2)}
        >>> models = [{"w": torch.diag(torch.tensor(v))} for v in ([3.0, 0.0], [0.0, 2.0])]
        >>> isthmus.combine(models, "iso-c", base=base)["w"].diag()
        tensor([2.5000, 2.5000])
    """
    return _Common(weights, lam, convolutions)


@rule(
    "iso-cts",
    needs=("base",),
    weighing="coefficients",
    claims=("order-free", "streaming-equals-memory"),
    costs="singular values of every matrix of every model",
    source=f"{_SOURCE}, algorithm 2",
)
def iso_cts(
    weights: Sequence[float], *, common: float = 0.8, lam: float = 1.0, convolutions: bool = True
) -> BlockRule:
    """As iso-c, with the weakest directions of the sum replaced by the tasks' own strongest ones.

    Of the singular vectors of the summed task matrix the first part is kept; the rest is filled, in equal
    shares, with the strongest directions of what each task has outside of it. Left and right vectors are
    each made orthogonal, and all lengths are their mean.

    Args:
        weights: one per model, of any size; one each where not given.
        common: the part of the directions that is kept of the sum, in [0, 1].
        lam: what the merged task vector is multiplied by; chosen on validation data.
        convolutions: read a convolution's weight as the matrix (out, in * kernel), instead of averaging it.

    Raises:
        InputError: `common` is out of range.

    Source:
        Algorithm 2, with the numbers of directions rounded as in the authors' code; never more in total than
        the rank.

    Examples:
        >>> import torch, isthmus
        >>> base = {"w": torch.zeros(4, 4)}
        >>> models = [{"w": torch.diag(torch.tensor(v))} for v in ([3.0, 1.0, 0, 0], [3.0, 0, 2.0, 1.0])]
        >>> isthmus.combine(models, "iso-cts", base=base, options={"common": 0.5})["w"].diag().round(decimals=4)
        tensor([2.5000, 2.5000, 2.5000, 2.5000])
    """
    refuse("iso-cts", unit_interval("common", [common], zero=True))
    return _CommonAndSpecific(weights, lam, convolutions, common)
