"""Choosing weights by a score: soups, coefficients, and what their choice can be told from beforehand.

A score is any function of weights, higher is better. A search is one file with one registration; `soup` calls
any of them.
"""

from isthmus.search.angle import Angles, angles
from isthmus.search.ensembles import greedy_ensemble
from isthmus.search.grid import simplex
from isthmus.search.members import Members, Source, gather
from isthmus.search.result import Searched, Step
from isthmus.search.scores import Scored, Scores, identity
from isthmus.search.soup import soup
from isthmus.search.table import SEARCHES, Search

__all__ = [
    "SEARCHES",
    "Angles",
    "Members",
    "Scored",
    "Scores",
    "Search",
    "Searched",
    "Source",
    "Step",
    "angles",
    "gather",
    "greedy_ensemble",
    "identity",
    "simplex",
    "soup",
]
