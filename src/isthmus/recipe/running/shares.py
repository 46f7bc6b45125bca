"""How much of a merge each model is."""

from __future__ import annotations

import math
from typing import cast

from isthmus.recipe.planning.planned import Planned
from isthmus.recipe.rows.arithmetic import arithmetic


def shares(plan: Planned) -> dict[str, float]:
    """How much of the merge each model is, by the recipe's own names, in its order and with sum 1.

    Weights are averaged over all merged elements. Where a method has none, or negative ones, its models count alike.

    Args:
        plan: of whole models.
    """
    total: dict[str, float] = {}
    for row in plan.rows:
        if row.how != "merged":
            continue
        rule, given, options = arithmetic(plan.recipe, row)
        parts = [part.model for part in row.parts if not part.base]
        if rule == "slerp":
            base = next((part.model for part in row.parts if part.base), None)
            parts = parts if base is None else [base, *parts]
            t = float(cast("float", options["t"]))
            given = (1 - t, t)
        if len(given) != len(parts) or min(given) < 0 or sum(given) <= 0:
            given = (1.0,) * len(parts)
        for model, weight in zip(parts, given, strict=True):
            total[model] = total.get(model, 0.0) + weight / sum(given) * math.prod(row.shape)
    whole = sum(total.values())
    return {name: total[name] / whole for name in plan.parents if total.get(name)}
