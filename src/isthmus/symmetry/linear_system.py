"""Homogeneous linear equations, solved as they arrive."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

Coefficients = dict[int, Fraction]


class System:
    """Unknowns 1, 2, ... and equations between them; each new equation eliminates its newest unknown.

    Args:
        modulus: 2 to count modulo two (signs), None to count in fractions (scales).
    """

    def __init__(self, modulus: int | None = None):
        self.modulus = modulus
        self.count = 0
        # Unknown -> the sum of older ones that it equals.
        self._solved: dict[int, Coefficients] = {}

    def new(self) -> int:
        """A fresh unknown."""
        self.count += 1
        return self.count

    def zero(self, unknown: int) -> None:
        """Let an unknown be zero."""
        self.add({unknown: Fraction(1)})

    def equate(self, one: int, other: int) -> None:
        """Let two unknowns be equal."""
        if one != other:
            self.add({one: Fraction(1), other: Fraction(-1)})

    def add(self, equation: Mapping[int, Fraction]) -> None:
        """Let a sum of multiples of unknowns be zero."""
        rest = self._reduce(equation)
        if not rest:
            return
        newest = max(rest)
        factor = rest.pop(newest)
        self._solved[newest] = self._clean({n: -c / factor for n, c in rest.items()})

    def value(self, unknown: int) -> Coefficients:
        """An unknown as a sum of multiples of those that are free; empty where it is zero."""
        if unknown not in self._solved:
            return {unknown: Fraction(1)}
        found = self._reduce(self._solved[unknown])
        self._solved[unknown] = found  # the next look is shorter
        return dict(found)

    def _reduce(self, equation: Mapping[int, Fraction]) -> Coefficients:
        rest = self._clean(equation)
        while True:
            known = [n for n in rest if n in self._solved]
            if not known:
                return rest
            # The newest first: what it stands for is older, so none comes back.
            newest = max(known)
            factor = rest.pop(newest)
            for n, c in self._solved[newest].items():
                rest[n] = rest.get(n, Fraction(0)) + factor * c
            rest = self._clean(rest)

    def _clean(self, equation: Mapping[int, Fraction]) -> Coefficients:
        if self.modulus is None:
            return {n: c for n, c in equation.items() if c}
        return {n: Fraction(1) for n, c in equation.items() if int(c) % self.modulus}
