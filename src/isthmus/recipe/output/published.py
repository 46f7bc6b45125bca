"""What a published model says of where its parents were: names, without the folders of this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

import yaml

from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.parents.parent import Parent
from isthmus.recipe.parents.places import exists


def public_name(parent: Parent) -> str:
    """A model's name without the folders of this machine: hub ids as they are, paths by their last part."""
    said = parent.reference
    model = f"{parent.name}@{said.revision}" if said.revision else parent.name
    if not said.lora:
        return model
    return f"{model}+{said.lora if said.lora in parent.ids else Path(said.lora).name}"


def public_text(recipe: Recipe, text: str) -> str:
    """A recipe's text with its absolute paths shortened as `shortener` does; all else, comments too, as written.

    Args:
        recipe: as read.
        text: as written.
    """
    shorten = shortener(recipe)
    parts: list[str] = []
    done = 0
    for token in cast("Iterable[object]", yaml.scan(text, Loader=yaml.SafeLoader)):
        if isinstance(token, yaml.ScalarToken) and (short := shorten(str(token.value))) != token.value:
            # A block of lines takes its last end of line along.
            end = "\n" if token.style in ("|", ">") else ""
            parts += [text[done : token.start_mark.index], json.dumps(short, ensure_ascii=False) + end]
            done = token.end_mark.index
    return "".join([*parts, text[done:]])


def shortener(recipe: Recipe) -> Callable[[str], str]:
    """What shortens the absolute paths of a recipe wherever they stand in a text.

    They are told from the deepest folder that holds all of them, so that a merge made again finds them under that
    folder, as it does in one that holds them side by side. Where that would tell of folders above the user's home,
    only their last parts are told. What would then be called alike keeps more of its folders.

    Args:
        recipe: as read.
    """
    named = [t for _, model in recipe.references() for t in (model.path, model.lora) if t is not None]
    asked = recipe.isthmus.model_dump(mode="json", include={"align", "model", "data", "repair"})
    # Only what exists: an option may look like a path and be none.
    beside = [text for text in _mentioned(asked) if exists(Path(text).expanduser())]
    places = {text: place for text in (*named, *beside) if (place := _absolute(text)) is not None}
    if not places:
        return lambda text: text
    short = _shortened(set(places.values()), set(named) - set(places))
    longest = sorted(places, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w.~-])({'|'.join(map(re.escape, longest))})(?![\w.-])")
    return lambda text: pattern.sub(lambda match: short[places[match[1]]], text)


def _absolute(text: str) -> Path | None:
    try:
        place = Path(os.path.normpath(Path(text).expanduser()))
    except RuntimeError:  # ~ of nobody
        return None
    return place if place.is_absolute() and place.name else None


def _mentioned(value: object) -> Iterator[str]:
    """Absolute paths within settings: whole texts, and what follows a colon or an equals sign (`npz:FILE`)."""
    if isinstance(value, Mapping):
        value = list(cast("Mapping[object, object]", value).values())
    if isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _mentioned(item)
    if isinstance(value, str):
        parts = (
            value,
            value.partition(":")[2],
            *(re.split("[:=]", word, maxsplit=1)[-1] for word in value.split()),
        )
        yield from (part for part in parts if _absolute(part) is not None)


def _shortened(places: set[Path], taken: set[str]) -> dict[Path, str]:
    """Names of places that differ from each other and from those that are taken."""
    folder = _common(places)
    least = {place: len(place.relative_to(folder).parts) if folder else 1 for place in places}
    short: dict[Path, str] = {}
    for more in range(max(len(place.parts) for place in places)):
        short = {place: _tail(place, count + more) for place, count in least.items()}
        if len({*short.values()} - taken) == len(short):
            break
    return short


def _common(places: set[Path]) -> Path | None:
    """The deepest folder that holds all places; None where it is above the user's home, or there is none."""
    try:
        folder, home = Path(os.path.commonpath([place.parent for place in places])), Path.home()
    except (ValueError, RuntimeError):  # two drives; no home
        return None
    return None if home != folder and home.is_relative_to(folder) else folder


def _tail(place: Path, count: int) -> str:
    parts = place.relative_to(place.anchor).parts[-count:]
    # Two names with a slash between them would be an id of the hub.
    return parts[0] if len(parts) == 1 else "/".join((".", *parts))
