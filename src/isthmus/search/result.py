"""What a search came to: the weights, and every step on the way."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from isthmus import weights as files
from isthmus.errors import InputError


@dataclass(frozen=True)
class Step:
    """One candidate.

    Attributes:
        label: what was tried, in a few words.
        candidate: what it consists of: parts of models by name, or values of options.
        score: higher is better; None where it was skipped.
        accepted: whether the search went on from it.
        best: the score of what had been accepted by then; None before the first.
        cached: whether its score was known already.
        seconds: that its evaluation took.
        note: why there is no score.
    """

    label: str
    candidate: Mapping[str, object]
    score: float | None
    accepted: bool
    best: float | None
    cached: bool = False
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True, eq=False)
class Searched:
    """What a search found.

    Attributes:
        kind: the search's name.
        weights: the best weights; they load in the models' own class.
        score: theirs, higher is better; None where nothing was scored.
        chosen: what they consist of, as `Step.candidate`.
        steps: every candidate, in the order tried.
        members: names of the models.
        settings: every option, defaults included.
        notes: what a reader must know: statistics that were averaged, test-time data, what was skipped.
        coefficients: of searches that have one per tensor or layer: its name -> part of each model.
        extra: what only this kind of search finds (a temperature, heads of tasks).
        by: what the score is called.
    """

    kind: str
    weights: dict[str, Tensor] = field(repr=False)
    score: float | None
    chosen: Mapping[str, object]
    steps: tuple[Step, ...]
    members: tuple[str, ...]
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    coefficients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    extra: Mapping[str, object] = field(default_factory=dict)
    by: str = ""

    @property
    def evaluated(self) -> int:
        """Candidates whose score was computed now."""
        return sum(not step.cached and step.score is not None for step in self.steps)

    @property
    def cached(self) -> int:
        """Candidates whose score was known."""
        return sum(step.cached for step in self.steps)

    @property
    def skipped(self) -> int:
        """Candidates without a score."""
        return sum(step.score is None for step in self.steps)

    def as_dict(self) -> dict[str, object]:
        """All but the tensors, as plain data for JSON."""
        return {
            "format": "isthmus-search/1",
            "kind": self.kind,
            "score": self.score,
            "score name": self.by,
            "chosen": dict(self.chosen),
            "members": list(self.members),
            "evaluated": self.evaluated,
            "cached": self.cached,
            "skipped": self.skipped,
            "notes": list(self.notes),
            "settings": {key: plain(value) for key, value in self.settings.items()},
            "coefficients": {key: dict(parts) for key, parts in self.coefficients.items()},
            "extra": {key: plain(value) for key, value in self.extra.items()},
            "steps": [{name: plain(value) for name, value in vars(step).items()} for step in self.steps],
        }

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write all but the tensors, whole or not at all. Numbers that are not finite become text."""
        path = Path(path)
        content = json.dumps(_finite(self.as_dict()), indent=1, ensure_ascii=False, allow_nan=False)
        try:
            with files.atomic(path) as file:
                file.write(content.encode() + b"\n")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
        return path

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the weights as safetensors, whole or not at all, with what they consist of in the header."""
        path = Path(path)
        told = {"kind": self.kind, "chosen": dict(self.chosen), "score": self.score, "by": self.by}
        files.save(self.weights, path, metadata={"isthmus.search": json.dumps(_finite(told), sort_keys=True)})
        return path

    def __str__(self) -> str:
        reached = "" if self.score is None else f", score {self.score:.6g}"
        lines = [f"{self.kind} of {len(self.members)} model{'s' * (len(self.members) > 1)}{reached}"]
        lines += [f"  {name}  {_short(value)}" for name, value in self.chosen.items()]
        counted = [f"{self.evaluated} evaluated", f"{self.cached} known already"]
        counted += [f"{self.skipped} skipped"] if self.skipped else []
        lines.append(f"{len(self.steps)} candidates: {', '.join(counted)}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def plain(value: object) -> object:
    """A value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return f"tensor {tuple(value.shape)}"
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _finite(value: object) -> object:
    """Numbers that JSON has no word for, as text."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
