"""What is tried: source:name -> (model, example), each at the smallest input that the architecture takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface
import imports
import own
import torch
from torch import Tensor, nn

Built = tuple[nn.Module, object]

#: Above this many parameters (14 GB while it is verified) a model is traced on the meta device, and verified by a
#: stand-in if `STAND_INS` has one.
LARGEST = 650_000_000

#: Narrower models of the same structure, for those that are too large to be run.
STAND_INS: dict[str, Callable[[], Built]] = {"own:unet-sdxl": own.unet_sdxl_narrow}

#: Image sizes to try, smallest first.
SIZES = (64, 96, 128, 224, 256, 320)

#: torchvision's segmentation models, and the backbones (with feature pyramid) of its detection models. The
#: detectors themselves choose boxes by value, which no exported graph can hold.
_SEGMENTATION = (
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_resnet50",
    "fcn_resnet101",
    "lraspp_mobilenet_v3_large",
)
_DETECTION = (
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)
_VIDEO = ("mc3_18", "r2plus1d_18", "r3d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t")


def names(source: str) -> list[str]:
    """All names of a source."""
    imports.prepare()
    if source == "own":
        return list(own.BUILDERS)
    if source == "hf":
        return list(huggingface.BUILDERS)
    if source == "torchvision":
        from torchvision import models

        plain = models.list_models(module=models)
        return [*plain, *_SEGMENTATION, *_DETECTION, *_VIDEO]
    lines = (Path(__file__).parent / "timm.txt").read_text().splitlines()
    return [line.split()[0] for line in lines]


SOURCES = ("own", "hf", "torchvision", "timm")


def candidates(full: str) -> Iterator[tuple[str, Callable[[], Built]]]:
    """Ways to build an architecture, cheapest first; the first that runs is taken: (input, build)."""
    source, _, name = full.partition(":")
    imports.prepare()
    if source == "own":
        yield "", own.BUILDERS[name]
    elif source == "hf":
        yield "", huggingface.BUILDERS[name]
    elif source == "torchvision":
        yield from _torchvision(name)
    else:
        yield from _timm(name)


def _images(size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def _place(make: Callable[[], nn.Module]) -> torch.device:
    total = sum(p.numel() for p in _made(make, torch.device("meta")).parameters())
    return torch.device("meta" if total > LARGEST else "cpu")


def _made(make: Callable[[], nn.Module], place: torch.device) -> nn.Module:
    """A model on a device; one whose constructor reads its own numbers is moved there."""
    try:
        with place:
            return make()
    except NotImplementedError:
        return make().to(place)


def _torchvision(name: str) -> Iterator[tuple[str, Callable[[], Built]]]:
    from torchvision import models

    def make(**options: object) -> nn.Module:
        empty = {"weights": None}
        if name in _SEGMENTATION or name in _DETECTION:
            empty["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            options.setdefault("init_weights", False)
        return models.get_model(name, **empty, **options)

    place = _place(make)
    if name in _VIDEO:
        size, frames = (224, 16) if "mvit" in name else (64, 16 if name == "s3d" else 8)
        size = 224 if name == "s3d" else size
        video = torch.randn(2 if size == 64 else 1, 3, frames, size, size)
        yield f"{frames} frames of {size}", lambda: (make(), video)
        return
    if name in _DETECTION:
        yield "64", lambda: (make().backbone, _images(64 if "ssd300" not in name else 300))
        return
    if name.startswith("vit"):
        size = 64 if "14" not in name else 56
        sizes = [(size, {"image_size": size})]
    elif name == "maxvit_t":
        sizes = [(224, {})]  # windows of 7 in every stage
    else:
        sizes = [(size, {}) for size in SIZES]
    for size, options in sizes:

        def build(size: int = size, options: dict[str, object] = options) -> Built:
            return _made(lambda: make(**options), place), _images(size).to(place)

        yield str(size), build


def _timm(name: str) -> Iterator[tuple[str, Callable[[], Built]]]:
    import timm

    place = _place(lambda: timm.create_model(name))
    config = timm.get_pretrained_cfg(name)
    channels, default, _ = config.input_size if config is not None else (3, 224, 224)
    fixed = config is not None and config.fixed_input_size
    sizes: list[tuple[int, dict[str, object]]] = []
    for size in sorted({*(s for s in SIZES if s < default), default}):
        if fixed and size < default:
            sizes.append((size, {"img_size": size}))
        else:
            sizes.append((size, {}))
    for size, options in sizes:

        def build(size: int = size, options: dict[str, object] = options) -> Built:
            return _made(lambda: timm.create_model(name, **options), place), _images(size, channels).to(place)

        yield str(size), build
