"""What options may be: one of a few words, or numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_origin

import numpy as np

from isthmus.errors import InputError
from isthmus.registry import hints_of, kinds, misfit


def checked(name: str, function: Callable[..., object], options: Mapping[str, object]) -> dict[str, object]:
    """Refuse what is no number, or none that is finite, for options that are numbers; words are the method's to check.

    Args:
        name: of the method.
        function: whose options they are; its annotations say what it takes.
        options: as they are asked for.

    Returns:
        The options, numbers of numpy as those of Python.

    Raises:
        InputError: all such options are listed.

    Examples:
        >>> from isthmus.align.choices import checked
        >>> def fit(*, steps: int = 5, rate: float = 0.1): ...
        >>> checked("fit", fit, {"steps": 2.5, "rate": float("nan")})
        Traceback (most recent call last):
            ...
        isthmus.errors.InputError: options of fit take other values
          steps is 2.5, not a whole number
          rate is nan, which is not finite
    """
    hints = hints_of(function)
    found = {option: v.item() if isinstance(v, np.generic) else v for option, v in options.items()}
    problems: list[str] = []
    for option, value in found.items():
        known = kinds(hints.get(option))
        if isinstance(value, float) and not math.isfinite(value):
            problems.append(f"{option} is {value}, which is not finite")
        elif not any(get_origin(kind) is Literal for kind in known) and (
            said := misfit(option, value, known)
        ):
            problems.append(said)
    if problems:
        raise InputError(f"options of {name} take other values", problems)
    return found


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of an option's.

    Raises:
        InputError: the choices are listed.

    Examples:
        >>> from isthmus.align.choices import check_choice
        >>> check_choice("fit", "best", ("norms", "least-squares"))
        Traceback (most recent call last):
            ...
        isthmus.errors.InputError: fit = 'best' is none of 'norms', 'least-squares'
    """
    if value not in choices:
        raise InputError(f"{name} = {value!r} is none of {', '.join(map(repr, choices))}")
