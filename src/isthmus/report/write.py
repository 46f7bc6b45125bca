"""Text files that are there whole, or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from isthmus.errors import InputError


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text beside `path`, then rename it into place.

    Args:
        path: what to write; an existing file is replaced in one step.
        text: its content.

    Raises:
        InputError: the file cannot be written; what was there before still is.
    """
    target = Path(path)
    beside = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with beside.open("x", encoding="utf-8", newline="\n") as file:  # "x": the mode of the umask
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}") from error
    return target
