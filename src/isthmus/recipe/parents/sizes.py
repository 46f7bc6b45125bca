"""Dtypes by their names, the bytes of their elements, and bytes in words."""

from __future__ import annotations

from collections.abc import Sequence

#: Bytes of an element, by safetensors' names.
SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip

#: torch's names of what is merged.
NAMES = {
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "C64": "complex64",
}  # fmt: skip


def size_of(dtype: str) -> int:
    """Bytes of an element, by torch's name of a floating dtype."""
    return next(SIZES[key] for key, name in NAMES.items() if name == dtype)


_WIDTH = {
    "float64": 4,
    "complex64": 4,
    "float32": 3,
    "bfloat16": 2,
    "float16": 2,
    "float8_e5m2": 1,
    "float8_e4m3fn": 1,
}


def promoted(dtypes: Sequence[str]) -> str:
    """The dtype that holds all of these; two halves of different kinds need float32."""
    widest = max(dtypes, key=lambda d: _WIDTH[d])
    rivals = {d for d in dtypes if _WIDTH[d] == _WIDTH[widest]}
    return widest if len(rivals) == 1 else ("float32" if _WIDTH[widest] <= 2 else "float64")


def size(count: float | int) -> str:
    """Bytes for people, in decimal units as disks are sold.

    Examples:
        >>> size(2_200_000_000)
        '2.2 GB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
