"""Repair what combining broke: statistics of activations brought back, folded into the weights."""

from isthmus.repair.explicit import Explicit, with_parameters
from isthmus.repair.goals import Goal, goals, goals_of, moments
from isthmus.repair.repair import repair
from isthmus.repair.rescale import rescale
from isthmus.repair.reset import reset
from isthmus.repair.result import Change, Repaired
from isthmus.repair.selection import repairable
from isthmus.repair.table import REPAIRS
from isthmus.repair.writers import Fusable, fusable

__all__ = [
    "REPAIRS",
    "Change",
    "Explicit",
    "Fusable",
    "Goal",
    "Repaired",
    "fusable",
    "goals",
    "goals_of",
    "moments",
    "repair",
    "repairable",
    "rescale",
    "reset",
    "with_parameters",
]
