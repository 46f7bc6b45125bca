"""How large merged weights are, and how large they let outputs be: identities and bounds, in logarithms.

The bounds are products over layers and leave floating-point range at a few dozen layers, so everything that multiplies
layers is a natural logarithm.

Source: "Rethinking weight-averaged model-merging" (arXiv:2411.09263), section 5 and appendix C, with its errata
    repaired: the covariance that its equation 13 leaves out, the indices of its equation 16, and K_s as the largest
    row norm, as in its appendix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.errors import InputError


@dataclass(frozen=True)
class Spread:
    """What averaging does to the magnitude and the variance of one tensor's elements.

    Attributes:
        largest: max |element| of the average.
        largest_mean: the weighted mean of the models' max |element|, which bounds it.
        largest_each: the largest of theirs, which bounds that.
        variance: of the average's elements.
        independent: what it would be if the models' elements did not covary: sum w_i^2 s_i^2.
        explained: with their covariances: sum w_i w_j Cov_ij. It is the variance, up to rounding.
        variance_each: the largest of the models' variances, which bounds it.
    """

    largest: float
    largest_mean: float
    largest_each: float
    variance: float
    independent: float
    explained: float
    variance_each: float


def spread(tensors: Sequence[Tensor], weights: Sequence[float] | None = None) -> Spread:
    """Magnitude and variance of an average's elements beside what its parts say about them.

    Args:
        tensors: one tensor of each model, of one shape.
        weights: shares that sum to one, none negative; uniform where not given.

    Raises:
        InputError: no tensors, other shapes, or weights that are no shares.

    Examples:
        >>> a, b = torch.tensor([1.0, -1.0]), torch.tensor([1.0, -3.0])
        >>> found = spread([a, b])
        >>> found.independent, found.explained, found.variance
        (1.25, 2.25, 2.25)
    """
    shares = [1 / max(len(tensors), 1)] * len(tensors) if weights is None else [float(w) for w in weights]
    if not tensors or len({tuple(t.shape) for t in tensors}) > 1:
        raise InputError("tensors of one shape are needed, one per model")
    if len(shares) != len(tensors) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"the shares {shares} are not {len(tensors)} that sum to one")
    rows = torch.stack([t.detach().double().flatten() for t in tensors])
    share = torch.tensor(shares, dtype=torch.float64, device=rows.device)
    mean = share @ rows
    centred = rows - rows.mean(1, keepdim=True)
    covariance = centred @ centred.T / rows.shape[1]
    own = covariance.diagonal()
    largest = rows.abs().amax(1)
    return Spread(
        largest=mean.abs().max().item(),
        largest_mean=(share @ largest).item(),
        largest_each=largest.max().item(),
        variance=mean.var(correction=0).item(),
        independent=(share.square() @ own).item(),
        explained=(share @ covariance @ share).item(),
        variance_each=own.max().item(),
    )


@dataclass(frozen=True)
class OutputBound:
    """Natural logarithms of bounds on |outputs| / |input| of a network without biases.

    Attributes:
        property_1: (L lam)^M, which holds with the probability below.
        probability: (1 - 2 exp(-tau^2))^M.
        spectral: L^M times the product of the operators' norms (for convolutions: an upper bound of them), always.
    """

    property_1: float
    probability: float
    spectral: float


def output_bound(
    layers: Sequence[Tensor], *, lipschitz: float = 1.0, tau: float = 2.0, constant: float = 1.0
) -> OutputBound:
    """Property 1 of the paper beside the bound that needs no assumption.

    lam = sqrt(N) + C K^2 (sqrt(N) + tau), with N the largest width and K the largest norm of a row.

    Args:
        layers: the weights, (out, in) or (out, in, *kernel), from input to output.
        lipschitz: L, of the activation.
        tau: sets the probability.
        constant: C, which the paper's source leaves unspecified.

    Raises:
        InputError: no layers, or one that is no matrix.

    Examples:
        >>> bound = output_bound([torch.eye(3), 2 * torch.eye(3)])
        >>> round(bound.spectral, 6)  # log 2
        0.693147
    """
    if not layers or any(layer.ndim < 2 for layer in layers):
        raise InputError("layers are matrices, or convolutions (out, in, *kernel)")
    maps = [layer.detach().double().flatten(1) for layer in layers]
    width = max(max(m.shape) for m in maps)
    rows = max(m.norm(dim=1).max().item() for m in maps)
    lam = math.sqrt(width) + constant * rows**2 * (math.sqrt(width) + tau)
    count = len(maps)
    spectral = count * math.log(lipschitz)
    for layer, matrix in zip(layers, maps, strict=True):
        # Each pixel is seen by at most as many patches as the kernel has places.
        places = math.prod(layer.shape[2:])
        norm = torch.linalg.matrix_norm(matrix, 2).item()
        spectral += math.log(norm) + math.log(places) / 2 if norm > 0 else -math.inf
    return OutputBound(
        property_1=count * math.log(lipschitz * lam),
        probability=(1 - 2 * math.exp(-(tau**2))) ** count if tau**2 > math.log(2) else 0.0,
        spectral=spectral,
    )


@dataclass(frozen=True)
class VarianceBound:
    """Natural logarithms of the terms of theorem 1, and of their sum.

    Attributes:
        input: |x|^2 prod L^2 N sw_m^2.
        last: L^2 N sb_M^2, the last layer's biases.
        biases: the other layers' biases, each amplified by what follows it.
        total: of all three.
    """

    input: float
    last: float
    biases: float

    @property
    def total(self) -> float:
        return _sum([self.input, self.last, self.biases])


def variance_bound(
    layers: Sequence[tuple[float, float]],
    widths: Sequence[int],
    length: float,
    *,
    lipschitz: float = 1.0,
    own_widths: bool = False,
) -> VarianceBound:
    """Theorem 1: how much outputs vary, summed over them, where weights are drawn independently around zero.

    Args:
        layers: standard deviations of each layer's weights and biases.
        widths: outputs of each layer.
        length: |x|, of the input.
        lipschitz: L, of the activation, which is zero at zero.
        own_widths: each layer's own width in the place of the largest one, N: tighter.

    Raises:
        InputError: another number of widths than layers, or none.

    Examples:
        >>> bound = variance_bound([(0.1, 0.0), (0.1, 0.0)], [100, 10], 1.0, own_widths=True)
        >>> round(bound.total, 6)  # 100 * 0.01 * 10 * 0.01
        -2.302585
    """
    if not layers or len(widths) != len(layers):
        raise InputError(f"{len(widths)} widths for {len(layers)} layers")
    outs = list(widths) if own_widths else [max(widths)] * len(widths)
    gains = [
        2 * (_log(lipschitz) + _log(sw)) + _log(float(n)) for (sw, _), n in zip(layers, outs, strict=True)
    ]
    noise = [
        2 * (_log(lipschitz) + _log(sb)) + _log(float(n)) for (_, sb), n in zip(layers, outs, strict=True)
    ]
    behind = [sum(gains[m + 1 :]) for m in range(len(layers))]
    return VarianceBound(
        input=2 * _log(length) + sum(gains),
        last=noise[-1],
        biases=_sum([n + b for n, b in zip(noise[:-1], behind[:-1], strict=True)]),
    )


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _sum(logs: Sequence[float]) -> float:
    """The logarithm of a sum, from logarithms."""
    terms: Float[Tensor, " n"] = torch.tensor(list(logs), dtype=torch.float64)
    return terms.logsumexp(0).item() if len(logs) else -math.inf
