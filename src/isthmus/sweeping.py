"""A recipe run at every point of a grid, each result scored."""

from __future__ import annotations

import copy
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import yaml

from isthmus import progress
from isthmus import weights as files
from isthmus.errors import InputError, IsthmusError
from isthmus.recipe.language.text import parse, read_file
from isthmus.recipe.parents.content import content_hash
from isthmus.recipe.plan import Plan, plan_text
from isthmus.search import Scores, Searched, Step
from isthmus.search.scores import OnError, Scoring

Data = dict[str, object]


def sweep_recipe(
    path: str | os.PathLike[str],
    score: Scoring,
    over: Mapping[str, Sequence[object]],
    folder: str | os.PathLike[str],
    *,
    score_name: str | None = None,
    on_error: OnError = "raise",
) -> tuple[Searched, Path]:
    """Run a recipe with each combination of values, and score what comes out.

    All recipes are checked before the first is run. A value takes the place of what the recipe says of that name,
    wherever it does; where it does not, it is set for the whole merge. Results are written to a folder of their own
    and removed once scored; the best is made again at the end.

    Args:
        path: the recipe.
        score: a function of weights, higher is better.
        over: name of a parameter ("density"), or "method" -> values to try, in the recipe's own words.
        folder: where scores, the best recipe (`best.yml`) and the best merge (`best/`) are kept.
        score_name: what the score is called where its values are kept.
        on_error: what to do with a candidate without a score: "raise" or "skip".

    Returns:
        The search, whose weights are mapped from the best merge; and where that is.

    Raises:
        InputError: a recipe is wrong at some point, all points at once; or no point has a score.
    """
    path, folder = Path(path), Path(folder)
    text = read_file(path)
    data, problems = parse(text, path.name)
    problems.check()
    if not isinstance(data, dict):
        raise InputError(f"{path.name} is no recipe: a recipe is a mapping")
    if empty := [name for name, values in over.items() if not values]:
        raise InputError("a sweep needs values to try", [f"{name} has none" for name in empty])
    points = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    plans = _plans(path, cast("Data", data), points)
    scores = Scores(score, folder=folder, called=score_name, on_error=on_error)
    hashes = _hashes(plans)
    steps: list[Step] = []
    best: tuple[float, int] | None = None
    for index, (point, plan) in enumerate(
        progress.track(list(zip(points, plans, strict=True)), "sweep", unit="merges")
    ):
        label = ", ".join(f"{name}={value}" for name, value in point.items())
        with _Scratch(folder / ".merge") as room:

            def made(plan: Plan = plan, room: Path = room) -> Mapping[str, object]:
                plan.run(room)
                return files.open(room)

            scored = scores.of({"recipe": plan.text, "parents": hashes}, made, label)  # type: ignore[arg-type]
        better = scored.value is not None and (best is None or scored.value > best[0])
        if better and scored.value is not None:
            best = scored.value, index
        step = Step(label, point, scored.value, better, None, scored.cached, scored.seconds, scored.note)
        steps.append(replace(step, best=None if best is None else best[0]))
    if best is None:
        raise InputError("no point of the sweep has a score", [f"{s.label}: {s.note}" for s in steps])
    value, index = best
    out = _keep(plans[index], folder)
    skipped = sum(step.score is None for step in steps)
    found = Searched(
        kind="sweep",
        weights=dict(files.open(out)),
        score=value,
        chosen=points[index],
        steps=tuple(steps),
        members=tuple(plans[index].parents),
        settings={"recipe": path.name, "over": {name: list(values) for name, values in over.items()}},
        notes=(f"{skipped} candidates have no score and were skipped",) if skipped else (),
        by=scores.called,
    )
    return found, out


def hyphenated(name: object) -> str:
    """A method's name as ours are written: recipes write underscores."""
    return str(name).replace("_", "-")


def _plans(path: Path, data: Data, points: Sequence[Mapping[str, object]]) -> list[Plan]:
    """The plan of every point; what is wrong with any, each line once."""
    plans: list[Plan] = []
    wrong: dict[str, None] = {}
    for point in points:
        varied = _varied(data, point)
        text = yaml.safe_dump(varied, sort_keys=False)
        try:
            plans.append(plan_text(text, path.name, path, (Path(), path.parent)))
        except IsthmusError as error:
            said = ", ".join(f"{name}={value}" for name, value in point.items())
            wrong |= dict.fromkeys([f"{said}: {error.what}", *(f"  {line}" for line in error.where)])
    known = [plan.method.parameters for plan in plans]
    for name in points[0]:
        if name not in ("method", "merge_method") and all(known) and not any(name in k for k in known):
            rules = ", ".join(dict.fromkeys(plan.method.name for plan in plans))
            wrong[f"{name}: no such parameter of {rules}"] = None
    if wrong:
        raise InputError(f"{path.name} cannot be swept", list(wrong), hint="no merge was begun")
    return plans


def _varied(data: Data, point: Mapping[str, object]) -> Data:
    made = copy.deepcopy(data)
    for name, value in point.items():
        if name in ("method", "merge_method"):
            made["merge_method"] = value
            continue
        places = [parameters for parameters in _parameters(made) if name in parameters]
        if not places:
            places = [cast("Data", made.setdefault("parameters", {}))]
        for parameters in places:
            parameters[name] = value
    return made


def _parameters(value: object) -> Iterator[Data]:
    """Every mapping that is called `parameters`, however deep."""
    if isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _parameters(item)
    if isinstance(value, dict):
        for key, item in cast("Data", value).items():
            if key == "parameters" and isinstance(item, dict):
                yield cast("Data", item)
            else:
                yield from _parameters(item)


def _hashes(plans: Sequence[Plan]) -> dict[str, str]:
    """What the parents' bytes are, adapters included."""
    found: dict[str, str] = {}
    for plan in plans:
        for name, parent in plan.parents.items():
            if name not in found:
                adapter = () if parent.adapter is None else (parent.adapter.path,)
                found[name] = content_hash((*parent.checkpoint.files, *adapter))
    return found


class _Scratch:
    """A folder that is empty before and gone after."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> Path:
        shutil.rmtree(self._path, ignore_errors=True)
        return self._path

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


def _keep(plan: Plan, folder: Path) -> Path:
    """The best recipe and its merge; a merge of the same recipe that is there already is not made again."""
    out, recipe = folder / "best", folder / "best.yml"
    if out.is_dir() and recipe.is_file() and recipe.read_text(encoding="utf-8") == plan.text:
        return out
    recipe.unlink(missing_ok=True)
    shutil.rmtree(out, ignore_errors=True)
    plan.run(out)
    with files.atomic(recipe) as file:
        file.write(plan.text.encode())
    return out
