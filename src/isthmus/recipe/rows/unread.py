"""Parameters of a recipe that nothing reads, each with its place."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from isthmus.recipe.language.dialect import METHODS, Method
from isthmus.recipe.language.recipe import Input, Recipe
from isthmus.recipe.language.text import Problems, Where, near

# What mergekit reads for a method that has no use for it: plain task vectors are not trimmed.
_IDLE = {"task_arithmetic": ("density", "rescale")}


def unread(recipe: Recipe, method: Method, problems: Problems) -> list[str]:
    """What is given in vain, a line each.

    Args:
        recipe: as read.
        method: by which tensors are merged.
        problems: knows the lines.
    """
    here = ", as in mergekit" if method.name in METHODS else ""
    given: dict[str, set[int]] = {}
    for where, settings in recipe.settings():
        for name in settings:
            given.setdefault(name, set()).add(problems.line((*where, name)))
    notes: list[str] = []
    if other := sorted(given.keys() - method.parameters.keys()):
        told = [f"{name} ({_lines(given[name])}{_meant(name, method)})" for name in other]
        notes.append(f"{method.name} does not read {', '.join(told)}")
    if idle := [name for name in _IDLE.get(method.name, ()) if name in given]:
        notes.append(f"{method.name} trims nothing: no weight depends on {', '.join(idle)}, as in mergekit")
    for where, model, settings, based in _beside(recipe, method):
        line = problems.line((*where, "parameters"))
        if based:
            notes.append(
                f"{model} is the base: {_listed(settings)} at line {line} {_are(settings)} not read{here}"
            )
            continue
        common = [name for name in settings if name in method.parameters and name not in method.per_model]
        if common:
            of = f"{method.name} has one for all models, not one of {model}"
            notes.append(f"{_listed(common)} at line {line} {_are(common)} not read: {of}{here}")
    pieces = [piece for part in (recipe, *(recipe.modules or {}).values()) for piece in part.slices or ()]
    if any(piece.residual_weight is not None for piece in pieces):
        notes.append("residual_weight is read by no method, here as in mergekit")
    return notes


def misplaced(recipe: Recipe, name: str, method: Method, problems: Problems) -> str | None:
    """A hint for a parameter that is missing, where it is only given beside models that do not have it."""
    lines = [
        problems.line((*where, "parameters", name))
        for where, _, settings, _ in _beside(recipe, method)
        if name in settings and name not in method.per_model
    ]
    return (
        f"{name} at line {lines[0]} is one model's: write it under the recipe's `parameters`"
        if lines
        else None
    )


def _listed(names: Collection[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _are(names: Collection[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _meant(name: str, method: Method) -> str:
    found = near(name, method.parameters)
    return "" if found is None else f"; did you mean {found!r}?"


def _lines(numbers: Collection[int]) -> str:
    return f"{'line' if len(numbers) == 1 else 'lines'} {', '.join(map(str, sorted(numbers)))}"


def _beside(recipe: Recipe, method: Method) -> Iterator[tuple[Where, str, Mapping[str, object], bool]]:
    """Parameters beside a model: its place, its name, what is given, and whether it is the base that has none."""
    parts = [((), recipe), *((("modules", name), module) for name, module in (recipe.modules or {}).items())]
    for where, part in parts:
        lists: list[tuple[Where, Sequence[Input], str]] = []
        if part.models:
            lists.append(((*where, "models"), part.models, str(recipe.base_model)))
        for i, piece in enumerate(part.slices or ()):
            base = str(piece.base_model or recipe.base_model)
            lists.append(((*where, "slices", i, "sources"), piece.sources, base))
        for place, entries, base in lists:
            names = [str(entry.model) for entry in entries]
            # The same model twice in a slice: the first is the base.
            reference = names.index(base) if method.base != "none" and base in names else None
            for i, entry in enumerate(entries):
                if entry.parameters:
                    yield (*place, i), names[i], entry.parameters, i == reference
