"""RegMean: the linear map that is nearest to all models' maps on their own inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.combine.average import Linear
from isthmus.combine.blocks import Block, BlockRule, Layout, Statistics, arithmetic
from isthmus.combine.rules import rule
from isthmus.combine.singular import one_thread
from isthmus.combine.task_vectors import refuse
from isthmus.combine.trimming import unit_interval
from isthmus.errors import MismatchError


class _RegMean(BlockRule):
    layout: Layout = "whole"
    statistics: Statistics = "whole"

    def __init__(self, weights: Sequence[float], alpha: float, ridge: float):
        self._weights = tuple(weights)
        self._alpha = alpha
        self._ridge = ridge
        self._plain = Linear(weights)

    def write(self, block: Block) -> Tensor:
        if not block.statistics:
            return self._plain.write(block)
        with one_thread():
            return self._solved(block)

    def _solved(self, block: Block) -> Tensor:
        shape = tuple(block.models[0].shape)
        width = math.prod(shape[1:])
        if len(shape) < 2 or any(tuple(g.shape) != (width, width) for g in block.statistics):
            raise MismatchError(
                f"the Gram matrices of {block.place.key or 'a tensor'} {shape} are not ({width}, {width})",
                [str(tuple(g.shape)) for g in block.statistics],
            )
        dtype = arithmetic(block, torch.float64)
        grams = [self._shrunk(g.to(dtype)) * w for g, w in zip(block.statistics, self._weights, strict=True)]
        maps = [m.to(dtype).reshape(shape[0], width) for m in block.models]
        # Solved for what is to be added to the average: directions that no input has stay averaged.
        mean = torch.stack([w * m for w, m in zip(self._weights, maps, strict=True)]).sum(0)
        pulled = torch.stack([(m - mean) @ g for m, g in zip(maps, grams, strict=True)]).sum(0)
        return (mean + _solved(torch.stack(grams).sum(0), pulled, self._ridge)).view(shape)

    def _shrunk(self, gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        """Off the diagonal times alpha."""
        return gram * self._alpha + torch.diag(gram.diagonal() * (1 - self._alpha))


def _solved(
    gram: Float[Tensor, "n n"], right: Float[Tensor, "out n"], ridge: float
) -> Float[Tensor, "out n"]:
    """right gram^-1; of least norm where the Gram matrix is singular."""
    size = gram.diagonal().mean()
    if size <= 0:
        return torch.zeros_like(right)
    loaded = gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device) * (ridge * size)
    values, vectors = _eigen(loaded)
    known = values > values[-1] * len(values) * torch.finfo(gram.dtype).eps
    inverse = torch.where(known, 1 / values.masked_fill(~known, 1.0), 0.0)
    return ((right @ vectors) * inverse) @ vectors.T


def _eigen(
    matrix: Float[Tensor, "n n"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix."""
    try:
        return torch.linalg.eigh(matrix)
    except RuntimeError:  # LinAlgError
        # Divide and conquer can fail where many eigenvalues are equal, as those of silent units: QR does not.
        import scipy.linalg

        values, vectors = scipy.linalg.eigh(matrix.cpu().numpy(), driver="ev")
        return torch.from_numpy(values).to(matrix), torch.from_numpy(vectors).to(matrix)


@rule(
    "reg-mean",
    needs=("statistics",),
    claims=("copies-give-the-model", "order-free", "streaming-equals-memory"),
    costs="a linear system per layer, as wide as its inputs; Grams of them where they are not given",
    source="Jin et al., Dataless knowledge fusion, arXiv:2212.09849, equation 2",
)
def reg_mean(weights: Sequence[float], *, alpha: float = 0.9, ridge: float = 0.0) -> BlockRule:
    """The linear map nearest to every model's own on that model's inputs: (sum W_i G_i) (sum G_i)^-1.

    Args:
        weights: how much each model's inputs count, summing to one; uniform where not given.
        alpha: what the Gram matrices are multiplied by off their diagonals, in [0, 1]. 0.9 in the paper, as low as
            0.1 in its configurations.
        ridge: what is added to the diagonal of the summed Gram matrix, as a part of its mean, >= 0.

    Raises:
        InputError: options out of range.
        MismatchError: Gram matrices of another size than the map's inputs.

    Source:
        Equation 2 with the reduction of section 3.3, in float64. `statistics` holds the Gram matrix of the inputs
        of each linear map or convolution, X^T X / n, with n = in, or in * kernel. Tensors without one are
        averaged, and so is every direction that no input has: the paper's inverse would not exist.

    Examples:
        >>> import torch, isthmus
        >>> models = [{"w": torch.tensor([[0.0, 0.0]])}, {"w": torch.tensor([[1.0, 1.0]])}]
        >>> grams = [{"w": torch.diag(torch.tensor([3.0, 0.0]))}, {"w": torch.diag(torch.tensor([1.0, 0.0]))}]
        >>> isthmus.combine(models, "reg-mean", statistics=grams)
        {'w': tensor([[0.2500, 0.5000]])}
    """
    refuse(
        "reg-mean",
        [
            *unit_interval("alpha", [alpha], zero=True),
            *([] if ridge >= 0 else [f"ridge = {ridge:g} is not at least 0"]),
        ],
    )
    return _RegMean(weights, alpha, ridge)
