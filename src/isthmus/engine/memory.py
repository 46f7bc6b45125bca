"""How much memory the process holds for itself, and how much it may."""

from __future__ import annotations

import re
from pathlib import Path

from isthmus.errors import InputError

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


def private() -> int:
    """Bytes that the process holds and that no file backs; 0 where the system does not say.

    Mapped files are not counted: the system takes their pages back when it needs them.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def size(value: int | str) -> int:
    """A number of bytes, as a number or as people write it.

    Args:
        value: bytes, or a text as "512MiB", "5GB", "2g".

    Raises:
        InputError: it is neither, or below one byte.

    Examples:
        >>> size("512MiB"), size("5 GB"), size(100)
        (536870912, 5000000000, 100)
    """
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    count = (
        value if isinstance(value, int) else int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    )
    if count < 1:
        raise InputError(f"{value!r} is no amount of memory", hint="write it as 512MiB or 5GB")
    return count
