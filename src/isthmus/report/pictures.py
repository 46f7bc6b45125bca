"""First-layer weights as pictures: the same units of several models side by side."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from isthmus.report.results import Panel, Pictures

if TYPE_CHECKING:  # this room imports no torch before it is needed
    from torch import Tensor

    from isthmus.measure import ClassMeans, FirstLayer
    from isthmus.program import Program

#: Units that are shown: a page is looked at, not searched.
SHOWN = 16
#: Larger pictures (pixels times channels) are left out: noise of that size does not compress.
_MOST = 3 * 64 * 64

_TITLES = {
    "kernels": "First-layer kernels",
    "templates": "Templates of a linear classifier",
    "units": "First-layer units",
}
_READ = (
    "each picture is one unit’s weights, stretched from its own least to its own largest value; a column is "
    "the same unit in every model, and the number the mean cosine of all units with the first row’s."
)


def panels(
    program: Program, models: Mapping[str, Mapping[str, Tensor]], labelled: Iterable[object]
) -> list[Panel]:
    """What there is to see of models of one program: their first layer, if it reads images.

    Args:
        program: the architecture.
        models: name of the row -> weights; a model whose first layer is that of one before is left out.
        labelled: (images, class numbers), for the mean images of classes.
    """
    import torch

    from isthmus.measure import class_means, first_layer

    layer = first_layer(program)
    if layer is None:
        return []
    rows: dict[str, Mapping[str, Tensor]] = {}
    for name, weights in models.items():
        if not any(torch.equal(weights[layer.key], known[layer.key]) for known in rows.values()):
            rows[name] = weights
    means = class_means(labelled) if layer.kind == "templates" else None
    found = panel(layer, rows, means)
    return [] if found is None else [found]


def panel(
    layer: FirstLayer, models: Mapping[str, Mapping[str, Tensor]], means: ClassMeans | None = None
) -> Panel | None:
    """Units of a first layer, a row of pictures for each model.

    Args:
        layer: which weight, and what its units read.
        models: name of the row -> weights.
        means: of the classes, shown above the templates of a linear classifier and compared with them.

    Returns:
        None where the pictures would be too large for a page.
    """
    import torch.nn.functional as F

    from isthmus.measure import as_pictures, template_cosines

    channels, height, width = layer.shape
    if channels * height * width > _MOST:
        return None
    units = {name: layer.of(weights) for name, weights in models.items()}
    first = next(iter(units.values()))
    rows: list[Pictures] = []
    if means is not None:
        rows.append(_row("mean images", as_pictures(means.each[:SHOWN]).tolist(), None))
    for name, own in units.items():
        if means is not None:
            cosine = template_cosines(own.flatten(1), means).diagonal().mean().item()
        else:
            cosine = F.cosine_similarity(own.double().flatten(1), first.double().flatten(1)).mean().item()
        rows.append(_row(name, as_pictures(own[:SHOWN]).tolist(), cosine))
    read = _READ
    if means is not None:
        read = read.replace(
            "all units with the first row’s", "templates with the mean images of their classes"
        )
    count = len(first)
    return Panel(
        name=f"{_TITLES[layer.kind]}: {layer.key}",
        width=width,
        height=height,
        rows=rows,
        read=read,
        note=f"{min(count, SHOWN)} of {count} units" if count > SHOWN else "",
    )


def _row(name: str, images: Sequence[Sequence[Sequence[Sequence[int]]]], cosine: float | None) -> Pictures:
    return Pictures(
        name=name, images=[base64.b64encode(png(image)).decode() for image in images], cosine=cosine
    )


def png(image: Sequence[Sequence[Sequence[int]]]) -> bytes:
    """A picture of bytes, (height, width, 1 or 3), as a PNG file.

    Examples:
        >>> png([[[0], [255]]])[1:4]
        b'PNG'
    """
    height, width, channels = len(image), len(image[0]), len(image[0][0])
    lines = b"".join(b"\0" + bytes(value for pixel in line for value in pixel) for line in image)
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
