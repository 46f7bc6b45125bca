"""Questions about a set of weights: which bytes, are they numbers, do two sets fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor

from isthmus.errors import MismatchError, WeightsError
from isthmus.weights.dense import raw

#: Tensors that an error names of one kind; the others it counts.
_NAMED = 6


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
        WeightsError: some are not finite, all such tensors are listed, with counts; or they are on the meta device.
    """
    wrong: list[str] = []
    if empty := [key for key, tensor in tensors.items() if tensor.is_meta and not _readable(tensor)]:
        raise WeightsError(
            f"{name} has no weights: {len(empty)} of {len(tensors)} tensors are on the meta device",
            empty[:5],
            hint="load its checkpoint first (model.to_empty(device='cpu'), load_state_dict); shapes alone serve "
            "for isthmus.trace",
        )
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


def _readable(tensor: Tensor) -> bool:
    """Whether there are values: a subclass may stand for some elsewhere and say that it is on the meta device."""
    try:
        tensor.any().item()
    except RuntimeError:
        return False
    return True


def check_same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: tuple[str, str]) -> None:
    """Refuse two sets of weights that do not fit each other in names and shapes.

    Args:
        a: named tensors, say of the model.
        b: named tensors, say of the checkpoint.
        names: what to call `a` and `b` in the error.

    Raises:
        MismatchError: there are missing, unexpected or misshapen tensors. Of each kind all are counted and the first
            six are named.
    """
    missing = [key for key in a if key not in b]
    unexpected = [key for key in b if key not in a]
    misshapen = [key for key in a if key in b and a[key].shape != b[key].shape]
    if not (missing or unexpected or misshapen):
        return
    told = {
        **dict.fromkeys(missing, f"only in {names[0]}"),
        **dict.fromkeys(unexpected, f"only in {names[1]}"),
        **{k: f"{names[0]} {tuple(a[k].shape)}    {names[1]} {tuple(b[k].shape)}" for k in misshapen},
    }
    kinds = (missing, unexpected, misshapen)
    width = max(len(key) for keys in kinds for key in keys[:_NAMED])
    where: list[str] = []
    for keys in kinds:
        where += [f"{key:{width}}    {told[key]}" for key in keys[:_NAMED]]
        where += [f"and {len(keys) - _NAMED} more"] if len(keys) > _NAMED else []
    raise MismatchError(
        f"{names[0]} and {names[1]} do not fit: {len(told)} of {len(a) + len(unexpected)} tensors differ",
        where,
        hint=_twice(missing, unexpected, misshapen, a, b) or _reason(missing, unexpected, names),
    )


def _twice(
    missing: list[str],
    unexpected: list[str],
    misshapen: list[str],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
) -> str | None:
    """What to say where all that one side has beyond the other may be one of its matrices, stored once more."""
    extra, tensors = (missing, a) if missing else (unexpected, b)
    if misshapen or len(missing) + len(unexpected) != 1 or (shape := tensors[extra[0]].shape).numel() == 0:
        return None
    twins = [key for key, tensor in tensors.items() if tensor.shape == shape and key != extra[0]]
    if len(shape) != 2 or len(twins) != 1:
        return None
    return (
        f"if {extra[0]} is the head, and elsewhere tied to {twins[0]}: a recipe (isthmus merge RECIPE.yml) takes "
        "the embedding for a head that is not stored; or store it in both"
    )


def _reason(missing: list[str], unexpected: list[str], names: tuple[str, str]) -> str:
    if not (missing or unexpected):
        return "one architecture in two sizes: build both with the same arguments"
    for short, long, name in ((missing, unexpected, names[1]), (unexpected, missing, names[0])):
        prefix = long[0].removesuffix(short[0]) if short and long else ""
        if prefix and {prefix + key for key in short} == set(long):
            return f"each name in {name} begins with {prefix!r} (DataParallel, compile): strip it"
    return "these look like two architectures: check which one each set of weights was trained in"
