"""The residual networks made for CIFAR: three stages of basic blocks, 6n+2 layers deep."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from isthmus.errors import InputError

from .norms import checked, conv, normalisation

SHORTCUTS = ("conv1x1", "conv3x3", "pad")


class PadShortcut(nn.Module):
    """A shortcut without parameters: every `stride`-th pixel, zero channels added in front and behind."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.front = (c_out - c_in) // 2
        self.behind = c_out - c_in - self.front

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        kept = x[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, self.front, self.behind))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is the identity wherever shapes allow."""

    def __init__(self, c_in: int, c_out: int, stride: int, norm: str, shortcut: str):
        super().__init__()
        self.conv1 = conv(c_in, c_out, 3, stride, norm)
        self.norm1 = normalisation(norm, c_out)
        self.conv2 = conv(c_out, c_out, 3, 1, norm)
        self.norm2 = normalisation(norm, c_out)
        if stride == 1 and c_in == c_out:
            self.shortcut: nn.Module = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = PadShortcut(c_in, c_out, stride)
        else:
            kernel = 3 if shortcut == "conv3x3" else 1
            self.shortcut = nn.Sequential(conv(c_in, c_out, kernel, stride, norm), normalisation(norm, c_out))

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """`stem`, `layer1` to `layer3` of n blocks each (the last two halve the image), mean, `classifier`.

    Args:
        depth: 6n + 2 layers: 8, 14, 20, 32, 44, 56, 110.
        base: channels of the first stage; the next two have twice and four times as many.
        norm: "bn", "ln" or "none" (None).
        shortcut: between stages: "conv1x1", "conv3x3" (each followed by a norm), or "pad" (no parameters).
        in_channels: channels of the image.
        num_classes: number of logits.

    Raises:
        InputError: a depth that is not 6n + 2, an unknown norm or shortcut.

    Source: He et al. 2016, section 4.2. "pad" is their option A, with half of the zeros on each side as
        in the implementations in use; "conv1x1" is option B; "conv3x3" is what the code of Git Re-Basin has.
    """

    def __init__(
        self,
        depth: int = 20,
        base: int = 16,
        norm: str | None = "bn",
        shortcut: str = "conv1x1",
        in_channels: int = 3,
        num_classes: int = 10,
    ):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InputError(
                f"a CIFAR ResNet has 6n + 2 layers, not {depth}", hint="depth is 8, 14, 20, 26, 32, ..."
            )
        if shortcut not in SHORTCUTS:
            raise InputError(
                f"unknown shortcut {shortcut!r}", hint=f"shortcut is one of {', '.join(SHORTCUTS)}"
            )
        norm = checked(norm)
        blocks = (depth - 2) // 6
        self.stem = conv(in_channels, base, 3, 1, norm)
        self.stem_norm = normalisation(norm, base)

        def stage(c_in: int, c_out: int, stride: int) -> nn.Sequential:
            first = BasicBlock(c_in, c_out, stride, norm, shortcut)
            return nn.Sequential(
                first, *(BasicBlock(c_out, c_out, 1, norm, shortcut) for _ in range(blocks - 1))
            )

        self.layer1 = stage(base, base, 1)
        self.layer2 = stage(base, 2 * base, 2)
        self.layer3 = stage(2 * base, 4 * base, 2)
        self.classifier = nn.Linear(4 * base, num_classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.classifier(x.mean((2, 3)))


def resnet20(
    base: int = 16,
    norm: str | None = "bn",
    shortcut: str = "conv1x1",
    in_channels: int = 3,
    num_classes: int = 10,
) -> ResNet:
    """The 20-layer network; see `ResNet`."""
    return ResNet(20, base, norm, shortcut, in_channels, num_classes)
