"""What is left of a recipe when what is wrong in it is taken out, so that the rest is looked at all the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from isthmus.recipe.language.layers import UNKNOWN_LAYERS
from isthmus.recipe.language.ours import Block, Limits, Ours
from isthmus.recipe.language.parameters import TAG, Filtered, Preset
from isthmus.recipe.language.recipe import Input, Module, Recipe, Slice, SliceInput
from isthmus.recipe.language.reference import UNKNOWN_MODEL
from isthmus.recipe.language.text import Problems, Where, near, nearest
from isthmus.recipe.language.tokens import ModelToken, Token, Tokenizer

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


# What stands in for a thing that its surroundings cannot be without, in the lists that models are in.
_SOURCE: dict[str, object] = {"model": UNKNOWN_MODEL, "layer_range": list(UNKNOWN_LAYERS)}


_STAND_INS: dict[str, object] = {**_SOURCE, "sources": [_SOURCE]}
# The same for an item of such a list. Items stay where they are, since problems are told by their index.
_ITEMS: dict[str, object] = {
    "models": {"model": UNKNOWN_MODEL}, "slices": {"sources": [_SOURCE]}, "sources": _SOURCE,
    "blocks": {"parameters": {}},
}  # fmt: skip


def mended(data: dict[str, object], problems: Problems) -> Recipe | None:
    """Validate, take out what is wrong, and validate the rest: so that later checks still find theirs.

    Args:
        data: as it was parsed.
        problems: told what is wrong, and what was taken out.

    Returns:
        The recipe less what is wrong in it, or None where too little is left.
    """
    rest = copy.deepcopy(data)
    meant: set[Where] = set()
    for _ in range(50):  # each round takes out or renames at least one thing, or ends
        try:
            return Recipe.model_validate(rest)
        except ValidationError as error:
            before = len(problems.gone) + len(meant)
            found = [
                (_place(rest, entry["loc"]), cast("dict[str, Any]", entry))
                for entry in error.errors(include_url=False)
            ]
            renamed = {
                w: n for w, entry in found if (n := _renamed(rest, w, entry["type"], problems)) is not None
            }
            meant.update(renamed.values())
            for where, entry in found:
                if where in meant and entry["type"] == "missing":
                    continue  # it is there, misspelt
                if where not in problems.gone and where not in meant:
                    problems.add(where, _message(entry, where))
                if where not in renamed:
                    problems.gone.update(_taken_out(rest, where, entry["type"] == "missing"))
            if len(problems.gone) + len(meant) == before:
                return None
        except RecursionError:
            problems.add((), "it is nested too deep")
            return None
    return None


def _renamed(data: dict[str, object], where: Where, kind: str, problems: Problems) -> Where | None:
    """Take a key for the one that was meant, if it is near one that is not given, so that what is below is read.

    Returns:
        The place that it now has, or None.
    """
    if kind != "extra_forbidden":
        return None
    holder, name = _at(data, where[:-1]), near(str(where[-1]), _keys(where[:-1]))
    if name is None or not isinstance(holder, dict) or name in holder:
        return None
    entries = cast("dict[str | int, object]", holder)
    entries[name] = entries.pop(where[-1])
    place = (*where[:-1], name)
    for known, line in list(problems.lines.items()):
        if known[: len(where)] == where:
            problems.lines.setdefault((*place, *known[len(where) :]), line)
    return place


def _place(data: object, location: Sequence[str | int]) -> Where:
    """pydantic's place as the YAML's: without the names of alternatives, and of what validates a key."""
    where: list[str | int] = []
    here = data
    for step in location:
        if isinstance(here, Mapping):
            entries = cast("Mapping[str | int, object]", here)
            if step not in entries and (str(step).startswith(TAG) or step == "[key]"):
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
    kind, value, name = entry["type"], entry.get("input"), key(where)
    if kind == "extra_forbidden":
        return f"unknown key {str(where[-1])!r}{nearest(str(where[-1]), _keys(where[:-1]))}"
    if kind == "value_error":
        said = str(entry["ctx"]["error"])
        return f"{name}: {said}"
    if kind in _WORDS:
        return f"{name} {_WORDS[kind].format(_short(value), **entry.get('ctx', {}))}"
    return f"{name}: {entry['msg'][0].lower()}{entry['msg'][1:]}"


def key(where: Where) -> str:
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
        "models": Input,
        "slices": Slice,
        "sources": SliceInput,
        "tokenizer": Tokenizer,
        "isthmus": Ours,
        "limits": Limits,
        "blocks": Block,
    }
    kind = named.get(last)
    if kind is None and len(where) >= 2 and where[-2] in ("tokens", "modules"):
        kind = Token if where[-2] == "tokens" else Module
    if kind is None and "parameters" in where:
        kind = Preset if "blocks" in where else Filtered
    if kind is None and last == "source":
        kind = ModelToken
    if kind is None:
        return set()
    return {field.alias or name for name, field in kind.model_fields.items()}


def _at(data: object, where: Where) -> object:
    """What is at a place; None where there is nothing."""
    for step in where:
        if isinstance(data, dict):
            data = cast("dict[str | int, object]", data).get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(cast("list[object]", data)):
            data = cast("list[object]", data)[step]
        else:
            return None
    return data


def _stand_in(place: Where) -> object | None:
    """What takes the place of a thing that cannot just be left out; None where it can."""
    if place == ("merge_method",):
        return ""
    if isinstance(place[-1], int):
        return copy.deepcopy(_ITEMS.get(str(place[-2])))
    return copy.deepcopy(_STAND_INS.get(place[-1])) if place[0] in ("models", "slices", "modules") else None


def _taken_out(data: dict[str, object], where: Where, missing: bool) -> set[Where]:
    """Take one thing out of the data, or the nearest thing around it that can be taken out.

    Args:
        data: is changed.
        where: the thing.
        missing: whether it is not there: then something stands in for it, or what lacks it goes.

    Returns:
        The place that is gone and need not be missed; empty if nothing could be done.
    """
    if missing:
        holder, stand = _at(data, where[:-1]), _stand_in(where)
        if isinstance(holder, dict) and stand is not None:
            cast("dict[str | int, object]", holder)[where[-1]] = stand
            return {where}
        where = where[:-1]
    for depth in range(len(where), 0, -1):
        place, step = where[:depth], where[depth - 1]
        holder, stand = _at(data, place[:-1]), _stand_in(place)
        replaced = stand is not None and depth == len(where) and _at(data, place) != stand
        if isinstance(holder, dict) and step in holder:
            entries = cast("dict[str | int, object]", holder)
            if replaced:
                entries[step] = stand
            else:
                del entries[step]
            return {place}
        if isinstance(holder, list) and isinstance(step, int) and replaced:
            cast("list[object]", holder)[step] = stand
            return {place}
    return set()
