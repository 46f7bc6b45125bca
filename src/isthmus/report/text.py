"""Numbers and names as people read them, the same on the page and in the terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

NOT_MEASURED = "–"
NOT_FINITE = "n/a"
MINUS = "−"


def fixed(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A number with so many decimals: 84.68; with `sign`, +1.20."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return NOT_FINITE
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:  # "-0.00" says that something fell
        text = f"{0:.{digits}f}"
    return text.replace("-", MINUS)


def percent(value: float | None, spread: float | None = None, digits: int = 2) -> str:
    """A fraction in percent, without the sign: 84.68, or 84.68 ± 0.85."""
    text = fixed(None if value is None else 100 * value, digits)
    if spread is None or text in (NOT_MEASURED, NOT_FINITE):
        return text
    return f"{text} ± {fixed(100 * spread, digits)}"


def number(value: float | None, digits: int = 4) -> str:
    """A number to so many significant digits, in the shorter of plain and scientific: 0.4312, 3.1e-13."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return NOT_FINITE
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS, 1 if value < 0 else 0)
    if abs(value) >= 10**digits:
        return f"{value:,.0f}".replace("-", MINUS)
    return f"{value:.{digits}g}".replace("-", MINUS)


def loss(value: float | None) -> str:
    """A loss: four decimals where they say something, else significant digits."""
    if value is None or not math.isfinite(value) or not 1e-2 <= abs(value) < 1e3:
        return number(value)
    return fixed(value, 4)


def together(values: Sequence[float | None], digits: int = 4) -> list[str]:
    """Numbers of one column: as many decimals each as the largest needs, so that they can be compared.

    Where the smallest would lose its meaning by that, each has its own significant digits.
    """
    sizes = [abs(v) for v in values if v is not None and math.isfinite(v) and v != 0]
    if not sizes or max(sizes) >= 1e6 or min(sizes) < 1e-3:
        return [number(v, digits) for v in values]
    decimals = max(0, digits - 1 - math.floor(math.log10(max(sizes))))
    if min(sizes) < 10 ** (1 - decimals):
        return [number(v, digits) for v in values]
    return [fixed(v, decimals) for v in values]


def times(value: float | None) -> str:
    """A ratio: 1.20×."""
    text = fixed(value)
    return text if text in (NOT_MEASURED, NOT_FINITE) else f"{text}×"


def value(item: object) -> str:
    """A setting's value as it would be typed."""
    if isinstance(item, (list, tuple)):
        return ", ".join(value(each) for each in item)
    if item is None:
        return "none"
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, float):
        return f"{item:g}" if math.isfinite(item) else NOT_FINITE
    if isinstance(item, str) and not item:
        return '""'
    return str(item)


def name(text: str) -> str:
    """Text that can be printed: white space is a space; control and direction-changing characters are �.

    A checkpoint's name is somebody else's text: on a terminal, an escape sequence in it would act.
    """
    return "".join(
        " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _UNPRINTABLE else c
        for c in text
    )


_UNPRINTABLE = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))


def short(text: str, length: int) -> str:
    """A name cut to a length, in the middle: both ends of a checkpoint's name tell it apart."""
    text = name(text)
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"
