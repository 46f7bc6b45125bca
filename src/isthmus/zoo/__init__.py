"""The papers' architectures and data sets, small and exact.

An architecture is a factory that takes keyword arguments: `zoo.vgg16(base=16, norm="bn")`, by name
`zoo.build("vgg16", base=16, norm="bn")`, on the command line `--arch isthmus.zoo:vgg16 base=16 norm=bn`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from isthmus.errors import InputError

from .data import Augment, Dataset, Loader, cifar10, digits, fashion_mnist, npz, open_data, save_npz
from .initial import init
from .nets.gpt import GPT
from .nets.llama import Llama
from .nets.mlp import MLP, LinearNetwork
from .nets.mobilenet import MobileNet
from .nets.resnet import ResNet, resnet20
from .nets.vgg import VGG, demo_vgg, vgg11, vgg16
from .nets.vit import ViT
from .training import DEMO_RECIPE, Epoch, TrainingResult, strangers, train

vgg, resnet, mlp, linear_network, mobilenet, vit = VGG, ResNet, MLP, LinearNetwork, MobileNet, ViT
gpt, llama = GPT, Llama

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "vgg": vgg,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "demo_vgg": demo_vgg,
    "resnet": resnet,
    "resnet20": resnet20,
    "mobilenet": mobilenet,
    "mlp": mlp,
    "linear_network": linear_network,
    "vit": vit,
    "gpt": gpt,
    "llama": llama,
}


def build(name: str, **params: Any) -> nn.Module:  # each architecture names and checks its own
    """An architecture of the zoo by its name.

    Args:
        name: a key of `ARCHITECTURES`.
        params: keyword arguments of that factory.

    Raises:
        InputError: an unknown name, unknown parameters (all of them), or values that do not build.
    """
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"unknown architecture {name!r}",
            hint=f"{guess}the zoo has {', '.join(ARCHITECTURES)}",
        )
    factory = ARCHITECTURES[name]
    known = list(inspect.signature(factory).parameters)
    unknown = [key for key in params if key not in known]
    if unknown:
        raise InputError(f"{name} has no such parameters", where=unknown, hint=f"it takes {', '.join(known)}")
    try:
        return factory(**params)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in params.items())
        raise InputError(f"{name}({given}) cannot be built: {error}") from error


__all__ = [
    "ARCHITECTURES",
    "DEMO_RECIPE",
    "GPT",
    "MLP",
    "VGG",
    "Augment",
    "Dataset",
    "Epoch",
    "LinearNetwork",
    "Llama",
    "Loader",
    "MobileNet",
    "ResNet",
    "TrainingResult",
    "ViT",
    "build",
    "cifar10",
    "demo_vgg",
    "digits",
    "fashion_mnist",
    "gpt",
    "init",
    "linear_network",
    "llama",
    "mlp",
    "mobilenet",
    "npz",
    "open_data",
    "resnet",
    "resnet20",
    "save_npz",
    "strangers",
    "train",
    "vgg",
    "vgg11",
    "vgg16",
    "vit",
]
