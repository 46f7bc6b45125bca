"""Narrow networks of the paper's families for 16 x 16 images: a trunk that makes features, and one linear head.

VGG has the paper's three linear layers with dropout between; its names count convolutions and linear layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from isthmus import zoo

VGG_PLANS = {
    11: (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8),
    16: (1, 1, "M", 2, 2, "M", 4, 4, 4, "M", 8, 8, 8, "M", 8, 8, 8),
    19: (1, 1, "M", 2, 2, "M", 4, 4, 4, 4, "M", 8, 8, 8, 8, "M", 8, 8, 8, 8),
}
#: The paper's layers of 4096 units drop half of them; ours of 128 cannot spare as many.
DROPOUT = 0.2
#: Networks that read characters, and those that Adam trains.
TEXT = ("text",)
ADAM = ("vit", *TEXT)
DENSE_PLANS = {"densenet7": (1, 1, 1), "densenet13": (2, 2, 2)}


class Narrow(nn.Module):
    """`trunk` (images to features), `head` (features to logits). `features` is what ensembles of features average."""

    def __init__(self, trunk: nn.Module, width: int, outputs: int):
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, outputs)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


def _vgg(depth: int, base: int, norm: bool) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = []
    channels = 3
    for item in VGG_PLANS[depth]:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2))
            continue
        width = item * base
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width), nn.ReLU()] if norm else [nn.ReLU()]
        channels = width
    hidden = 16 * base
    for _ in range(2):
        layers += [nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Dropout(DROPOUT)]
        channels = hidden
    return nn.Sequential(*layers), hidden


class DenseLayer(nn.Module):
    """Norm, ReLU, a bottleneck, norm, ReLU, a 3x3 convolution; its channels are put beside its input's."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = (
            nn.BatchNorm2d(4 * growth),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


def _dense(plan: tuple[int, ...], growth: int) -> tuple[nn.Module, int]:
    channels = 2 * growth
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    for index, count in enumerate(plan):
        for _ in range(count):
            layers.append(DenseLayer(channels, growth))
            channels += growth
        if index < len(plan) - 1:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            channels //= 2
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers), channels


class Characters(nn.Module):
    """Three convolutions over characters, the largest answer of each unit anywhere in the passage, a linear layer."""

    def __init__(self, base: int):
        super().__init__()
        self.embedding = nn.Embedding(64, 2 * base)
        self.conv1 = nn.Conv1d(2 * base, 8 * base, 5, padding=2)
        self.conv2 = nn.Conv1d(8 * base, 12 * base, 5, padding=2)
        self.conv3 = nn.Conv1d(12 * base, 12 * base, 3, padding=1)
        self.hidden = nn.Linear(12 * base, 12 * base)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.conv1(self.embedding(x).transpose(1, 2))), 2)
        x = F.max_pool1d(F.relu(self.conv2(x)), 2)
        return F.relu(self.hidden(F.relu(self.conv3(x)).amax(2)))


def build(name: str, outputs: int, base: int) -> Narrow:
    """A network by its name: vgg19, vgg19_bn, resnet8, densenet13, vit, text, ... with a head of its own.

    Args:
        name: see `names`.
        outputs: of the head.
        base: channels of the first layer.
    """
    if name.startswith("vgg"):
        trunk, width = _vgg(int(name.removesuffix("_bn")[3:]), base, name.endswith("_bn"))
    elif name.startswith("resnet"):
        net = zoo.resnet(depth=int(name[6:]), base=base)
        width, net.classifier = net.classifier.in_features, nn.Identity()  # type: ignore[assignment]
        trunk = net
    elif name.startswith("densenet"):
        trunk, width = _dense(DENSE_PLANS[name], base)
    elif name in TEXT:
        trunk, width = Characters(base), 12 * base
    else:
        net = zoo.vit(image=16, patch=4, dim=6 * base, depth=4, heads=3, mlp_ratio=2)
        width, net.classifier = net.classifier.in_features, nn.Identity()  # type: ignore[assignment]
        trunk = net
    return Narrow(trunk, width, outputs)


def names() -> tuple[str, ...]:
    """Every network of images, those whose rows matter most first."""
    return (*(f"vgg{d}{n}" for d in (19, 11, 16) for n in ("", "_bn")), "vit", "densenet7", "resnet8", "resnet20",
            "densenet13")  # fmt: skip


def drawn(name: str, outputs: int, base: int, seed: int) -> Narrow:
    """A network with fresh weights; in a VGG, each layer then keeps the length of what it reads.

    The usual weights of linear layers shrink what passes by more than half.
    """
    net = zoo.init(build(name, outputs, base), seed)
    if name.startswith("vgg"):
        generator = torch.Generator().manual_seed(seed)
        for module in net.trunk.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
    return net


def plain(name: str) -> bool:
    """Whether it is a VGG without batch norms."""
    return name.startswith("vgg") and not name.endswith("_bn")


def folded(net: Narrow, name: str, outputs: int, base: int) -> Narrow:
    """A VGG with its batch norms folded into the convolutions before them: the same function without norms."""
    layers: list[nn.Module] = []
    for module in net.eval().trunk.children():
        if isinstance(module, nn.BatchNorm2d):
            before = layers.pop()
            assert isinstance(before, nn.Conv2d)
            module = fuse_conv_bn_eval(before, module)
        layers.append(module)
    made = build(name, outputs, base)
    made.trunk.load_state_dict(nn.Sequential(*layers).state_dict())
    made.head.load_state_dict(net.head.state_dict())
    return made.eval()
