"""Repair what combining broke: statistics of activations brought back, folded into the weights."""

from isthmus.repair.blocks import residual_blocks
from isthmus.repair.calibrate_bias import calibrate_bias
from isthmus.repair.explicit import Explicit, with_parameters
from isthmus.repair.goals import Goal, goals, goals_of, moments
from isthmus.repair.least_squares import least_squares
from isthmus.repair.remove_bias import remove_bias
from isthmus.repair.repair import repair
from isthmus.repair.rescale import rescale
from isthmus.repair.rescale_parameters import rescale_parameters
from isthmus.repair.reset import reset
from isthmus.repair.reshift import reshift
from isthmus.repair.result import Change, Repaired
from isthmus.repair.selection import repairable
from isthmus.repair.table import REPAIRS
from isthmus.repair.targets import Models
from isthmus.repair.writers import Fusable, fusable

__all__ = [
    "REPAIRS",
    "Change",
    "Explicit",
    "Fusable",
    "Goal",
    "Models",
    "Repaired",
    "calibrate_bias",
    "fusable",
    "goals",
    "goals_of",
    "least_squares",
    "moments",
    "remove_bias",
    "repair",
    "repairable",
    "rescale",
    "rescale_parameters",
    "reset",
    "reshift",
    "residual_blocks",
    "with_parameters",
]
