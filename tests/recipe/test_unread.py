"""Nothing that a recipe gives is passed over without a word, wherever it stands."""

from collections.abc import Callable
from pathlib import Path

import pytest

import isthmus
from isthmus.errors import InputError

Make = Callable[[str], Path]

PIECES = """
merge_method: ties
base_model: base
parameters: {weight: 1}
"""


def notes(make: Make, text: str) -> list[str]:
    return [note for note in isthmus.plan(make(text)).notes if not note.startswith("layers: ")]


def said(make: Make, text: str) -> str:
    with pytest.raises(InputError) as raised:
        isthmus.plan(make(text))
    return raised.value.render()


SHARED = "ties has one for all models, not one of"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models:\n- {model: a, parameters: {lambda: 0.5}}\n- {model: b}\n",
         [f"lambda at line 6 is not read: {SHARED} a, as in mergekit"]),
        ("models:\n- model: a\n- model: b\n  parameters:\n    density: 0.5\n    normalize: true\n    rescale: true\n",
         [f"normalize and rescale at line 8 are not read: {SHARED} b, as in mergekit"]),
        (("slices:\n- sources:\n  - {model: base, layer_range: [0, 3]}\n"
          "  - {model: a, layer_range: [0, 3], parameters: {lambda: 0.5}}\n  parameters: {lambda: 0.7}\n"),
         [f"lambda at line 8 is not read: {SHARED} a, as in mergekit"]),
        (("modules:\n  mlp:\n    models: [{model: a, parameters: {lambda: 2}}]\n    parameters: {lambda: 0.7}\n"
          "  default: {models: [{model: a, parameters: {int8_mask: true}}]}\n"),
         [f"lambda at line 7 is not read: {SHARED} a, as in mergekit",
          f"int8_mask at line 9 is not read: {SHARED} a, as in mergekit"]),
        ("models:\n- {model: base, parameters: {weight: 2, lambda: 2}}\n- {model: a}\n",
         ["base is the base: weight and lambda at line 6 are not read, as in mergekit"]),
        ("models: [{model: a, parameters: {density: 0.5, weight: [0, 1]}}, {model: b}]\n", []),
        ("models: [{model: a}, {model: b}]\nisthmus: {blocks: [{match: '*mlp*', parameters: {lambda: 3}}]}\n", []),
        ("models: [{model: a}]\nisthmus: {blocks: [{match: '*mlp*', parameters: {gamma: 0.1}}]}\n",
         ["ties does not read gamma (line 6)"]),
        ("modules:\n  default:\n    models: [{model: a, parameters: {eps: 1, t: 1}}]\n    parameters: {t: 1}\n",
         ["ties does not read eps (line 7), t (lines 7, 8)"]),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named_with_its_line(recipe: Make, text: str, expected: list[str]):
    assert notes(recipe, PIECES + text) == expected


def test_what_is_not_read_changes_nothing(recipe: Make):
    """As in mergekit, which asks the slice, the module and the recipe for what is of the tensor as a whole."""
    text = PIECES + "models: [{model: a}, {model: b}]\n"
    plain = isthmus.plan(recipe(text))
    told = isthmus.plan(recipe(text.replace("{model: a}", "{model: a, parameters: {lambda: 0.5}}")))
    assert told.rows == plain.rows
    assert {row.values["lambda"] for row in told.rows} == {1.0}


def test_what_plain_task_vectors_have_no_use_for(recipe: Make):
    text = PIECES.replace("ties", "task_arithmetic") + "models: [{model: a, parameters: {density: 0.5}}]\n"
    found = ["task_arithmetic trims nothing: no weight depends on density, as in mergekit"]
    assert notes(recipe, text) == found


def test_a_parameter_of_another_name_is_meant(recipe: Make):
    text = PIECES.replace("ties", "iso-c").replace("{weight: 1}", "{lambda: 0.5}") + "models: [{model: a}]\n"
    assert notes(recipe, text) == ["iso-c does not read lambda (line 4; did you mean 'lam'?)"]
    ours = text.replace("{lambda: 0.5}", "{lam: 0.5}").replace(
        "{model: a}", "{model: a, parameters: {lam: 2}}"
    )
    assert notes(recipe, ours) == ["lam at line 5 is not read: iso-c has one for all models, not one of a"]


def test_a_parameter_that_is_needed_and_stands_beside_a_model(recipe: Make):
    text = "models:\n- {model: base}\n- {model: a, parameters: {t: 0.5}}\nbase_model: base\nmerge_method: slerp\n"
    found = said(recipe, text)
    assert "slerp needs a t of every tensor" in found
    assert "hint: t at line 3 is one model's: write it under the recipe's `parameters`" in found


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("isthmus: {skip: ['*embed_token']}", "did you mean '*embed_token*'? There is model.embed_tokens.weight"),
        ("isthmus: {skip: ['layers.1.mlp.up_proj.weight']}", "did you mean '*layers.1.mlp.up_proj.weight'? There is"),
        ("isthmus: {data: words.txt, evaluate: loss}", "or a path to any of these; text:FILE for a language model"),
    ],
)  # fmt: skip
def test_what_was_meant_is_said(recipe: Make, more: str, expected: str):
    found = said(recipe, f"{PIECES}models: [{{model: a}}]\n{more}\n")
    assert expected in found and "1 problem in" in found


def test_a_module_that_was_meant(recipe: Make):
    text = "modules: {defualt: {models: [{model: a}]}}\nmerge_method: passthrough\n"
    assert "no tensor is of a module 'defualt', did you mean 'default'?" in said(recipe, text)
