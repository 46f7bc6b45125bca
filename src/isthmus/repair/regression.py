"""Linear regression from streamed moments: what a layer reads, and what it should put out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

#: Targets whose variance is a smaller part of their mean's square than this are constant: the rest is float32 rounding.
CONSTANT = 1e-11


@dataclass(frozen=True)
class Fit:
    """A layer's weights and bias, and how well they do; everything float64.

    Attributes:
        weight: of each group.
        bias: of each group; zeros where none was to be fitted.
        gain: by how much each row of the old weights was multiplied before it was corrected.
        left: of the targets' variance (without a bias: of their square), the part that is not explained.
    """

    weight: Float[Tensor, "groups outputs inputs"]
    bias: Float[Tensor, "groups outputs"]
    gain: Float[Tensor, "groups outputs"]
    left: float


class Regression:
    """Moments of inputs x, outputs y = W x + b and targets t, over all samples, from which a layer is fitted.

    Sums are float64; products within a batch are taken in the data's own precision, around the means of the
    first batch, so that large means cost no digits. What is multiplied with x is t - y, so that where nothing is
    missing nothing is corrected, to the bit.
    """

    def __init__(self) -> None:
        self.count = 0
        self._centres: tuple[Tensor, Tensor] | None = None
        self._sums: list[Tensor] = []

    def add(
        self,
        x: Float[Tensor, "samples groups inputs"],
        y: Float[Tensor, "samples groups outputs"],
        t: Float[Tensor, "samples groups outputs"],
    ) -> None:
        """Take in a batch: what is read, what the layer makes of it, and what that should be."""
        missing = t - y
        if self._centres is None:
            self._centres = x.mean(0), missing.mean(0)
        x, missing = x - self._centres[0], missing - self._centres[1]
        columns = x.permute(1, 2, 0)
        sums = [
            x.sum(0, dtype=torch.float64),
            missing.sum(0, dtype=torch.float64),
            (columns @ columns.mT).double(),
            (columns @ missing.transpose(0, 1)).double(),
            t.sum(0, dtype=torch.float64),
            t.square().sum(0, dtype=torch.float64),
        ]
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums
        self.count += len(x)

    @property
    def finite(self) -> bool:
        """Whether all that was seen is."""
        return bool(torch.stack([s.sum() for s in self._sums]).isfinite().all())

    @property
    def mean(self) -> Float[Tensor, "groups inputs"]:
        """Of what is read."""
        assert self._centres is not None, "nothing was added"
        return self._sums[0] / self.count + self._centres[0]

    @property
    def target(self) -> Float[Tensor, "groups outputs"]:
        """Mean of the targets."""
        return self._sums[4] / self.count

    def variance(self, weight: Float[Tensor, "groups outputs inputs"]) -> Float[Tensor, "groups outputs"]:
        """Of what these weights make of the inputs, over the samples (divided by their number)."""
        return (weight @ self._moments(True)[0] * weight).sum(2).clamp_min(0)

    def fit(
        self,
        weight: Float[Tensor, "groups outputs inputs"],
        *,
        ridge: float,
        rank: int | None = None,
        bias: bool = True,
    ) -> Fit:
        """The layer that takes what is read to the targets: old rows times gains, and a correction.

        First the gain g of each row by itself, then the correction D: min E|(g W + D) x + b - t|^2 + penalty |D|^2,
        with a penalty of `ridge` times the mean variance of an input. Rows that put out nothing keep a gain of 1.

        Args:
            weight: W, of which the outputs were made.
            ridge: positive; the larger, the less is corrected.
            rank: the correction's, in each group: the best one of that rank (Izenman 1975); None for any, 0 for none.
            bias: whether there is a b to fit; without, moments are taken about zero.
        """
        gram, cross, spread = self._moments(bias)
        made = (weight @ gram * weight).sum(2)
        change = (weight * cross.mT).sum(2) / made
        gain = 1 + torch.where(made > 0, change, 0.0)
        total = cross + gram @ weight.mT
        penalty = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)
        floor = torch.where(penalty > 0, penalty, 1.0).unsqueeze(1).expand(gram.shape[:2])
        damped = gram + torch.diag_embed(floor)
        missing = cross - gram @ (weight * (gain - 1).unsqueeze(2)).mT
        correction = torch.cholesky_solve(missing, torch.linalg.cholesky(damped)).mT
        if rank is not None and rank < correction.shape[1]:
            _, directions = torch.linalg.eigh(correction @ damped @ correction.mT)
            kept = directions[..., directions.shape[2] - rank :]
            correction = kept @ kept.mT @ correction
        new = weight * gain.unsqueeze(2) + correction
        shift = self.target - (new @ self.mean.unsqueeze(2)).squeeze(2)
        left = spread - 2 * (new * total.mT).sum(2) + (new @ gram * new).sum(2)
        whole, rounding = float(spread.sum()), CONSTANT * float(self.target.square().sum())
        return Fit(
            weight=new,
            bias=shift if bias else torch.zeros_like(shift),
            gain=gain,
            left=max(float(left.sum()), 0.0) / whole if whole > rounding else 0.0,
        )

    def _moments(self, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
        """E[x x^T], E[x (t - y)^T], E[t^2], about the means or about zero."""
        assert self._centres is not None, "nothing was added"
        x, missing, gram, cross, t, squares = (s / self.count for s in self._sums)
        gram = gram - x.unsqueeze(2) * x.unsqueeze(1)
        cross = cross - x.unsqueeze(2) * missing.unsqueeze(1)
        if centred:
            return gram, cross, squares - t.square()
        x, missing = x + self._centres[0], missing + self._centres[1]
        return gram + x.unsqueeze(2) * x.unsqueeze(1), cross + x.unsqueeze(2) * missing.unsqueeze(1), squares
