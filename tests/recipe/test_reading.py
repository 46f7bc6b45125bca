"""A recipe's text: what it may say, and every problem with its line."""

from pathlib import Path
from textwrap import dedent

import pytest

from isthmus.errors import InputError
from isthmus.recipe.language.reading import examine, read
from isthmus.recipe.language.reference import Reference


def problems(text: str) -> list[str]:
    found = examine(dedent(text).lstrip("\n"), "r.yml")[1].found
    return [f"{line}: {what}" for line, what in sorted(found)]


GOOD = "models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: 1}\n"


def test_a_whole_recipe_is_read():
    recipe, found = examine(
        dedent("""
        base_model: org/base@main
        merge_method: ties
        models:
          - model: org/a@v1.2+org/lora@v3
            parameters:
              weight: [0, 0.5, 1]
              density:
                - {filter: mlp, value: [0.1, 0.9]}
                - value: 1e-1
        parameters: {normalize: yes, int8_mask: true}
        dtype: torch.bfloat16
        tokenizer: {source: union, tokens: {<s>: {source: org/base, force: true}}, pad_to_multiple_of: 64}
        chat_template: auto
        isthmus: {seed: 3, skip: ["*.bias"], limits: {memory: 512MiB, shard_size: 2GB}}
        """),
        "r.yml",
    )
    assert not found.found and recipe is not None
    assert recipe.models is not None
    assert recipe.models[0].model == Reference(
        path="org/a", revision="v1.2", lora="org/lora", lora_revision="v3"
    )
    assert str(recipe.models[0].model) == "org/a@v1.2+org/lora@v3"
    assert recipe.dtype == "bfloat16"
    assert recipe.isthmus.limits.memory == 512 * 2**20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modelz: []\nmerge_method: linear\n", "1: unknown key 'modelz', did you mean 'models'?"),
        (GOOD + "dtype: floaty\n", "4: dtype: 'floaty' is no dtype that is merged in, did you mean 'float64'?"),
        (GOOD + "out_dtype: torch.float8_e4m3fn\n",
         "4: out_dtype: 'torch.float8_e4m3fn' needs scales, and a recipe writes none"),
        (GOOD.replace("linear", "dare-tiess"), "2: no method is called 'dare-tiess', did you mean 'dare_ties'?"),
        (GOOD.replace("weight", "wieght"), "3: unknown parameter 'wieght', did you mean 'weight'?"),
        (GOOD.replace("linear", "ties"), "2: ties needs a base_model, and there is none"),
        (GOOD + "slices: [{sources: [{model: a, layer_range: [0, 2]}]}]\n",
         "4: the recipe has exactly one of models, slices or modules: there is models and slices"),
        ("merge_method: linear\n", "1: the recipe has exactly one of models, slices or modules: there is none"),
        ("models: []\nmerge_method: linear\n", "1: models is empty"),
        (GOOD + "parameters: {weight: 2}\n", "4: 'parameters' stands here again, after line 3"),
        (GOOD.replace("model: b", "model: a"), "1: a is in the list already, at line 1"),
        (GOOD.replace("model: b", "model: a+b+c"), "1: models[1].model: 'a+b+c' is not path@revision+adapter@revision"),
        (GOOD.replace("model: b", "model: 7"), "1: models[1].model: 7 is no model: write its path or its id as text"),
        (GOOD.replace("weight: 1", "weight: heavy"), "3: weight is 'heavy', not a number"),
        (GOOD.replace("weight: 1", "weight: .nan"), "3: parameters.weight: nan is not finite"),
        (GOOD.replace("weight: 1", "weight: []"), "3: parameters.weight: a list of values over the layers is empty"),
        (GOOD.replace("weight: 1", "weight: [{filter: a}]"), "3: parameters.weight[0].value is missing"),
        (GOOD.replace("weight: 1", "density: 1.5"), "3: density is 1.5: it must be at most 1"),
        (GOOD.replace("weight: 1", "normalize: perhaps"), "3: normalize is 'perhaps', neither true nor false"),
        (GOOD + "tokenizer: {source: union, tokens: {x: {force: maybe}}}\n",
         "4: tokenizer.tokens.x.force is 'maybe', neither true nor false"),
        (GOOD + "tokenizer: {}\ntokenizer_source: base\n", "5: 'tokenizer_source' and 'tokenizer' exclude each other"),
        (GOOD + "isthmus: {seed: -1}\n", "4: isthmus.seed is -1, less than 0"),
        (GOOD + "isthmus: {limits: {memory: 2 parsecs}}\n",
         "4: isthmus.limits.memory: '2 parsecs' is no size: write it as 500MB or 2GB"),
        (GOOD + "isthmus: {blocks: [{match: x, parametrs: {}}]}\n",
         "4: unknown key 'parametrs', did you mean 'parameters'?"),
        ("slices: [{sources: [{model: a, layer_range: [3, 3]}]}]\nmerge_method: passthrough\n",
         "1: slices[0].sources[0].layer_range: [3, 3] holds no layer: the range begins at 0 and its end is not in it"),
        ("slices: [{sources: [{model: a, layer_range: [0, 3]}, {model: b, layer_range: [0, 2]}]}]\n",
         "1: the sources of a slice have equally many layers; these have 3, 2"),
        ("just text", "1: a recipe is a mapping: merge_method, models, ..."),
        ("", "1: a recipe is a mapping: merge_method, models, ..."),
    ],
)  # fmt: skip
def test_each_problem_has_its_line_and_its_words(text: str, expected: str):
    assert any(said.startswith(expected) for said in problems(text))


def test_all_problems_are_said_at_once(tmp_path: Path):
    path = tmp_path / "recipe.yml"
    path.write_text(
        dedent("""
        models:
          - model: a
            parameters: {weight: 0.3, densty: 0.5}
          - modle: b
        merge_method: tis
        dtype: floaty
        isthmus: {skip: 3}
        """).lstrip()
    )
    with pytest.raises(InputError) as raised:
        read(path)
    assert (
        raised.value.render()
        == dedent("""
        5 problems in recipe.yml
          recipe.yml:3  unknown parameter 'densty', did you mean 'density'?
          recipe.yml:4  unknown key 'modle', did you mean 'model'?
          recipe.yml:5  no method is called 'tis', did you mean 'ties'?
          recipe.yml:6  dtype: 'floaty' is no dtype that is merged in, did you mean 'float64'?
          recipe.yml:7  isthmus.skip is 3, not a list
        """).strip()
    )


def test_hyphens_and_underscores_name_the_same_method():
    for name in ("task_arithmetic", "task-arithmetic"):
        text = f"base_model: x\nmodels: [{{model: a}}]\nmerge_method: {name}\nparameters: {{weight: 1}}\n"
        assert problems(text) == []


def test_a_model_in_parts():
    text = "models: [{model: {model: {path: /x+y/a@b}, lora: {path: c, revision: d}}}]\nmerge_method: passthrough\n"
    recipe, _ = examine(text, "r.yml")
    assert recipe is not None and recipe.models is not None
    assert recipe.models[0].model == Reference(path="/x+y/a@b", lora="c", lora_revision="d")


def test_a_wrong_slice_hides_no_other():
    text = """
        slices:
          - sources: [{model: a, layer_range: [3, 3]}, {model: b, layer_range: [0, 4]}]
          - 7
          - sources: []
          - sources: [{layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]
          - sources: [{model: a, parameters: {wieght: 1}}]
        merge_method: passthrough
    """
    found = problems(text)
    assert [line.partition(":")[0] for line in found] == ["2", "3", "4", "5", "5", "6", "6"]
    assert found[0].endswith("the range begins at 0 and its end is not in it")
    assert found[1:] == [
        "3: slices[1] is 7, not a mapping",
        "4: slices[2].sources is empty",
        "5: slices[3].sources[0].model is missing",
        "5: the sources of a slice have equally many layers; these have 2, 3",
        "6: slices[4].sources[0].layer_range is missing",
        "6: unknown parameter 'wieght'; there are: scale",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("slices: 3\nmerge_method: passthrough\n", ["1: slices is 3, not a list"]),
        ("models: [3, {model: 4}, {modell: a}]\nmerge_method: linear\n",
         ["1: models[0] is 3, not a mapping", "1: models[1].model: 4 is no model: write its path or its id as text",
          "1: unknown key 'modell', did you mean 'model'?"]),
        (GOOD.replace("linear", "ties") + "base_model: 3\n",
         ["4: base_model: 3 is no model: write its path or its id as text"]),
        (GOOD + "isthmus: {blocks: [{match: x}, {layers: 3, parameters: {weihgt: 1}}]}\n",
         ["4: isthmus.blocks[0].parameters is missing",
          "4: isthmus.blocks[1].layers: 3 is no range of layers: write [first, end), for example [0, 16]",
          "4: unknown parameter 'weihgt', did you mean 'weight'?"]),
        (GOOD + "tokenizer: {tokens: {x: {source: {kind: zeros}}, y: {source: {kind: [3]}}}}",
         ["4: tokenizer.tokens.x.source: no kind of row is called 'zeros', did you mean 'zero'?",
          "4: tokenizer.tokens.y.source: no kind of row is called [3]; there are: model_token, zero"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_not_said_to_be_missing(text: str, expected: list[str]):
    assert problems(text) == expected


def test_what_is_below_a_misspelt_key_is_read():
    text = """
        model:
          - modle: a
            parametrs: {weigth: 1}
          - model: b
            parameters:
              weight: heavy
        mergemethod: lineer
    """
    assert problems(text) == [
        "1: unknown key 'model', did you mean 'models'?",
        "2: unknown key 'modle', did you mean 'model'?",
        "3: unknown key 'parametrs', did you mean 'parameters'?",
        "3: unknown parameter 'weigth', did you mean 'weight'?",
        "6: weight is 'heavy', not a number",
        "7: no method is called 'lineer', did you mean 'linear'?",
        "7: unknown key 'mergemethod', did you mean 'merge_method'?",
    ]


def test_a_key_that_is_near_by_chance_is_told_once():
    assert problems(
        "mode: fast\n" + GOOD.replace("models:", "modules: {all: {models:").replace("]", "]}}", 1)
    ) == ["1: unknown key 'mode', did you mean 'models'?"]


@pytest.mark.parametrize("name", ["fisher", "reg-mean", "reg_mean"])
def test_a_rule_that_takes_statistics_is_told_apart_from_one_that_is_not_there(name: str):
    found = examine(GOOD.replace("merge_method: linear", f"merge_method: {name}"), "r.yml")[1]
    (said,) = [what for _, what in found.found if "weight" not in what]
    name = name.replace("_", "-")
    assert said == f"{name} takes statistics that are measured on each model, and no recipe names any"
    assert f"isthmus merge a b --arch ... --method {name}, with --data or --statistics" in found.hints[0]
    assert f"isthmus.merge([a, b], method='{name}', statistics=...)" in found.hints[0]
