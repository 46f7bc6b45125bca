"""Maps from one network's channels to another's, by least squares."""

from __future__ import annotations

import re

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from isthmus.errors import DataError, InputError

#: "affine", "rank 1" (any whole number), "relu" (an order with positive scales), or "identity".
Kind = str


def rank_of(kind: Kind) -> int | None:
    """The rank that a kind allows; None for any.

    Raises:
        InputError: there is no such kind.
    """
    if kind in ("affine", "relu", "identity"):
        return None
    if (found := re.fullmatch(r"rank ([1-9]\d*)", kind)) is None:
        raise InputError(f"a stitch {kind!r} is none of affine, rank 1 (2, ...), relu, identity")
    return int(found[1])


class Sums:
    """First and second moments of two networks' channels x (source) and y (target), float64 on the CPU."""

    def __init__(self) -> None:
        self.count = 0
        self.x = self.y = torch.zeros((), dtype=torch.float64)
        self.xx = self.yy = self.xy = torch.zeros((), dtype=torch.float64)

    def add(self, x: Float[Tensor, "examples n *_"], y: Float[Tensor, "examples m *_"]) -> None:
        """Add a batch; every position is a sample."""
        first, second = (t.double().movedim(1, -1).reshape(-1, t.shape[1]) for t in (x, y))
        self.count += len(first)
        self.x, self.y = self.x + first.sum(0).cpu(), self.y + second.sum(0).cpu()
        self.xx, self.yy, self.xy = (
            self.xx + (first.T @ first).cpu(),
            self.yy + second.square().sum(0).cpu(),
            self.xy + (first.T @ second).cpu(),
        )

    def fitted(
        self, kind: Kind, rank: int | None, *, bias: bool, ridge: float, where: str
    ) -> tuple[Float[Tensor, "m n"], Float[Tensor, " m"]]:
        """The matrix and the bias with the least mean of |matrix x + bias - y|^2.

        Args:
            kind: of the map.
            rank: of its matrix, at most.
            bias: whether there is one; zeros otherwise.
            ridge: added to the diagonal of x's second moments, relative to its mean.
            where: for errors.

        Raises:
            InputError: widths that differ, for a kind that needs equal ones.
            DataError: moments that are not finite.
        """
        if not bool((self.xx.sum() + self.yy.sum()).isfinite()):
            raise DataError("activations are not finite", [where])
        mean_x, mean_y = (
            (self.x / self.count, self.y / self.count)
            if bias
            else (torch.zeros_like(self.x), torch.zeros_like(self.y))
        )
        xx = self.xx / self.count - torch.outer(mean_x, mean_x)
        xy = self.xy / self.count - torch.outer(mean_x, mean_y)
        yy = self.yy / self.count - mean_y.square()
        n, m = xy.shape
        if kind in ("relu", "identity") and n != m:
            raise InputError(
                f"{where}: {n} channels cannot be stitched to {m} by {kind!r}", hint="'affine' can"
            )
        if kind == "identity":
            return torch.eye(n, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)
        matrix = _scaled_order(xx.diagonal(), xy, yy) if kind == "relu" else _linear(xx, xy, rank, ridge)
        return matrix, mean_y - matrix @ mean_x


def _scaled_order(
    xx: Float[Tensor, " n"], xy: Float[Tensor, "n n"], yy: Float[Tensor, " n"]
) -> Float[Tensor, "n n"]:
    """Each target is its partner, by the best total correlation, times the best scale that is positive."""
    scale = torch.outer(xx.clamp_min(0), yy.clamp_min(0)).sqrt()
    likeness = torch.where(scale > 0, xy / scale, 0.0)
    rows, columns = linear_sum_assignment(likeness.T.numpy(), maximize=True)
    matrix = torch.zeros_like(xy)
    for target, source in zip(rows, columns, strict=True):
        best = float(xy[source, target] / xx[source]) if float(xx[source]) > 0 else 1.0
        # Zero and below are not in the group.
        matrix[target, source] = best if best > 0 else torch.finfo(torch.float32).eps
    return matrix


def _linear(
    xx: Float[Tensor, "n n"], xy: Float[Tensor, "n m"], rank: int | None, ridge: float
) -> Float[Tensor, "m n"]:
    """Least squares, of reduced rank where one is given (Izenman 1975): the fit's largest principal components."""
    mean = float(xx.diagonal().mean()) or 1.0
    # What never varies has no direction: the least-norm solution leaves it out.
    matrix = (torch.linalg.pinv(xx + ridge * mean * torch.eye(len(xx)).to(xx), hermitian=True) @ xy).T
    if rank is None or rank >= min(matrix.shape):
        return matrix
    _, vectors = torch.linalg.eigh(matrix @ xx @ matrix.T)
    kept = vectors[:, -rank:]
    return kept @ kept.T @ matrix
