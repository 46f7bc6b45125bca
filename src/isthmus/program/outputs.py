"""What a model returns, read as logits, and the classes that they are of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from isthmus.errors import DataError

#: The target that stands for none, as in `torch.nn.functional.cross_entropy`.
IGNORED = -100


def logits_of(output: object, hint: str | None = None) -> Tensor:
    """The logits in what a model returned: itself, its `logits`, or the first tensor in it.

    Args:
        output: whatever the model returned.
        hint: what a caller may do where there are none.

    Raises:
        DataError: there is no tensor in it.
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else None
    for logits in (named, getattr(output, "logits", None)):
        if isinstance(logits, Tensor):
            return logits
    parts = output.values() if isinstance(output, Mapping) else output
    for part in parts if isinstance(parts, Iterable) else ():
        if isinstance(part, Tensor):
            return part
    raise DataError(f"the model returned a {type(output).__name__} without a tensor of logits", hint=hint)


def check_classes(targets: Tensor, classes: int) -> None:
    """Refuse targets that are none of a model's classes; `IGNORED` is no target.

    Args:
        targets: class numbers, of any shape.
        classes: how many there are.

    Raises:
        DataError: one is below zero, or there is no such class.
    """
    kept = targets[targets != IGNORED]
    low, high = (int(kept.min()), int(kept.max())) if kept.numel() else (0, 0)
    if low < 0 or high >= classes:
        raise DataError(
            f"targets run from {low} to {high}, the model has {classes} classes",
            hint=f"classes are counted from 0; {IGNORED} stands for no target",
        )
