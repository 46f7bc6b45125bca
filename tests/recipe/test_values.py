"""Values that no arithmetic takes, alone or together: told by the plan, with their line."""

from collections.abc import Callable
from pathlib import Path

import pytest

import isthmus
from isthmus.combine import blockwise
from isthmus.errors import InputError
from isthmus.recipe.language.dialect import METHODS, PARAMETERS, REQUIRED, Method, refused, summed_to_nothing
from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.rows.arithmetic import arithmetic
from isthmus.recipe.rows.row import Part, Row

Make = Callable[[str], Path]


def said(make: Make, text: str) -> str:
    with pytest.raises(InputError) as raised:
        isthmus.plan(make(text))
    return raised.value.render()


OF_BASE = """
base_model: base
merge_method: METHOD
parameters:
  density: 0.5
  weight: 1
models:
  - model: a
    parameters: {EXTRA}
  - model: b
"""


@pytest.mark.parametrize(
    ("method", "extra", "expected"),
    [
        ("ties", "density: [0, 1]", "recipe.yml:9  density is 0: nothing would be kept"),
        ("breadcrumbs", "gamma: 1", "recipe.yml:9  gamma is 1: everything would be dropped"),
        ("della", "density: 0.9", "recipe.yml:3  epsilon is 0.15: with density 0.9, 0.75 to 1.05 are no probabilities"),
        ("della_linear", "epsilon: 0.6", "recipe.yml:9  epsilon is 0.6: with density 0.5, -0.1 to 1.1"),
        ("della", "density: 1, epsilon: 3", "recipe.yml:9  epsilon is 3: it must be at most 1"),
        ("sce", "weight: 1}\nisthmus: {blocks: [{parameters: {select_topk: 0}}]", "select_topk is 0"),
        ("task_arithmetic", "weight: -1}\nisthmus: {blocks: [{parameters: {normalize: true}}]",
         "the weights of 24 tensors sum to 0, by which they are divided: lm_head.weight"),
        ("multislerp", "weight: [-1, 1]", "the weights of 10 tensors sum to 0"),
    ],
)  # fmt: skip
def test_what_a_rule_would_refuse_is_told_by_the_plan(recipe: Make, method: str, extra: str, expected: str):
    text = OF_BASE.replace("METHOD", method)
    if "}\n" in extra:
        extra, more = extra.split("}\n")
        text += more + "}\n"
    assert expected in said(recipe, text.replace("EXTRA", extra))


@pytest.mark.parametrize("convention", ["mergekit", "paper"])
def test_a_rule_of_our_own_is_asked_itself(recipe: Make, convention: str):
    text = OF_BASE.replace("METHOD", "magnitude-prune").replace("  - model: b\n", "")
    text += f"isthmus: {{convention: {convention}}}\n"
    assert isthmus.plan(recipe(text.replace("{EXTRA}", "{weight: 1}")))
    found = said(recipe, text.replace("{EXTRA}", "{weight: 1}").replace("density: 0.5", "density: 0"))
    assert "recipe.yml:3  the options of magnitude-prune are wrong" in found
    assert "density = 0 is not in (0, 1]" in found
    paper = (
        OF_BASE.replace("METHOD", "della").replace("EXTRA", "epsilon: 0.6") + "isthmus: {convention: paper}\n"
    )
    assert "epsilon is 0.6" in said(recipe, paper)
    paper = paper.replace("  density: 0.5\n", "")
    assert "epsilon is given for some models only, and della has one default for all" in said(recipe, paper)
    paper = paper.replace("weight: 1\n", "weight: 1\n  epsilon: 0.6\n")
    assert "density 0.5 with epsilon 0.6" in said(recipe, paper)


def test_a_wrong_value_is_told_once(recipe: Make):
    text = OF_BASE.replace("METHOD", "ties").replace("EXTRA", "density: heavy")
    assert "1 problem" in said(recipe, text) and "recipe.yml:9  density is 'heavy', not a number" in said(
        recipe, text
    )


def _made(method: Method, given: dict[str, object]) -> list[dict[str, object]]:
    """Values of two models (fewer where a method merges fewer), and of the tensor at the end."""
    values = {name: 0.5 if value is REQUIRED else value for name, value in method.parameters.items()} | given
    count = 1 if method.most == 1 or (method.most == 2 and method.base == "required") else 2
    own = [{name: values[name] for name in method.per_model} for _ in range(count)]
    return [*own, {name: value for name, value in values.items() if name not in method.per_model}]


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_what_a_plan_lets_pass_its_rule_takes_and_the_other_way_round(method: Method):
    cases = [
        _made(method, {name: PARAMETERS[name].read(value)})
        for name in method.parameters
        for value in (0, 0.5, 1, 2, -1, 1e-9, 1e9)
        if PARAMETERS[name].wrong(value) is None
    ]
    if "weight" in method.per_model:
        opposed = _made(method, {})
        opposed[0]["weight"], opposed[1]["weight"] = 1.0, -1.0
        cases.append(opposed)
    recipe = Recipe(merge_method=method.name)
    told_of: list[bool] = []
    for *own, shared in cases:
        told = any([*refused(method, shared), *(said for values in own for said in refused(method, values))])
        told = told or summed_to_nothing(method, shared, own)
        parts = tuple(Part(str(i), "w", values) for i, values in enumerate(own))
        row = Row("w", (2, 2), "float32", "merged", parts, shared)
        rule, weights, options = arithmetic(recipe, row)
        try:
            blockwise(rule, weights or (2 if rule == "slerp" else len(parts)), options)
        except InputError:
            assert told, (own, shared)
        else:
            assert not told, (own, shared)
        told_of.append(told)
    assert not all(told_of) or not told_of
