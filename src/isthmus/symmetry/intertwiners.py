"""What elementwise functions let through: the intertwiner table.

A function f applied to each unit lets a matrix A through if f(A x) = B f(x) for some matrix B and every x.
The matrices that it lets through are a group; every group here holds the permutations. Two facts decide
the rest: whether f(d x) = d^k f(x) for positive d (f is *homogeneous* of degree k), and whether
f(-x) = -f(x) (*odd*) or f(-x) = f(x) (*even*).

Source: Godfrey et al., On the symmetries of deep learning models, arXiv:2205.14258, table 1 (also table 8 of
the survey); extended here by the functions that networks are trained with today.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Intertwiner:
    """How an elementwise function answers to scaled and to negated inputs.

    Attributes:
        degree: k where f(d x) = d^k f(x) for every d > 0; None where there is no such k.
        parity: "odd", "even", or None.
        linear: whether f(x) = c x, so that any matrix passes.
    """

    degree: Fraction | None = None
    parity: Literal["odd", "even"] | None = None
    linear: bool = False

    @property
    def group(self) -> str:
        """The matrices let through, by the names that spaces use."""
        if self.linear:
            return "invertible"
        scaled = self.degree is not None
        signed = self.parity is not None
        if scaled and signed:
            return "signed permutation x positive"
        return "permutation x positive" if scaled else "signed permutation" if signed else "permutation"

    def image(self, matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        """The matrix B with f(A x) = B f(x), for a matrix A of the group.

        For a permutation times a diagonal: each entry to the power of the degree, its sign kept
        where the function is odd.
        """
        if self.linear:
            return matrix
        degree = float(self.degree or 0)
        # Where nothing was, nothing is: zero to a negative power would be infinite.
        size = torch.where(matrix != 0, matrix.abs() ** degree, 0.0).to(matrix.dtype)
        return size * torch.where(matrix < 0, -1.0, 1.0) if self.parity == "odd" else size


def _homogeneous(degree: int | Fraction, parity: Literal["odd", "even"] | None = None) -> Intertwiner:
    return Intertwiner(Fraction(degree), parity)


_LINEAR = Intertwiner(Fraction(1), "odd", linear=True)
_RELU = _homogeneous(1)
_ODD = Intertwiner(parity="odd")
_EVEN = Intertwiner(parity="even")
_NONE = Intertwiner()

#: Name of an elementwise function -> what it lets through. A name that is not here lets only permutations
#: through, as those with an empty row do; `pow`, `clamp` and `hardtanh` depend on their arguments.
INTERTWINERS: dict[str, Intertwiner] = {
    "identity": _LINEAR,
    "neg": _LINEAR,
    "relu": _RELU,
    "leaky_relu": _RELU,
    "prelu": _RELU,
    "rrelu": _RELU,
    "abs": _homogeneous(1, "even"),
    "square": _homogeneous(2, "even"),
    "sqrt": _homogeneous(Fraction(1, 2)),
    "rsqrt": _homogeneous(Fraction(-1, 2)),
    "reciprocal": _homogeneous(-1, "odd"),
    "sign": _homogeneous(0, "odd"),
    "sgn": _homogeneous(0, "odd"),
    "tanh": _ODD,
    "sin": _ODD,
    "tan": _ODD,
    "asin": _ODD,
    "atan": _ODD,
    "sinh": _ODD,
    "asinh": _ODD,
    "atanh": _ODD,
    "erf": _ODD,
    "erfinv": _ODD,
    "softsign": _ODD,
    "softshrink": _ODD,
    "hardshrink": _ODD,
    "tanhshrink": _ODD,
    "cos": _EVEN,
    "cosh": _EVEN,
    "rbf": _EVEN,
    "sigmoid": _NONE,
    "softplus": _NONE,
    "gelu": _NONE,
    "silu": _NONE,
    "mish": _NONE,
    "elu": _NONE,
    "selu": _NONE,
    "celu": _NONE,
    "hardswish": _NONE,
    "hardsigmoid": _NONE,
    "relu6": _NONE,
    "exp": _NONE,
    "log": _NONE,
}


def power(exponent: float) -> Intertwiner:
    """The row of x^k: homogeneous of degree k, and odd or even as a whole k is.

    Args:
        exponent: k; nothing is said of one that is no fraction of small numbers.
    """
    degree = Fraction(exponent).limit_denominator(64) if math.isfinite(exponent) else Fraction(0)
    if float(degree) != exponent:
        return _NONE
    if exponent == 1:
        return _LINEAR
    if degree.denominator != 1:
        return Intertwiner(degree)
    return Intertwiner(degree, "even" if degree.numerator % 2 == 0 else "odd")


def clipped(low: float | None, high: float | None) -> Intertwiner:
    """The row of a function that cuts off below and above: clamp, hardtanh."""
    if low is None and high is None:
        return _LINEAR
    if {low, high} == {0, None}:
        return _RELU
    return _ODD if low is not None and high is not None and low == -high < 0 else _NONE
