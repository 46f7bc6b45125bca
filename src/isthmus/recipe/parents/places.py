"""Where a model is that a recipe names: here, or on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from isthmus.errors import WeightsError


def is_id(text: str) -> bool:
    """Whether a text looks like `org/name` on the hub, rather than a path."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text)) and not exists(Path(text))


def exists(path: Path) -> bool:
    """Whether something is at a path; at one that no disk can have there is nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        return False


def find(text: str, roots: Iterable[Path]) -> Path | None:
    """What a path means, in the first folder in which something is there."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # ~ of nobody
        return None
    return next((root / path for root in roots if exists(root / path)), None)


def locate(text: str) -> Path:
    """Where a model is: a path from here, else the hub's cache, into which it is fetched.

    Args:
        text: path or id.

    Raises:
        WeightsError: it is nowhere.
    """
    found = place_of(text, (Path(),), None)
    if found is not None:
        return found
    from isthmus.weights.hub import download  # imports torch: only where the hub is needed

    return download(text)


def place_of(text: str, roots: tuple[Path, ...], inside: Path | None) -> Path | None:
    """Where a model or adapter is: a path from here or from beside the recipe; None where the hub is to be asked.

    Args:
        text: path or id.
        roots: folders that relative paths begin in, in order.
        inside: where given, the recipe is not trusted: the model is in this folder, under its path or under the
            last part of it, or nowhere; nothing is fetched.

    Raises:
        WeightsError: it is nowhere.
    """
    if inside is not None:
        return _locate_inside(text, inside)
    if (found := find(text, roots)) is not None:
        return found
    if "://" in text:
        raise WeightsError(
            f"{text} is a URL, and a recipe reads folders, files and models of the hub",
            hint="isthmus.merge_files reads URLs range by range; or mount the bucket, or copy the model",
        )
    if not is_id(text):
        raise WeightsError(f"{text} does not exist")
    return None


def _locate_inside(text: str, folder: Path) -> Path:
    for found in (folder / text, folder / Path(text).name):
        # Links are followed first, so that none leads out.
        if (
            exists(found)
            and found.resolve().is_relative_to(folder.resolve())
            and found.resolve() != folder.resolve()
        ):
            return found
    raise WeightsError(f"{text} is not in {folder}, and a recipe from inside a model leads nowhere else")
