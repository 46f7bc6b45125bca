"""What the rules on singular vectors share: which tensors are matrices, and making blocks orthogonal."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.combine.blocks import Block, BlockRule, Layout, arithmetic


class OfMatrices(BlockRule):
    """base + lam * merged task vectors: matrices by a rule of their own, other tensors by their weighted mean.

    Args:
        weights: one per model.
        lam: what the merged task vector is multiplied by.
        convolutions: whether a convolution's weight is read as the matrix (out, in * kernel), or averaged.
    """

    layout: Layout = "whole"

    def __init__(self, weights: Sequence[float], lam: float, convolutions: bool):
        self._weights = tuple(weights)
        self._lam = lam
        self._convolutions = convolutions

    def merge(self, vectors: Sequence[Float[Tensor, "out in"]]) -> Float[Tensor, "out in"]:
        """The merged task matrix of weighted task matrices."""
        raise NotImplementedError

    def write(self, block: Block) -> Tensor:
        with one_thread():
            return self._write(block)

    def _write(self, block: Block) -> Tensor:
        assert block.base is not None
        dtype = arithmetic(block)
        base = block.base.to(dtype)
        vectors = [(m.to(dtype) - base).mul_(w) for w, m in zip(self._weights, block.models, strict=True)]
        if base.ndim == 2 or (base.ndim > 2 and self._convolutions):
            merged = self.merge([v.reshape(v.shape[0], -1) for v in vectors]).view_as(base)
        else:
            merged = torch.stack(vectors).mean(0)
        return merged.mul_(self._lam).add_(base)


_LOCK = threading.Lock()
_INSIDE: list[int] = []  # how many threads torch had, once for each thread that is inside


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """With one of torch's threads: LAPACK rounds differently for each number of them.

    Many tensors are decomposed at once by threads of ours, not each by many of torch's.
    """
    with _LOCK:
        _INSIDE.append(_INSIDE[0] if _INSIDE else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _LOCK:
            before = _INSIDE.pop()
            if not _INSIDE:
                torch.set_num_threads(before)


def orthogonalised(matrix: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """The nearest matrix with orthonormal columns (rows, if there are fewer): P Q^T of the SVD P D Q^T."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right
