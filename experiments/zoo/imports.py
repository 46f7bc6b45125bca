"""Let torchvision and timm be imported beside a torch that torchvision's compiled operators do not fit."""

from __future__ import annotations

import torch

_DECLARED: list[torch.library.Library] = []


def prepare() -> None:
    """Declare the two operators whose shapes torchvision describes when it is imported."""
    if not _DECLARED and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
