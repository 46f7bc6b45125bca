"""Scores of candidates: asked for once each, kept in a file, and checked to be numbers."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from isthmus.errors import InputError, IsthmusError
from isthmus.measure import Score

#: A function of weights, higher is better. (Any: what can be made a float.)
Scoring = Callable[[Mapping[str, Tensor]], Any]
OnError = Literal["raise", "skip"]

FILE = "scores.jsonl"


@dataclass(frozen=True)
class Scored:
    """The score of one candidate.

    Attributes:
        value: higher is better; None where it was skipped.
        cached: whether it was known already.
        seconds: that it took when it was evaluated.
        note: why there is no value.
    """

    value: float | None
    cached: bool
    seconds: float
    note: str = ""


class Scores:
    """A score that never evaluates the same candidate twice.

    A candidate is known by its content: the digests of its models, how they are combined, and what the score is
    called. In a folder, each score is a line of `scores.jsonl`, on the disk before the next one is begun: a
    search that is called again after a kill reads what it knew and goes on.

    Args:
        score: the function.
        folder: where scores are kept; None keeps them in memory alone.
        called: what the score is called in the file; see `identity`.
        on_error: "raise" says which candidate has no score; "skip" counts it and goes on.

    Raises:
        InputError: the folder cannot be written, or its file is none of ours.
    """

    def __init__(
        self,
        score: Scoring,
        *,
        folder: str | os.PathLike[str] | None = None,
        called: str | None = None,
        on_error: OnError = "raise",
    ):
        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error = {on_error!r} is neither 'raise' nor 'skip'")
        self._score = score
        self.called = called or identity(score)
        self._on_error = on_error
        self._file = None if folder is None else Path(folder) / FILE
        self._known: dict[str, float] = {} if self._file is None else _read(self._file)

    def of(self, what: Mapping[str, object], make: Callable[[], Mapping[str, Tensor]], label: str) -> Scored:
        """The score of a candidate, which is made only if it is not known.

        Args:
            what: plain data that says all that the candidate depends on.
            make: its weights.
            label: what people call it.

        Raises:
            InputError: there is no score, and nobody asked to skip.
        """
        key = _key({"score": self.called, **what})
        if key in self._known:
            return Scored(self._known[key], True, 0.0)
        start = time.perf_counter()
        value, note, cause = self._evaluated(make)
        seconds = time.perf_counter() - start
        if value is None:
            if self._on_error == "skip":
                return Scored(None, False, seconds, note)
            if isinstance(cause, IsthmusError):
                raise cause
            hint = "on_error='skip' counts such candidates and goes on; -math.inf is a score that is never chosen"
            raise InputError(f"there is no score of {label}", [note], hint=hint) from cause
        self._known[key] = value
        if self._file is not None:
            _append(self._file, {"key": key, "value": value, "label": label})
        return Scored(value, False, seconds)

    def _evaluated(
        self, make: Callable[[], Mapping[str, Tensor]]
    ) -> tuple[float | None, str, Exception | None]:
        """The score of what is made; or why there is none, and what was raised."""
        try:
            weights = make()
        except IsthmusError as error:
            return None, error.what, error
        try:
            value = _number(self._score(weights))
        except IsthmusError as error:
            return None, error.what, error
        except Exception as error:  # noqa: BLE001 - whatever the user's function raises
            return None, f"{type(error).__name__}: {error}", error
        return (None, "not a number", None) if math.isnan(value) else (value, "", None)


def identity(score: Callable[..., Any]) -> str:
    """What a score is called where its values are kept: its name, and a digest of its code where it has some.

    What a function reads besides (its data) cannot be seen: with other data, take another folder, or say
    what the score is called.

    Examples:
        >>> identity(max).partition(" ")[0]
        'builtins.max'
    """
    if isinstance(score, functools.partial):
        return f"{identity(score.func)} {score.args!r} {sorted(score.keywords.items())!r}"
    if isinstance(score, Score):
        return f"isthmus.score {score.metric if isinstance(score.metric, str) else identity(score.metric)}"
    named = score if hasattr(score, "__qualname__") else type(score)
    called = f"{named.__module__}.{named.__qualname__}"
    try:
        source = inspect.getsource(named)
    except (OSError, TypeError):
        return called  # of a C extension, or typed at a prompt
    return f"{called} {hashlib.sha256(source.encode()).hexdigest()[:12]}"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"it returned a {type(value).__name__}, not one number") from None


def _key(what: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _read(path: Path) -> dict[str, float]:
    """What is known, after cutting off a last line that a kill left unfinished."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        if content and not content.endswith(b"\n"):
            content = content[: content.rfind(b"\n") + 1]
            os.truncate(path, len(content))
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError("not writable")
    except OSError as error:
        raise InputError(f"{path} cannot be used to keep scores: {error.strerror or error}") from error
    return dict(_lines(path, content))


def _lines(path: Path, content: bytes) -> Iterator[tuple[str, float]]:
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            entry = json.loads(line)
            yield str(entry["key"]), float(entry["value"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}:{number} is no score",
                [f"{type(error).__name__}: {error}"],
                hint="another program wrote there: remove the file, or keep scores in another folder",
            ) from error


def _append(path: Path, entry: Mapping[str, object]) -> None:
    try:
        with path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
