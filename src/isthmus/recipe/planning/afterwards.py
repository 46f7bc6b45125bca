"""`isthmus: {repair, evaluate, report}`: what a recipe asks for beyond the merge, and whether that can be done.

It takes a model that can be made and data to run it on (`rig.py`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isthmus.errors import InputError
from isthmus.recipe.language.ours import Ours
from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.language.text import Problems
from isthmus.recipe.planning.rig import DATA_HINT

_WAYS = ("repair", "evaluate", "report")

#: What each way reads of the recipe.
NEEDED: Mapping[str, tuple[str, ...]] = {
    "repair": ("model", "data", "calibration", "validation"),
    "evaluate": ("model", "data", "validation"),
}


@dataclass(frozen=True)
class Afterwards:
    """What is done with the merged model, all of it possible as far as headers and configurations tell.

    Args:
        ways: those of repair, evaluate and report that are asked for.
        repair: the repair with its options, if any.
        goals: whether the repair looks at the parents, as one that brings the merge to what they have.
        whole: whether each parent is a model of the output's shape, which can be run beside it.
    """

    ways: tuple[str, ...]
    repair: Mapping[str, object] | None
    goals: bool
    whole: bool


def read(recipe: Recipe, problems: Problems) -> Afterwards | None:
    """What a recipe asks for beyond the merge, or None.

    Args:
        recipe: as read.
        problems: told what is wrong.
    """
    ours = recipe.isthmus
    ways = tuple(way for way in _WAYS if getattr(ours, way) is not None)
    _check_report(ways, problems)
    if not ways or ways == ("report",):
        return None
    whole = all(part.slices is None for part in (recipe, *(recipe.modules or {}).values()))
    goals = _check_repair(ours, problems)
    if goals and not whole:
        problems.add(
            ("isthmus", "repair"),
            "it gives the merge what its parents have, and no parent has the layers of these slices",
            "repair: reset asks nothing of parents; or repair whole models, and cut the result into slices",
        )
    if ours.data is None:
        problems.add(
            ("isthmus", ways[0]),
            f"{ways[0]} runs the merged model on data, and the recipe names none",
            DATA_HINT,
        )
    return Afterwards(ways, ours.repair, goals, whole)


def check_of_use(ours: Ours, needed: Mapping[str, Sequence[str]], problems: Problems) -> None:
    """What is said for nothing is a mistake.

    Args:
        ours: the recipe's block.
        needed: what reads the keys that name models and data, and which.
        problems: told of keys that nothing reads.
    """
    for key in ("model", "data", "calibration", "validation"):
        if key in ours.model_fields_set and not any(key in keys for keys in needed.values()):
            *ways, last = [way for way, keys in NEEDED.items() if key in keys] + ["an align that runs models"]
            problems.add(
                ("isthmus", key), f"{key} is for {', '.join(ways)} and {last}, and there is none here"
            )


def _check_report(asked: Sequence[str], problems: Problems) -> None:
    if "report" not in asked:
        return
    if "evaluate" not in asked:
        problems.add(("isthmus", "report"), "a report shows what was measured", "evaluate: accuracy, or loss")
    for package in ("jinja2", "plotly"):
        if importlib.util.find_spec(package) is None:
            problems.add(("isthmus", "report"), f"a report needs {package}", "pip install 'isthmus[report]'")


def _check_repair(ours: Ours, problems: Problems) -> bool:
    """Whether the repair that is asked for looks at the parents."""
    if ours.repair is None:
        return False
    from isthmus.repair.by_name import OF_MODELS, needs_of

    if ours.repair.get("allow_new_parameters"):
        problems.add(
            ("isthmus", "repair", "allow_new_parameters"),
            "a merged folder holds the tensors of its parents, and no others",
            "in Python, isthmus.merge(repair=...) returns such a model",
        )
    try:
        return not OF_MODELS.isdisjoint(needs_of(ours.repair))
    except InputError as error:
        problems.add(("isthmus", "repair"), "\n".join([error.what, *error.where]), error.hint)
        return False
