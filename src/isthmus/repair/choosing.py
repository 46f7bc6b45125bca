"""Repairs tried and measured: a repair is kept where a score on validation data says that it helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args, get_type_hints

from torch import Tensor

from isthmus.errors import DataError, InputError, MismatchError
from isthmus.program import Program
from isthmus.registry import Asked, label
from isthmus.repair.result import Repaired
from isthmus.repair.table import REPAIRS

#: A score of a program with weights, higher is better.
Scored = Callable[[Program, Mapping[str, Tensor]], float]

#: How the merge as it came is called among the repairs of it.
UNREPAIRED = "unrepaired"


@dataclass(frozen=True)
class Trial:
    """One repair that was tried.

    Attributes:
        name: the repair with the options that were asked for, or "unrepaired".
        score: on validation data, higher is better; None where it cannot be done to this model.
        note: why it cannot.
    """

    name: str
    score: float | None
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.score:.4g}" if self.score is not None else f"{self.name}: {self.note}"


@dataclass(frozen=True)
class Choice:
    """What came of trying repairs.

    Attributes:
        repaired: the best one; None where none is better than the merge as it came.
        asked: how that one was asked for.
        used: its options.
        trials: all that were tried, the merge as it came first.
    """

    repaired: Repaired | None
    asked: Asked | None
    used: Mapping[str, object]
    trials: tuple[Trial, ...]


def wanted(repair: Asked | Sequence[Asked] | None) -> list[Asked]:
    """The repairs that are asked for: one, several, or for "best" every registered one that may choose as well.

    Examples:
        >>> wanted("rescale"), wanted(["reset", {"method": "repair", "mode": "sequential"}])
        (['rescale'], ['reset', {'method': 'repair', 'mode': 'sequential'}])
        >>> {"method": "remove-bias", "last": "best"} in wanted("best")
        True
    """
    if repair is None:
        return []
    if repair == "best":
        return [_choosing(row.name) for row in REPAIRS.rows()]
    return [repair] if isinstance(repair, str | Mapping) else list(repair)


def _choosing(name: str) -> Asked:
    """A repair with its defaults, but for the first option that can be left to the score."""
    method = REPAIRS.get(name)
    hints = get_type_hints(method.function)
    for option in method.options:
        words = [word for kind in get_args(hints[option]) for word in (kind, *get_args(kind))]
        if "best" in [word for word in words if isinstance(word, str)]:
            return {"method": name, option: "best"}
    return name


def choose(
    program: Program,
    weights: Mapping[str, Tensor],
    repairs: Sequence[Asked],
    make: Callable[[Asked], tuple[Repaired, dict[str, object]]],
    score: Scored,
    *,
    unfit: bool = False,
) -> Choice:
    """Try repairs of a merged model, and take the one that scores best if it is better than none.

    Args:
        program: of the merged model.
        weights: of it.
        repairs: which to try. Of several that score the same the first is taken.
        make: does one of them; see `isthmus.repair.by_name.apply`.
        score: higher is better, on validation data.
        unfit: note repairs that cannot be done to this model where they would raise.

    Raises:
        InputError, DataError, MismatchError: as the repairs.
    """
    best = score(program, weights)
    trials = [Trial(UNREPAIRED, best)]
    found = Choice(None, None, {}, ())
    for asked in repairs:
        try:
            repaired, used = make(asked)
        except InputError as error:
            if not unfit or isinstance(error, DataError | MismatchError):
                raise
            trials.append(Trial(label(asked), None, error.what))
            continue
        reached = score(repaired.program, repaired.weights)
        trials.append(Trial(label(asked), reached))
        if reached > best:
            best, found = reached, Choice(repaired, asked, used, ())
    return Choice(found.repaired, found.asked, found.used, tuple(trials))
