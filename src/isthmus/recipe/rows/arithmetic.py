"""The rule, weights and options that a row's method and parameters mean: ours for mergekit's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from isthmus.errors import InputError
from isthmus.recipe.language.dialect import METHODS, method_name
from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.rows.row import Part, Row


def arithmetic(recipe: Recipe, row: Row) -> tuple[str, tuple[float, ...], dict[str, object]]:
    """The rule, weights and options that a row's method and parameters mean.

    Args:
        recipe: whose method and convention hold.
        row: a merged row.

    Returns:
        As a `Job` takes them: one weight per part that is not the base.

    Raises:
        InputError: a parameter is given for some models only, where the rule's own default holds for the others.
    """
    parts = [part for part in row.parts if not part.base]
    method = METHODS.get(method_name(recipe.merge_method))
    values = {key: value for key, value in row.values.items() if value is not None}
    weights = tuple(
        float(cast("float", p.values["weight"])) for p in parts if p.values.get("weight") is not None
    )
    if method is None:
        return _our_own(recipe.merge_method, weights, values)
    name = method.rule
    if "lambda" in method.parameters:
        return name, weights, _task_vectors(recipe, name, parts, values)
    if name == "linear":
        return name, weights, values
    if name == "passthrough":
        scale = parts[0].values.get("scale")
        return name, (), {"scale": 1.0 if scale is None else scale}
    if name == "nuslerp":
        flat = values.get("nuslerp_flatten", True)
        return (
            name,
            weights,
            {"per": "tensor" if flat else "column" if values.get("nuslerp_row_wise") else "row"},
        )
    if name == "multislerp":
        renamed = {"normalize_weights": "normalize", "eps": "eps"}
        return name, weights, {renamed[key]: value for key, value in values.items()}
    if name == "model-stock":
        options = {"per": "row" if values.get("filter_wise") else "tensor"}
        return name, (), {**options, **_convention(recipe, name)}
    if "select_topk" in values:
        values["density"] = values.pop("select_topk")
    values.pop("int8_mask", None)  # asks for a narrower mask in memory: no number depends on it
    return name, (), {**values, **_convention(recipe, name)}


def _task_vectors(
    recipe: Recipe, name: str, parts: list[Part], values: Mapping[str, object]
) -> dict[str, object]:
    """The options of mergekit's generalised task arithmetic, in our words."""
    options: dict[str, object] = {}
    if "lambda" in values:
        options["lam"] = values["lambda"]
    if name == "task-arithmetic":  # mergekit reads density and rescale for it, and has nothing to trim with
        if "normalize" in values:
            options["normalize"] = values["normalize"]
        return options
    for key in ("density", "gamma", "epsilon"):
        given = [part.values.get(key) for part in parts]
        if all(value is not None for value in given):
            options[key] = tuple(float(cast("float", value)) for value in given)
        elif any(value is not None for value in given):
            raise InputError(
                f"{key} is given for some models only, and {name} has one default for all of them",
                hint=f"give {key} for every model, or once under `parameters`",
            )
    if "normalize" in values:
        options["divide"] = "weights" if values["normalize"] else "none"
    if "rescale" in values:
        options["rescale"] = "norm" if values["rescale"] else "none"
    return {**options, **_convention(recipe, name)}


def _convention(recipe: Recipe, name: str) -> dict[str, object]:
    from isthmus.combine import options_of

    return {"convention": recipe.isthmus.convention} if "convention" in options_of(name) else {}


def _our_own(
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

    try:
        rule, weights, options = arithmetic(recipe, row)
        # SLERP's base is one of its models.
        blockwise(rule, weights or sum(rule == "slerp" or not part.base for part in row.parts), options)
    except InputError as error:
        return error
    return None
