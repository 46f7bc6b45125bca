"""VGG for small images: 3x3 convolutions, max pools, one mean pool, one linear classifier."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from isthmus.errors import InputError

from .norms import checked, conv, normalisation

# Channels of each convolution as a multiple of `base`; "M" halves the image.
# vgg11 and vgg16 are columns A and D of the source's table 1 without the last pool; demo is for 8x8 images.
PLANS: dict[str, tuple[int | str, ...]] = {
    "vgg11": (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8),
    "vgg16": (1, 1, "M", 2, 2, "M", 4, 4, 4, "M", 8, 8, 8, "M", 8, 8, 8),
    "demo": (1, 1, 1, "M", 2, 2, 2, "M", 4, 4, 4),
}


class VGG(nn.Module):
    """`features` (convolution, norm, ReLU, with max pools between), mean over space, `classifier`.

    Args:
        plan: a name in `PLANS`, or a sequence of channel multipliers and "M".
        base: channels of multiplier 1; the published networks have 64.
        norm: "none" (None), "bn" or "ln", after every convolution.
        in_channels: channels of the image.
        num_classes: number of logits.

    Raises:
        InputError: an unknown plan or norm.

    Source: Simonyan and Zisserman 2015, table 1. One linear layer stands for their three, as is usual on
        CIFAR; the last max pool and this mean are one mean over what is left of the image (2x2 from 32x32).
    """

    def __init__(
        self,
        plan: str | Sequence[int | float | str] = "vgg16",
        base: int = 64,
        norm: str | None = None,
        in_channels: int = 3,
        num_classes: int = 10,
    ):
        super().__init__()
        norm = checked(norm)
        layers: list[nn.Module] = []
        channels = in_channels
        for item in steps(plan):
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(2))
                continue
            width = int(item * base)
            layers.append(conv(channels, width, 3, 1, norm))
            if norm != "none":
                layers.append(normalisation(norm, width))
            layers.append(nn.ReLU())
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.features(x).mean((2, 3)))


def steps(plan: str | Sequence[int | float | str]) -> Sequence[int | float | str]:
    """The plan's items, checked: positive multipliers and "M", at least one multiplier."""
    if isinstance(plan, str):
        if plan not in PLANS:
            raise InputError(
                f"unknown VGG plan {plan!r}", hint=f"plans are {', '.join(PLANS)}, or give a sequence"
            )
        return PLANS[plan]
    bad = [item for item in plan if item != "M" and (isinstance(item, str) or item <= 0)]
    if bad or all(isinstance(item, str) for item in plan):
        raise InputError(
            "a VGG plan is a sequence of positive channel multipliers and 'M'",
            where=[f"{item!r}" for item in bad] or ["there is no convolution in it"],
        )
    return plan


def vgg11(base: int = 64, norm: str | None = None, in_channels: int = 3, num_classes: int = 10) -> VGG:
    """VGG11: eight convolutions and a classifier; see `VGG`."""
    return VGG("vgg11", base, norm, in_channels, num_classes)


def vgg16(base: int = 64, norm: str | None = None, in_channels: int = 3, num_classes: int = 10) -> VGG:
    """VGG16: thirteen convolutions and a classifier; see `VGG`."""
    return VGG("vgg16", base, norm, in_channels, num_classes)


def demo_vgg(base: int = 16, norm: str | None = None, in_channels: int = 1, num_classes: int = 10) -> VGG:
    """A VGG for 8x8 images that trains in seconds, deep enough that direct averaging fails; see `VGG`."""
    return VGG("demo", base, norm, in_channels, num_classes)
