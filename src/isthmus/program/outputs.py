"""What a model returns, read as logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from isthmus.errors import DataError


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
