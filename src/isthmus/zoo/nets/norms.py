"""The normalisations that the zoo's convolutional networks choose between by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from isthmus.errors import InputError

NORMS = ("none", "bn", "ln")


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels, at each position of a feature map on its own.

    Args:
        channels: size of the normalised axis.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        last = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return last.permute(0, 3, 1, 2)


def checked(norm: str | None) -> str:
    """The norm's name, with None read as "none"; any other name is an error."""
    name = "none" if norm is None else norm
    if name not in NORMS:
        raise InputError(f"unknown normalisation {norm!r}", hint=f"norm is one of {', '.join(NORMS)}")
    return name


def normalisation(norm: str, channels: int) -> nn.Module:
    """A fresh normalisation of `channels` channels: batch norm, layer norm or nothing."""
    if norm == "bn":
        return nn.BatchNorm2d(channels)
    return LayerNorm2d(channels) if norm == "ln" else nn.Identity()


def conv(c_in: int, c_out: int, kernel: int, stride: int, norm: str) -> nn.Conv2d:
    """A "same" convolution; it has a bias unless a batch norm, which would cancel it, comes next."""
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=norm != "bn")
