"""Our own rules in a recipe: whatever `isthmus methods` lists that mergekit has not.

Their parameters are the rules' options, one value per tensor; weights are per model. Asking what there is
imports torch, which a plan in mergekit's words does not.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from isthmus.errors import InputError
from isthmus.recipe.dialect import REQUIRED, Method

if TYPE_CHECKING:
    from isthmus.recipe.rows import Row
    from isthmus.recipe.schema import Recipe


def names() -> tuple[str, ...]:
    """Names of rules that need tensors and nothing else."""
    from isthmus.combine import COMBINATIONS, terms_of

    return tuple(name for name in COMBINATIONS.names() if terms_of(name).statistics != "needed")


def method(name: str) -> Method | None:
    """A rule as a plan sees methods; None where there is none of that name."""
    from isthmus.combine import COMBINATIONS, options_of, terms_of

    if name not in names():
        return None
    terms = terms_of(name)
    weighed = terms.weighing != "none"
    parameters: dict[str, object] = {"weight": 1.0} if weighed else {}
    for option, default in options_of(name).items():
        parameters[option] = REQUIRED if default is inspect.Parameter.empty else default
    based = terms.base == "needed"
    passes = 2 if any("passes" in need for need in COMBINATIONS.get(name).needs) else 1
    return Method(
        name,
        name,
        parameters,
        {"needed": "required", "taken": "optional", "no": "none"}[terms.base],  # type: ignore[arg-type]
        terms.least + based,
        None if terms.most is None else terms.most + based,
        passes,
        ("weight",) if weighed else (),
    )


def arithmetic_of(
    name: str, weights: Sequence[float], values: Mapping[str, object]
) -> tuple[str, tuple[float, ...], dict[str, object]]:
    """Rule, weights and options; weights of rules of shares are divided by their sum."""
    from isthmus.combine import terms_of

    total = sum(weights)
    shares = terms_of(name).weighing == "shares" and total != 0
    return name, tuple(w / total for w in weights) if shares else tuple(weights), dict(values)


def refusal(recipe: Recipe, row: Row) -> InputError | None:
    """What a row's rule says of its weights and options, where it would not merge with them.

    Args:
        recipe: whose method and convention hold.
        row: that is merged.
    """
    from isthmus.combine import blockwise
    from isthmus.recipe.jobs import arithmetic

    try:
        rule, weights, options = arithmetic(recipe, row)
        # SLERP's base is one of its models.
        blockwise(rule, weights or sum(rule == "slerp" or not part.base for part in row.parts), options)
    except InputError as error:
        return error
    return None
