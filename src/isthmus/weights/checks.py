"""Questions about a set of weights: which bytes, are they numbers, do two sets fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor

from isthmus.errors import MismatchError, WeightsError
from isthmus.weights.dense import raw


def digest(tensors: Mapping[str, Tensor]) -> str:
    """What a set of weights is, in 64 hexadecimal digits: the same for any file, order or strides.

    Args:
        tensors: named dense tensors.

    Returns:
        The SHA-256 over each tensor's name, dtype, shape and bytes, in the order of the names.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        # JSON holds no bare newline, so no name can pass for the end of its line.
        line = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
        total.update(line.encode() + b"\n")
        total.update(raw(tensor))
    return total.hexdigest()


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights with a NaN or an infinity in them.

    Args:
        tensors: named tensors; those of integers pass.
        name: what to call the set in the error.

    Raises:
        WeightsError: some are not finite; all such tensors are listed, with counts.
    """
    wrong: list[str] = []
    for key, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        values = tensor.float() if tensor.element_size() == 1 else tensor  # no float8 kernels for these
        finite = values.isfinite()
        if not finite.all():
            count, nan = int((~finite).sum()), int(values.isnan().sum())
            wrong.append(f"{key}    {nan} NaN, {count - nan} infinite of {tensor.numel()}")
    if wrong:
        raise WeightsError(
            f"{name} holds numbers that are not finite in {len(wrong)} of {len(tensors)} tensors",
            wrong,
            hint="the training diverged or a cast to a narrower dtype overflowed: take another checkpoint",
        )


def check_same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: tuple[str, str]) -> None:
    """Refuse two sets of weights that do not fit each other in names and shapes.

    Args:
        a: named tensors, say of the model.
        b: named tensors, say of the checkpoint.
        names: what to call `a` and `b` in the error.

    Raises:
        MismatchError: every missing, unexpected and misshapen tensor, all at once.
    """
    missing = [key for key in a if key not in b]
    unexpected = [key for key in b if key not in a]
    misshapen = [key for key in a if key in b and a[key].shape != b[key].shape]
    if not (missing or unexpected or misshapen):
        return
    rows = [
        *((key, f"only in {names[0]}") for key in missing),
        *((key, f"only in {names[1]}") for key in unexpected),
        *((k, f"{names[0]} {tuple(a[k].shape)}    {names[1]} {tuple(b[k].shape)}") for k in misshapen),
    ]
    width = max(len(key) for key, _ in rows)
    raise MismatchError(
        f"{names[0]} and {names[1]} do not fit: {len(rows)} of {len(a) + len(unexpected)} tensors differ",
        [f"{key:{width}}    {what}" for key, what in rows],
        hint=_reason(missing, unexpected, names),
    )


def _reason(missing: list[str], unexpected: list[str], names: tuple[str, str]) -> str:
    if not (missing or unexpected):
        return "one architecture in two sizes: build both with the same arguments"
    for short, long, name in ((missing, unexpected, names[1]), (unexpected, missing, names[0])):
        prefix = long[0].removesuffix(short[0]) if short and long else ""
        if prefix and {prefix + key for key in short} == set(long):
            return f"each name in {name} begins with {prefix!r} (DataParallel, compile): strip it"
    return "these look like two architectures: check which one each set of weights was trained in"
