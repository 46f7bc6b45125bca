"""Masks: which weights stay, as files, and put on a state dict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from isthmus import weights as files
from isthmus.errors import MismatchError, WeightsError

Mask = Mapping[str, Bool[Tensor, "..."]]

_SETTINGS = "isthmus.prune"


def save_mask(mask: Mask, path: str | Path, settings: Mapping[str, object] | None = None) -> Path:
    """Write a mask as safetensors: a tensor of booleans for each weight, true where it stays.

    Args:
        mask: weight -> which of its elements stay.
        path: a name ending in `.safetensors`.
        settings: how it came about, kept in the file's header.

    Raises:
        WeightsError: the file cannot be written.
    """
    path = Path(path)
    files.save(mask, path, {_SETTINGS: json.dumps(dict(settings or {}), sort_keys=True, default=str)})
    return path


def load_mask(path: str | Path) -> dict[str, Bool[Tensor, "..."]]:
    """Read what `save_mask` wrote.

    Raises:
        WeightsError: the file cannot be read, or holds something else than booleans.
    """
    mask = files.load(path)
    wrong = [f"{key}: {tensor.dtype}" for key, tensor in mask.items() if tensor.dtype != torch.bool]
    if wrong or not mask:
        raise WeightsError(
            f"{path} is no mask: a mask has booleans, true where a weight stays", wrong or ["it is empty"]
        )
    return mask


def masked(weights: Mapping[str, Tensor], mask: Mask) -> dict[str, Tensor]:
    """A state dict with zeros where the mask says so; the other tensors are the given ones.

    Args:
        weights: a state dict; it is not changed.
        mask: weight -> which of its elements stay.

    Raises:
        MismatchError: the mask has weights that the state dict has not, or of other shapes; all are listed.

    Examples:
        >>> masked({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([True, False])})
        {'w': tensor([1., 0.])}
    """
    wrong = [
        f"{key}    mask {tuple(keep.shape)}    weights "
        + (str(tuple(weights[key].shape)) if key in weights else "none")
        for key, keep in mask.items()
        if key not in weights or weights[key].shape != keep.shape
    ]
    if wrong:
        raise MismatchError(f"{len(wrong)} tensors of the mask do not fit the weights", wrong)
    return {
        key: torch.where(
            mask[key].to(value.device), value, torch.zeros((), dtype=value.dtype, device=value.device)
        )
        if key in mask
        else value
        for key, value in weights.items()
    }
