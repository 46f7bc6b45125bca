"""Options of a registered method as YAML gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from isthmus.recipe.language.text import Problems, Where, nearest
from isthmus.recipe.parents.places import find
from isthmus.registry import Method, hints_of, kinds, misfit

F = TypeVar("F", bound=Callable[..., object])


def read(
    method: Method[F],
    given: Mapping[str, object],
    where: Where,
    roots: Sequence[Path],
    inside: Path | None,
    problems: Problems,
) -> dict[str, object]:
    """Options as the method takes them: numbers that YAML reads as text are numbers, files are found.

    Args:
        method: a row of its table.
        given: by name, as written.
        where: they stand.
        roots: folders that relative paths begin in.
        inside: where given, no file outside this folder is named.
        problems: told of options that the method has not, and of values that they do not take.
    """
    hints = hints_of(method.function)
    taken: dict[str, object] = {}
    for name, value in given.items():
        place = (*where, name)
        if name not in method.options:
            known = nearest(name, method.options) if method.options else ", or any other"
            problems.add(place, f"{method.name} has no option {name!r}{known}")
            continue
        if name not in hints:
            taken[name] = value  # the method says it
            continue
        known = kinds(hints[name])
        if Path in known and isinstance(value, str):
            found = find(value, roots)
            outside = inside is not None and found and not found.resolve().is_relative_to(inside.resolve())
            if found is None or not found.is_file() or outside:
                problems.add(place, f"{name}: {value} does not exist")
            else:
                taken[name] = found.absolute()
            continue
        taken[name] = _number(value) if float in known else value
        if (said := _wrong(name, taken[name], known)) is not None:
            problems.add(place, said)
    return taken


def _wrong(name: str, value: object, known: Sequence[Any]) -> str | None:
    """Why an option cannot have a value, as far as its kinds tell; what is in a text or a list the method looks at."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} is {value}, which is not finite"
    if any(_is(value, kind) for kind in known) or (value is None and type(None) in known):
        return None
    # What no YAML can say, such as a function, is no kind here.
    plain = [kind for kind in known if kind in (bool, int, float) or get_origin(kind) is Literal]
    if not plain:
        return f"{name} is {value!r}, which is none of its values"
    said = misfit(name, value, plain)
    words = [str(word) for kind in plain if get_origin(kind) is Literal for word in get_args(kind)]
    near = nearest(value, words) if isinstance(value, str) and words else ""
    return said and said + (near if near.startswith(", did") else "")


def _is(value: object, kind: Any) -> bool:
    origin = get_origin(kind)
    if isinstance(value, str):
        return kind is str
    return isinstance(value, list | dict) and isinstance(origin, type) and isinstance(value, origin)


def _number(value: object) -> object:
    """A number as a float; YAML 1.1 takes 1e-3 for text."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            return value
        return number if math.isfinite(number) else value
    return value
