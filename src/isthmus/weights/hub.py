"""Models on the Hugging Face hub, by name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

from isthmus.errors import MissingExtraError, WeightsError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")

# The weights first as safetensors; what describes a model travels along.
_BESIDE = ["*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*"]
_WEIGHTS = (["*.safetensors"], ["*.bin"], ["*.gguf"])


def is_hub_id(text: str) -> bool:
    """Whether a text names a model on the hub: `org/name` or `org/name@revision`, and nothing here.

    A path that begins in a folder of this machine is taken for a path with a mistake in it.

    Args:
        text: what the user wrote.
    """
    here = Path(text)
    try:
        return bool(_ID.fullmatch(text)) and not here.exists() and not here.parent.exists()
    except OSError:  # too long for a name, here or there
        return False


def download(text: str) -> Path:
    """A model's weights and the files that describe it, in the hub's cache.

    Args:
        text: `org/name` or `org/name@revision`.

    Returns:
        The folder of that revision in the cache.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        WeightsError: the hub has no such model, or cannot be reached and the cache has it not.
    """
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise MissingExtraError(
            f"{text} is no file here, and reading it from the hub needs a package",
            hint="pip install 'isthmus[hub]'",
        ) from None
    fetch = cast("Callable[..., str]", hub.snapshot_download)
    name, _, revision = text.partition("@")
    folder = Path()
    for patterns in _WEIGHTS:
        try:
            # Folders below the top hold the same weights in other forms (original/, onnx/).
            told = fetch(
                name,
                revision=revision or None,
                allow_patterns=[*patterns, *_BESIDE],
                ignore_patterns=["*/*"],
            )
        except Exception as error:  # the hub's own errors, and those of the library that it fetches with
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise WeightsError(
                f"{text} is no file here, and the hub does not give it",
                [
                    f"{type(error).__name__}: {first}"
                ],  # whether the model or the revision is missing, the name says
                hint="check the name and the revision; a gated model needs `hf auth login`",
            ) from error
        folder = Path(told)
        if any(file.match(pattern) for file in folder.iterdir() for pattern in patterns):
            break
    return folder
