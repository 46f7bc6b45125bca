"""isthmus: merge neural networks, and say why a merge works or fails.

    see      trace(model, example)            what may be moved without changing the function
    move     align(models, by, data=...)      which of it brings the models together
    combine  merge(models, ...)               one network of the aligned ones
    repair   merge(..., repair=...)           activations get their statistics back
    measure  score, barrier, vanishing, ...   what it cost and where it broke

Importing isthmus imports nothing else: each name is loaded when it is first used, and so is each room whose name is
no verb (`isthmus.weights.load`).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

#: Public name -> the module that has it.
_WHERE = {
    "Alignment": "isthmus.align",
    "Cut": "isthmus.program",
    "Element": "isthmus.symmetry",
    "Ensemble": "isthmus.measure",
    "Finding": "isthmus.measure",
    "Gauge": "isthmus.symmetry",
    "INTERTWINERS": "isthmus.symmetry",
    "IsthmusError": "isthmus.errors",
    "Merged": "isthmus.merged",
    "Plan": "isthmus.recipe",
    "Program": "isthmus.program",
    "Pruned": "isthmus.prune",
    "Searched": "isthmus.search",
    "Segment": "isthmus.paths",
    "Space": "isthmus.symmetry",
    "SymmetryGraph": "isthmus.symmetry",
    "Transport": "isthmus.maps",
    "Verification": "isthmus.symmetry",
    "align": "isthmus.align",
    "angles": "isthmus.search",
    "barrier": "isthmus.measure",
    "cka": "isthmus.measure",
    "calibration_error": "isthmus.measure",
    "combine": "isthmus.combine",
    "compare": "isthmus.comparing",
    "diagnose": "isthmus.diagnosing",
    "ensemble": "isthmus.measure",
    "evaluate": "isthmus.measure",
    "export": "isthmus.program",
    "fisher_information": "isthmus.statistics",
    "gram_matrices": "isthmus.statistics",
    "greedy_ensemble": "isthmus.search",
    "kept": "isthmus.measure",
    "load": "isthmus.saving",
    "merge": "isthmus.merging",
    "merge_files": "isthmus.engine",
    "method": "isthmus.listing",
    "methods": "isthmus.listing",
    "plan": "isthmus.recipe",
    "procrustes": "isthmus.measure",
    "prune": "isthmus.prune",
    "rule": "isthmus.symmetry",
    "score": "isthmus.measure",
    "soup": "isthmus.search",
    "stitch": "isthmus.measure",
    "trace": "isthmus.symmetry",
    "vanishing": "isthmus.measure",
    "variance_ratio": "isthmus.measure",
    "verified": "isthmus.symmetry",
}

if TYPE_CHECKING:
    from isthmus.align import Alignment as Alignment
    from isthmus.align import align as align
    from isthmus.combine import combine as combine
    from isthmus.comparing import compare as compare
    from isthmus.diagnosing import diagnose as diagnose
    from isthmus.engine import merge_files as merge_files
    from isthmus.errors import IsthmusError as IsthmusError
    from isthmus.listing import method as method
    from isthmus.listing import methods as methods
    from isthmus.maps import Transport as Transport
    from isthmus.measure import Ensemble as Ensemble
    from isthmus.measure import Finding as Finding
    from isthmus.measure import barrier as barrier
    from isthmus.measure import calibration_error as calibration_error
    from isthmus.measure import cka as cka
    from isthmus.measure import ensemble as ensemble
    from isthmus.measure import evaluate as evaluate
    from isthmus.measure import kept as kept
    from isthmus.measure import procrustes as procrustes
    from isthmus.measure import score as score
    from isthmus.measure import stitch as stitch
    from isthmus.measure import vanishing as vanishing
    from isthmus.measure import variance_ratio as variance_ratio
    from isthmus.merged import Merged as Merged
    from isthmus.merging import merge as merge
    from isthmus.paths import Segment as Segment
    from isthmus.program import Cut as Cut
    from isthmus.program import Program as Program
    from isthmus.program import export as export
    from isthmus.prune import Pruned as Pruned
    from isthmus.prune import prune as prune
    from isthmus.recipe import Plan as Plan
    from isthmus.recipe import plan as plan
    from isthmus.saving import load as load
    from isthmus.search import Searched as Searched
    from isthmus.search import angles as angles
    from isthmus.search import greedy_ensemble as greedy_ensemble
    from isthmus.search import soup as soup
    from isthmus.statistics import fisher_information as fisher_information
    from isthmus.statistics import gram_matrices as gram_matrices
    from isthmus.symmetry import INTERTWINERS as INTERTWINERS
    from isthmus.symmetry import Element as Element
    from isthmus.symmetry import Gauge as Gauge
    from isthmus.symmetry import Space as Space
    from isthmus.symmetry import SymmetryGraph as SymmetryGraph
    from isthmus.symmetry import Verification as Verification
    from isthmus.symmetry import rule as rule
    from isthmus.symmetry import trace as trace
    from isthmus.symmetry import verified as verified

__all__ = ["__version__", *_WHERE]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if not name.startswith("_") and importlib.util.find_spec(f"isthmus.{name}") is not None:
        return importlib.import_module(f"isthmus.{name}")
    raise AttributeError(f"module 'isthmus' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Index(ModuleType):
    """A verb stays a verb: importing the room `isthmus.align` does not take the name `align` from it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Index
