"""The short grid: which recipes are tried, and which is best at what size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from isthmus.measure.layers import depth_of_keys
from isthmus.program import Program
from isthmus.repair import REPAIRS
from isthmus.repair.by_name import OF_MODELS

#: How many times one parent's parameters a recipe may have.
BUDGETS = (1.0, 1.1, 1.2, 2.0)

#: How many of the repairs that were tried with one alignment are tried with another, and at each depth.
REPAIRS_KEPT = 3


@dataclass(frozen=True)
class Recipe:
    """One way to merge.

    Attributes:
        align: an alignment's name; None for none.
        repair: a repair's name; None for none.
        preserve_first: how many layers of every model are kept apart.
    """

    align: str | None = None
    repair: str | None = None
    preserve_first: int = 0

    @property
    def options(self) -> dict[str, object]:
        """Arguments of `isthmus.merge`, without those that are defaults."""
        given = {"align": self.align, "repair": self.repair, "preserve_first": self.preserve_first}
        return {name: value for name, value in given.items() if value}

    @property
    def flags(self) -> list[str]:
        """Options of `isthmus merge`, likewise."""
        return [word for n, v in self.options.items() for word in (f"--{n.replace('_', '-')}", str(v))]

    def __str__(self) -> str:
        count = f"{self.preserve_first} layers" if self.preserve_first > 1 else "layer"
        first = f"first {count} apart" if self.preserve_first else ""
        return " + ".join(filter(None, (self.align or "as they are", self.repair, first)))


@dataclass(frozen=True)
class Attempt:
    """What came of a recipe.

    Attributes:
        recipe: what was tried.
        parameters: relative to one parent; None where it failed.
        accuracy: on the small validation subset, a fraction; None where it failed.
        whole: accuracy on all of the validation data with all of the calibration data; None where it was not measured.
        refused: why it cannot be done; "" where it can.
    """

    recipe: Recipe
    parameters: float | None = None
    accuracy: float | None = None
    whole: float | None = None
    refused: str = ""

    @property
    def score(self) -> float:
        """The accuracy that there is, the whole one before the small one."""
        known = self.accuracy if self.whole is None else self.whole
        return -math.inf if known is None else known


def repairs() -> list[str]:
    """Every registered repair that needs nothing but data and the models."""
    return [row.name for row in REPAIRS.rows() if set(row.needs) <= {"data", *OF_MODELS}]


def first_round(related: bool) -> Iterator[Recipe]:
    """The plain average, and one alignment with every repair.

    Args:
        related: whether the models' units correspond as they are: then they are repaired as they are.
    """
    if not related:
        yield Recipe()
    for repair in (None, *repairs()):
        yield Recipe(None if related else "activation-matching", repair)


def second_round(related: bool, found: Sequence[Attempt]) -> Iterator[Recipe]:
    """Another alignment with the best repairs of the first round.

    Args:
        related: as in the first round.
        found: its attempts.
    """
    for repair in _best_repairs(found, None if related else "activation-matching"):
        yield Recipe("activation-matching" if related else "weight-matching", repair)


def third_round(found: Sequence[Attempt], depths: Iterable[int]) -> Iterator[Recipe]:
    """The best alignment with its best repairs, and the first layers apart.

    Args:
        found: attempts of the rounds before.
        depths: how many layers.
    """
    align = max(found, key=lambda a: a.score).recipe.align if found else None
    for depth in depths:
        for repair in _best_repairs(found, align):
            yield Recipe(align, repair, depth)


def _best_repairs(found: Sequence[Attempt], align: str | None) -> list[str | None]:
    """The best repairs of an alignment; none among them stands for no repair."""
    own = [a for a in found if a.recipe.align == align and not a.refused]
    return [a.recipe.repair for a in sorted(own, key=lambda a: -a.score)[:REPAIRS_KEPT]]


def affordable(program: Program, models: int, budgets: Iterable[float]) -> list[int]:
    """For each budget, the most layers that can be kept apart within it, without repetitions.

    Args:
        program: of one model.
        models: how many there are.
        budgets: relative to one parent's parameters.
    """
    depths = depth_of_keys(program)
    sizes = {key: math.prod(program.shapes[key]) for key in depths if key not in program.buffers}
    total = sum(sizes.values())

    def ratio(depth: int) -> float:
        return 1 + (models - 1) * sum(n for key, n in sizes.items() if depths[key] <= depth) / total

    # With every layer apart there is nothing left to merge: that is the ensemble.
    fits = [max((d for d in range(program.layers) if ratio(d) <= b), default=0) for b in budgets]
    return sorted({depth for depth in fits if depth})


def finalists(found: Sequence[Attempt], budgets: Iterable[float], each: int = 2) -> list[Attempt]:
    """The best attempts within each budget: what is worth measuring on all of the data."""
    chosen: dict[Recipe, Attempt] = {}
    for budget in budgets:
        chosen |= {a.recipe: a for a in within(found, budget)[:each]}
    return list(chosen.values())


def within(found: Iterable[Attempt], budget: float) -> list[Attempt]:
    """Attempts of at most so many parameters, best first; of equals the smaller, then the simpler."""

    def rank(attempt: Attempt) -> tuple[float, float, int]:
        return -attempt.score, attempt.parameters or 0.0, len(attempt.recipe.options)

    fits = (a for a in found if a.parameters is not None and a.parameters <= budget + 1e-9)
    return sorted((a for a in fits if a.accuracy is not None), key=rank)


def best_within(found: Sequence[Attempt], budgets: Iterable[float]) -> Mapping[float, Attempt]:
    """The best attempt within each budget, of those measured on all of the data where there are any."""
    whole = [a for a in found if a.whole is not None] or found
    return {budget: ranked[0] for budget in budgets if (ranked := within(whole, budget))}
