"""Where an optimisation of coefficients stands, in a file: killed and asked again, it goes on from there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from isthmus import weights as files
from isthmus.errors import InputError, WeightsError


class Standing:
    """The latest numbers of one optimisation, whole on the disk or as they were before.

    Args:
        folder: where; None keeps nothing.
        kind: of search.
        what: makes plain data that says all that the optimisation depends on but its data; not asked for
            without a folder, since it reads all models.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, kind: str, what: Callable[[], Mapping[str, object]]
    ):
        self._path: Path | None = None
        if folder is not None:
            text = json.dumps(what(), sort_keys=True, default=str)
            key = hashlib.sha256(text.encode()).hexdigest()[:16]
            self._path = Path(folder) / f"{kind}-{key}.safetensors"

    def read(self) -> dict[str, Tensor] | None:
        """What was kept last; None where nothing was.

        Raises:
            InputError: the file is none of ours.
        """
        if self._path is None or not self._path.exists():
            return None
        try:
            return files.load(self._path)
        except WeightsError as error:
            hint = "remove it, and the search begins again"
            raise InputError(f"{self._path} cannot be read", [error.what], hint=hint) from error

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace what was kept.

        Raises:
            InputError: the folder cannot be written.
        """
        if self._path is None:
            return
        try:
            files.save(tensors, self._path)
        except WeightsError as error:
            raise InputError(f"{self._path} cannot be used to keep a search", error.where) from error


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers, by flat names."""
    return {
        f"optimizer.{index}.{name}": value
        for index, own in optimizer.state_dict()["state"].items()
        for name, value in own.items()
    }


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser back what `moments` named."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
