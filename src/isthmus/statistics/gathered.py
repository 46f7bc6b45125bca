"""Statistics of one model, one tensor per weight, and how they came about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from isthmus import weights as files


@dataclass(frozen=True, eq=False)
class Gathered(Mapping[str, Tensor]):
    """A mapping from names of weights to their statistics; `merge(..., statistics=)` takes one per model.

    Attributes:
        tensors: name of a weight -> its statistics.
        settings: what was gathered, and how.
        left: name of a weight that has none -> why. A rule averages such weights.
    """

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, object] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def save(self, path: str | Path) -> Path:
        """Write the tensors as safetensors, with the settings in the header; `statistics=` takes such a file.

        Raises:
            WeightsError: the file cannot be written.
        """
        path = Path(path)
        files.save(
            self.tensors, path, {"isthmus.statistics": json.dumps(dict(self.settings), sort_keys=True)}
        )
        return path

    def __str__(self) -> str:
        said = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        lines = [f"statistics of {len(self)} weights: {said}"]
        lines += [f"  none of {key}: {why}" for key, why in self.left.items()]
        return "\n".join(lines)
