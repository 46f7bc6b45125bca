"""The table of repairs."""

from __future__ import annotations

from collections.abc import Callable

from isthmus.registry import Registry
from isthmus.repair.result import Repaired

#: A repair takes a program, a state dict and data, and returns a new state dict. What needs "goals" takes
#: them as a keyword (see `isthmus.repair.goals`).
REPAIRS = Registry[Callable[..., Repaired]]("repair", package=__package__)
