"""Weights as pictures: what a linear classifier looks for, and how like its class's mean image that is.

Source: "Rethinking weight-averaged model-merging" (arXiv:2411.09263), section 3 and 6.1. The paper shows pictures; the
    cosine is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from isthmus.errors import DataError
from isthmus.program import batches


@dataclass(frozen=True)
class ClassMeans:
    """Mean images.

    Attributes:
        each: of every class, (classes, C, H, W).
        all: of all images, (C, H, W).
        counts: images of every class.
    """

    each: Float[Tensor, "classes c h w"]
    all: Float[Tensor, "c h w"]
    counts: tuple[int, ...]


def class_means(data: Iterable[object]) -> ClassMeans:
    """The mean image of every class, in float64.

    Args:
        data: yields (images, class numbers).

    Raises:
        DataError: no images, no class numbers, or a class without an image.

    Examples:
        >>> x, y = torch.tensor([0.0, 2.0, 5.0]).view(3, 1, 1, 1), torch.tensor([0, 0, 1])
        >>> class_means([(x, y)]).each.flatten().tolist()
        [1.0, 5.0]
    """
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}
    for batch in batches(data):
        images = batch.args[0] if batch.args else None
        if not isinstance(images, Tensor) or batch.targets is None or images.ndim != 4:
            raise DataError("mean images need batches of (images, class numbers)")
        for name in batch.targets.unique().tolist():
            own = images[batch.targets == name].double()
            sums[name] = sums.get(name, torch.zeros_like(own[0])) + own.sum(0)
            counts[name] = counts.get(name, 0) + len(own)
    if missing := [name for name in range(max(counts) + 1) if name not in counts]:
        raise DataError("some classes have no image", [f"class {name}" for name in missing])
    order = range(len(counts))
    each = torch.stack([sums[name] / counts[name] for name in order])
    whole = torch.stack([sums[name] for name in order]).sum(0) / sum(counts.values())
    return ClassMeans(each, whole, tuple(counts[name] for name in order))


def template_cosines(
    weight: Float[Tensor, "classes pixels"], means: ClassMeans
) -> Float[Tensor, "classes classes"]:
    """The cosine of each class's template with each class's mean image, less the mean of all images.

    The diagonal says how much a template looks like its own class. What all classes share decides nothing, so it
    is taken off both: of the templates their mean, of the images that of all.

    Args:
        weight: of a linear classifier of flattened images.
        means: of the same images.
    """
    templates = weight.detach().double().to(means.all.device)
    templates = templates - templates.mean(0)
    images = (means.each - means.all).flatten(1)
    lengths = torch.outer(templates.norm(dim=1), images.norm(dim=1))
    return torch.where(lengths > 0, templates @ images.T / lengths.clamp_min(1e-300), 0.0)


def as_pictures(images: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n h w c"]:
    """Each image stretched from its own least to its own largest value, over all channels together.

    Args:
        images: templates, mean images or a first layer's kernels.

    Examples:
        >>> as_pictures(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)).flatten().tolist()
        [0, 255]
    """
    flat = images.detach().double().flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    scale = torch.where(high > low, high - low, 1.0).view(-1, 1, 1, 1)
    stretched = (images.double() - low.view(-1, 1, 1, 1)) / scale
    return (stretched * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
