"""Options that are one of a few words."""

from __future__ import annotations

from isthmus.errors import InputError


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
