"""Puts measures together into a verdict: how models are related, what is wrong, and the next thing to try."""

from isthmus.diagnose.diagnosis import Diagnosis
from isthmus.diagnose.evidence import Gathered, gather
from isthmus.diagnose.grid import BUDGETS, Attempt, Recipe
from isthmus.diagnose.rules import Bound, Cause, Rule, holding
from isthmus.diagnose.table import CAUSES, RELATIONS

__all__ = [
    "BUDGETS",
    "CAUSES",
    "RELATIONS",
    "Attempt",
    "Bound",
    "Cause",
    "Diagnosis",
    "Gathered",
    "Recipe",
    "Rule",
    "gather",
    "holding",
]
