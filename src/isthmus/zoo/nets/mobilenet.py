"""MobileNet v1, small: depthwise separable convolutions, whose depthwise half ties a channel to itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from isthmus.errors import InputError


class DepthwiseBlock(nn.Module):
    """Depthwise 3x3, norm, ReLU, pointwise 1x1, norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.dw = nn.Conv2d(c_in, c_in, 3, stride, padding=1, groups=c_in, bias=False)
        self.norm1 = nn.BatchNorm2d(c_in)
        self.pw = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        x = F.relu(self.norm1(self.dw(x)))
        return F.relu(self.norm2(self.pw(x)))


class MobileNet(nn.Module):
    """`stem`, depthwise separable `blocks`, mean over space, `classifier`; batch norm throughout.

    Args:
        widths: output channels of each block; the stem has those of the first.
        strides: stride of each block.
        in_channels: channels of the image.
        num_classes: number of logits.

    Raises:
        InputError: widths and strides of different lengths.

    Source: Howard et al. 2017, table 1, shortened and with fewer strides, for 32x32 images.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 64, 128, 128, 256, 256),
        strides: Sequence[int] = (1, 2, 1, 2, 1, 2, 1),
        in_channels: int = 3,
        num_classes: int = 10,
    ):
        super().__init__()
        if not widths or len(widths) != len(strides):
            raise InputError(f"one stride per block is needed: {len(widths)} widths, {len(strides)} strides")
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        inputs = (widths[0], *widths[:-1])
        self.blocks = nn.Sequential(*map(DepthwiseBlock, inputs, widths, strides))
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        x = self.blocks(F.relu(self.stem_norm(self.stem(x))))
        return self.classifier(x.mean((2, 3)))
