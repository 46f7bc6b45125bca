"""Text to a recipe, or to the list of everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from pydantic import BaseModel

from isthmus.recipe.language.dialect import METHODS, PARAMETERS
from isthmus.recipe.language.layers import UNKNOWN_LAYERS
from isthmus.recipe.language.mending import key, mended
from isthmus.recipe.language.methods import barred, method_of, own_names
from isthmus.recipe.language.parameters import Filtered, Preset
from isthmus.recipe.language.recipe import Module, Recipe
from isthmus.recipe.language.reference import UNKNOWN_MODEL
from isthmus.recipe.language.text import Problems, Where, nearest, parse, read_file


def read(path: str | Path) -> Recipe:
    """Read a recipe file; nothing but the file itself is looked at.

    Args:
        path: a `.yml` or `.yaml` file.

    Raises:
        InputError: every problem that the text alone has, with its line.
    """
    recipe, problems = examine(read_file(Path(path)), Path(path).name)
    problems.check()
    assert recipe is not None
    return recipe


def examine(text: str, name: str) -> tuple[Recipe | None, Problems]:
    """Read a recipe, and go on past what is wrong with it as far as makes sense.

    Args:
        text: YAML.
        name: what problems call it.

    Returns:
        The recipe less what is wrong in it, or None where too little is left; and what is wrong.

    Raises:
        InputError: it is no YAML at all.
    """
    data, problems = parse(text, name)
    if not isinstance(data, dict):
        problems.add((), "a recipe is a mapping: merge_method, models, ...")
        return None, problems
    recipe = mended(cast("dict[str, object]", data), problems)
    if recipe is not None:
        _check(recipe, problems)
    return recipe, problems


def _check(recipe: Recipe, problems: Problems) -> None:
    """What a schema cannot say: which keys exclude each other, which parameters a method takes."""
    _check_inputs(recipe, (), problems)
    for name, module in (recipe.modules or {}).items():
        _check_one_of(module, ("modules", name), ("models", "slices"), problems)
        _check_inputs(module, ("modules", name), problems)
    _check_one_of(recipe, (), ("models", "slices", "modules"), problems)
    if recipe.tokenizer is not None and recipe.tokenizer_source is not None:
        problems.add(("tokenizer_source",), "'tokenizer_source' and 'tokenizer' exclude each other")
    method = method_of(recipe.merge_method) if recipe.merge_method else None
    if recipe.merge_method and method is None:
        near = nearest(recipe.merge_method, {*METHODS, *own_names()})
        nowhere = f"no method is called {recipe.merge_method!r}{near}"
        problems.add(("merge_method",), *(barred(recipe.merge_method) or (nowhere, None)))
    based = recipe.base_model is not None or ("base_model",) in problems.gone or _slices_have_base(recipe)
    if method is not None and method.base == "required" and not based:
        problems.add(("merge_method",), f"{method.name} needs a base_model, and there is none")
    known = {*PARAMETERS, *(method.parameters if method else ())}
    for where, settings in recipe.settings():
        for name in settings:
            if name not in known:
                near = nearest(name, method.parameters if method and method.parameters else PARAMETERS)
                problems.add((*where, name), f"unknown parameter {name!r}{near}")
    _check_numbers(recipe, problems)
    models = {str(reference) for _, reference in recipe.references()}
    for i, block in enumerate(recipe.isthmus.blocks):
        if block.model is not None and str(block.model) not in models and UNKNOWN_MODEL not in models:
            what = f"{block.model} is no model of this recipe{nearest(str(block.model), models)}"
            problems.add(("isthmus", "blocks", i, "model"), what)


def _slices_have_base(recipe: Recipe) -> bool:
    parts: list[Module | Recipe] = [recipe, *(recipe.modules or {}).values()]
    slices = [piece for part in parts for piece in part.slices or ()]
    return bool(slices) and all(piece.base_model is not None for piece in slices)


def _check_one_of(part: BaseModel, where: Where, keys: tuple[str, ...], problems: Problems) -> None:
    given = [name for name in keys if getattr(part, name) is not None]
    wrong = any((*where, name) in problems.gone for name in keys)
    if len(given) > 1 or not (given or wrong):
        choice = f"{', '.join(keys[:-1])} or {keys[-1]}"
        place = (*where, given[1]) if given else where
        what = f"there is {' and '.join(given)}" if given else "there is none"
        problems.add(place, f"{key(where)} has exactly one of {choice}: {what}")


def _check_inputs(part: Recipe | Module, where: Where, problems: Problems) -> None:
    for name in ("models", "slices"):
        value = getattr(part, name)
        if value is not None and not value:
            problems.add((*where, name), f"{key((*where, name))} is empty")
    seen: dict[str, int] = {}
    for i, entry in enumerate(part.models or ()):
        text = str(entry.model)
        if text in seen and text != UNKNOWN_MODEL:
            first = problems.line((*where, "models", seen[text], "model"))
            problems.add((*where, "models", i, "model"), f"{text} is in the list already, at line {first}")
        seen.setdefault(text, i)
    for i, piece in enumerate(part.slices or ()):
        ranges = {j: s.layer_range for j, s in enumerate(piece.sources) if s.layer_range != UNKNOWN_LAYERS}
        lengths = {j: end - first for j, (first, end) in ranges.items()}
        if len(set(lengths.values())) > 1:
            at = next(j for j, length in lengths.items() if length != next(iter(lengths.values())))
            problems.add(
                (*where, "slices", i, "sources", at, "layer_range"),
                f"the sources of a slice have equally many layers; these have {', '.join(map(str, lengths.values()))}",
            )


def _check_numbers(recipe: Recipe, problems: Problems) -> None:
    """Values that no method can take, found before a tensor is."""
    for where, settings in recipe.settings():
        for name, setting in settings.items():
            parameter = PARAMETERS.get(name)
            if parameter is None:
                continue
            for step, value in _values(setting):
                if (said := parameter.wrong(value)) is not None:
                    problems.add((*where, name, *step), f"{name} {said}")


def _values(setting: object) -> list[tuple[Where, object]]:
    if isinstance(setting, Filtered):
        return [(("value", *step), value) for step, value in _values(setting.value)]
    if isinstance(setting, Preset):
        return [(("from",), setting.start), (("to",), setting.end)]
    if isinstance(setting, list):
        items = cast("list[object]", setting)
        return [((i, *step), value) for i, item in enumerate(items) for step, value in _values(item)]
    return [((), setting)]
