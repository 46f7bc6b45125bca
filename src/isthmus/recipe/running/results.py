"""What a recipe came to on data, in the words of a report."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable

import torch

from isthmus.recipe.output.published import shortener
from isthmus.recipe.planning.planned import Planned
from isthmus.recipe.running.finished import Finished
from isthmus.report import Profile, Provenance, Results, Row, Setting


def results_of(plan: Planned, finished: Finished) -> Results:
    """The table of a merge by recipe: its parents, the merge as it came and repaired.

    Args:
        plan: that was run.
        finished: with scores on the test split.
    """
    ours, shorten = plan.recipe.isthmus, shortener(plan.recipe)
    rows = [
        Row(
            name=name,
            kind="merged" if name in finished.validation else "edge",
            accuracy=score.accuracy,
            loss=score.loss,
            validation=finished.validation[name].accuracy if name in finished.validation else None,
            note="written" if name == finished.chosen else "",
        )
        for name, score in finished.scores.items()
    ]
    chosen = finished.scores[finished.chosen]
    parents = [row.accuracy for row in rows if row.kind == "edge" and row.accuracy is not None]
    beside = f" where the parents average {100 * sum(parents) / len(parents):.2f}%" if parents else ""
    asked = ours.model_dump(mode="json", exclude={"limits", "blocks", "skip", "licence"}, exclude_none=True)
    return Results(
        title=plan.recipe.name or f"{plan.recipe.merge_method} of {len(plan.parents)} models",
        verdict=f"The {finished.chosen} model scores {100 * chosen.accuracy:.2f}%{beside} and guessing "
        f"{100 * chosen.chance:.2f}%.",
        rows=rows,
        profiles=_profiles(finished),
        settings=[
            Setting(name="merge_method", value=plan.recipe.merge_method, default=False),
            *(
                Setting(
                    name=f"isthmus.{key}",
                    value=_plain(value, shorten),
                    default=key not in ours.model_fields_set,
                )
                for key, value in asked.items()
            ),
        ],
        provenance=Provenance(
            isthmus=str(importlib.import_module("isthmus").__version__),  # the index lies above this room
            torch=torch.__version__,
            python=platform.python_version(),
            command=f"isthmus merge {plan.path.name}",
            seeds={"merge": ours.seed},
            splits=dict(finished.sizes),
            evaluated="test",
            chance=chosen.chance,
        ),
    )


def _profiles(finished: Finished) -> list[Profile]:
    """What the repair did, layer by layer, if there was one."""
    repaired = finished.repaired
    return [] if repaired is None or not repaired.changed else [Profile.gains(repaired, repaired.method)]


def _plain(value: object, shorten: Callable[[str], str]) -> str | int | float | bool:
    return value if isinstance(value, int | float | bool) else shorten(str(value))
