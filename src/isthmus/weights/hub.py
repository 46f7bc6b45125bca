"""Models on the Hugging Face hub, by name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
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
    folder = Path()
    for patterns in _WEIGHTS:
        folder = _fetched(text, [*patterns, *_BESIDE])
        if any(file.match(pattern) for file in folder.iterdir() for pattern in patterns):
            break
    return folder


def describe(text: str) -> Path:
    """The files that describe a model, in the hub's cache: those of `download`, without the weights.

    Args:
        text: as for `download`.

    Returns:
        The folder that `download` would fill further; its name is the revision's commit.

    Raises:
        MissingExtraError: as for `download`.
        WeightsError: as for `download`.
    """
    return _fetched(text, _BESIDE)


def remote_headers(
    text: str, file: str | None = None
) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]] | None:
    """What a model's safetensors files hold, by their headers alone: some kilobytes of each are read.

    Args:
        text: as for `download`.
        file: this one alone; by default those that hold a model, under their usual names.

    Returns:
        File -> tensor -> (dtype as the header has it, shape); None where there is no such file.

    Raises:
        MissingExtraError: as for `download`.
        WeightsError: as for `download`; or a header cannot be read.
    """
    hub = _library(text)
    name, _, revision = text.partition("@")
    bars = cast("ModuleType", hub.utils)
    shown = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()  # of kilobytes
    client, commit, errors = hub.HfApi(), revision or None, hub.errors
    try:
        if file is None:
            found = client.get_safetensors_metadata(name, revision=commit).files_metadata
        else:
            found = {file: client.parse_safetensors_file_metadata(name, file, revision=commit)}
    except errors.LocalEntryNotFoundError as error:  # the hub was not reached, and may have it
        raise _refused(text, error) from error
    except (errors.NotASafetensorsRepoError, errors.EntryNotFoundError):
        return None
    except Exception as error:  # as below
        raise _refused(text, error) from error
    finally:
        if shown:
            bars.enable_progress_bars()
    return {
        file: {tensor: (str(info.dtype), tuple(info.shape)) for tensor, info in held.tensors.items()}
        for file, held in sorted(found.items())
    }


def _library(text: str) -> ModuleType:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise MissingExtraError(
            f"{text} is no file here, and reading it from the hub needs a package",
            hint="pip install 'isthmus[hub]'",
        ) from None


def _fetched(text: str, patterns: list[str]) -> Path:
    fetch = cast("Callable[..., str]", _library(text).snapshot_download)
    name, _, revision = text.partition("@")
    try:
        # Folders below the top hold the same weights in other forms (original/, onnx/).
        told = fetch(name, revision=revision or None, allow_patterns=patterns, ignore_patterns=["*/*"])
    except Exception as error:  # the hub's own errors, and those of the library that it fetches with
        raise _refused(text, error) from error
    return Path(told)


def _refused(text: str, error: Exception) -> WeightsError:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return WeightsError(
        f"{text} is no file here, and the hub does not give it",
        [f"{type(error).__name__}: {first}"],  # whether the model or the revision is missing, the name says
        hint="check the name and the revision; a gated model needs `hf auth login`",
    )
