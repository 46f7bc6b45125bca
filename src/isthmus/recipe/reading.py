"""Text to a recipe, or to the list of everything that is wrong with it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from isthmus.recipe import schema
from isthmus.recipe.dialect import METHODS, PARAMETERS, method_of
from isthmus.recipe.schema import Recipe
from isthmus.recipe.text import Problems, Where, nearest, parse, read_file

# Words for pydantic's kinds of errors; {} is the offending value, {x} what its context calls x.
_WORDS = {
    "missing": "is missing",
    "string_type": "is {}, not text",
    "int_type": "is {}, not a whole number",
    "int_parsing": "is {}, not a whole number",
    "int_from_float": "is {}, not a whole number",
    "float_type": "is {}, not a number",
    "float_parsing": "is {}, not a number",
    "bool_type": "is {}, neither true nor false",
    "bool_parsing": "is {}, neither true nor false",
    "list_type": "is {}, not a list",
    "dict_type": "is {}, not a mapping",
    "model_type": "is {}, not a mapping",
    "model_attributes_type": "is {}, not a mapping",
    "too_short": "is empty",
    "greater_than_equal": "is {}, less than {ge}",
    "less_than": "is {}, not less than {lt}",
    "less_than_equal": "is {}, more than {le}",
    "literal_error": "is {}, not {expected}",
}


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
    recipe = _validated(cast("dict[str, object]", data), problems)
    if recipe is not None:
        _check(recipe, problems)
    return recipe, problems


def _validated(data: dict[str, object], problems: Problems) -> Recipe | None:
    """Validate, drop what is wrong, and validate the rest: so that later checks still find theirs."""
    rest = copy.deepcopy(data)
    dropped: set[Where] = set()
    for _ in range(50):  # each round drops at least one thing, or ends
        try:
            return Recipe.model_validate(rest)
        except ValidationError as error:
            before = len(dropped)
            found = [(_place(rest, entry["loc"]), entry) for entry in error.errors(include_url=False)]
            for where, entry in found:
                if where not in dropped:
                    problems.add(where, _message(cast("dict[str, Any]", entry), where))
                # What is missing cannot be dropped: what it is missing from can.
                gone = _drop(rest, where if entry["type"] != "missing" else where[:-1])
                dropped.update(gone)
            if len(dropped) == before:
                return None
        except RecursionError:
            problems.add((), "it is nested too deep")
            return None
    return None


def _place(data: object, location: Sequence[str | int]) -> Where:
    """pydantic's place as the YAML's: without the names of alternatives, and of what validates a key."""
    where: list[str | int] = []
    here = data
    for step in location:
        if isinstance(here, Mapping):
            entries = cast("Mapping[str | int, object]", here)
            if step not in entries and (str(step).startswith(schema.TAG) or step == "[key]"):
                continue
            where.append(step)
            here = entries.get(step)
        elif isinstance(here, list):
            items = cast("list[object]", here)
            if not isinstance(step, int):
                continue
            where.append(step)
            here = items[step] if step < len(items) else None
    return tuple(where)


def _message(entry: dict[str, Any], where: Where) -> str:
    kind, value, key = entry["type"], entry.get("input"), _key(where)
    if kind == "extra_forbidden":
        return f"unknown key {str(where[-1])!r}{nearest(str(where[-1]), _keys(where[:-1]))}"
    if kind == "value_error":
        said = str(entry["ctx"]["error"])
        return f"{key}: {said}"
    if kind in _WORDS:
        return f"{key} {_WORDS[kind].format(_short(value), **entry.get('ctx', {}))}"
    return f"{key}: {entry['msg'][0].lower()}{entry['msg'][1:]}"


def _key(where: Where) -> str:
    """`models[1].model`, from the innermost key that has a name of its own."""
    text = ""
    for step in where:
        text += f"[{step}]" if isinstance(step, int) else (f".{step}" if text else step)
    return text or "the recipe"


def _short(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _keys(where: Where) -> set[str]:
    """The keys that are known at a place."""
    last = next((step for step in reversed(where) if isinstance(step, str)), None)
    named: dict[str | None, type[BaseModel]] = {
        None: Recipe,
        "models": schema.Input,
        "slices": schema.Slice,
        "sources": schema.SliceInput,
        "tokenizer": schema.Tokenizer,
        "isthmus": schema.Ours,
        "limits": schema.Limits,
        "blocks": schema.Block,
    }
    kind = named.get(last)
    if kind is None and len(where) >= 2 and where[-2] in ("tokens", "modules"):
        kind = schema.Token if where[-2] == "tokens" else schema.Module
    if kind is None and "parameters" in where:
        kind = schema.Preset if "blocks" in where else schema.Filtered
    if kind is None and last == "source":
        kind = schema.ModelToken
    if kind is None:
        return set()
    return {field.alias or name for name, field in kind.model_fields.items()}


# What stands in for a thing that cannot be left out, so that the rest can still be looked at.
_STAND_INS: dict[str, object] = {"merge_method": "", "model": "?"}


def _drop(data: dict[str, object], where: Where) -> set[Where]:
    """Take one thing out of the data, or the nearest thing around it that a key names.

    Items of lists stay where they are, since problems are told by their index.

    Returns:
        The places that are gone and need not be missed; empty if nothing could be dropped.
    """
    here: object = data
    holders: list[tuple[dict[str, object], Where]] = []
    for depth, step in enumerate(where):
        if isinstance(here, dict):
            entries = here
            if step in entries:
                holders.append((entries, where[: depth + 1]))
            here = entries.get(str(step))
        elif isinstance(here, list) and isinstance(step, int) and step < len(cast("list[object]", here)):
            here = cast("list[object]", here)[step]
    if isinstance(here, dict) and (not holders or len(holders[-1][1]) < len(where)):
        # An item of a list, or the recipe, that lacks something.
        entries = cast("dict[str, object]", here)
        for name, value in _STAND_INS.items():
            if name not in entries and (name == "model") == bool(where):
                entries[name] = value
                return {(*where, name)}
    if not holders:
        return set()
    entries, place = holders[-1]
    name = str(place[-1])
    if name in _STAND_INS and entries[name] != _STAND_INS[name] and len(place) == len(where):
        entries[name] = _STAND_INS[name]
    else:
        del entries[name]
    return {place}


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
        from isthmus.recipe.own import names

        near = nearest(recipe.merge_method, {*METHODS, *names()})
        problems.add(("merge_method",), f"no method is called {recipe.merge_method!r}{near}")
    based = recipe.base_model is not None or _slices_have_base(recipe)
    if method is not None and method.base == "required" and not based:
        problems.add(("merge_method",), f"{method.name} needs a base_model, and there is none")
    known = {*PARAMETERS, *(method.parameters if method else ())}
    for where, settings in recipe.settings():
        for name in settings:
            if name not in known:
                near = nearest(name, method.parameters if method and method.parameters else PARAMETERS)
                problems.add((*where, name), f"unknown parameter {name!r}{near}")
    _check_numbers(recipe, problems)


def _slices_have_base(recipe: Recipe) -> bool:
    parts: list[schema.Module | Recipe] = [recipe, *(recipe.modules or {}).values()]
    slices = [piece for part in parts for piece in part.slices or ()]
    return bool(slices) and all(piece.base_model is not None for piece in slices)


def _check_one_of(part: BaseModel, where: Where, keys: tuple[str, ...], problems: Problems) -> None:
    given = [key for key in keys if getattr(part, key) is not None]
    if len(given) != 1:
        choice = f"{', '.join(keys[:-1])} or {keys[-1]}"
        place = (*where, given[1]) if given else where
        what = f"there is {' and '.join(given)}" if given else "there is none"
        problems.add(place, f"{_key(where)} has exactly one of {choice}: {what}")


def _check_inputs(part: Recipe | schema.Module, where: Where, problems: Problems) -> None:
    for key in ("models", "slices"):
        value = getattr(part, key)
        if value is not None and not value:
            problems.add((*where, key), f"{_key((*where, key))} is empty")
    seen: dict[str, int] = {}
    for i, entry in enumerate(part.models or ()):
        text = str(entry.model)
        if text in seen:
            first = problems.line((*where, "models", seen[text], "model"))
            problems.add((*where, "models", i, "model"), f"{text} is in the list already, at line {first}")
        seen.setdefault(text, i)
    for i, piece in enumerate(part.slices or ()):
        lengths = [source.layer_range[1] - source.layer_range[0] for source in piece.sources]
        if len(set(lengths)) > 1:
            at = next(j for j, length in enumerate(lengths) if length != lengths[0])
            problems.add(
                (*where, "slices", i, "sources", at, "layer_range"),
                f"the sources of a slice have equally many layers; these have {', '.join(map(str, lengths))}",
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
    if isinstance(setting, schema.Filtered):
        return [(("value", *step), value) for step, value in _values(setting.value)]
    if isinstance(setting, schema.Preset):
        return [(("from",), setting.start), (("to",), setting.end)]
    if isinstance(setting, list):
        items = cast("list[object]", setting)
        return [((i, *step), value) for i, item in enumerate(items) for step, value in _values(item)]
    return [((), setting)]
