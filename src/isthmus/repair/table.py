"""The table of repairs."""

from __future__ import annotations

from collections.abc import Callable

from isthmus.registry import Registry
from isthmus.repair.result import Repaired

#: A repair takes a program, a state dict and, where it needs "data", data; it returns a new state dict. What else
#: it needs it takes as keywords: "goals" (see `isthmus.repair.goals`); "models", the merged models as networks (see
#: `isthmus.repair.Models`); "parents", their weights, or "terms", of which the merged model is the weighted sum (the
#: same, unless units are mixed), each with their "shares"; "score", a function of weights on validation data.
REPAIRS = Registry[Callable[..., Repaired]](
    "repair",
    package=__package__,
    supplied=("goals", "data", "models", "parents", "terms", "shares", "score"),
)
