"""The configuration says what the layers of the output are, wherever they come from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import isthmus
from isthmus.errors import InputError

from .conftest import config, llama, write

Make = Callable[[str], Path]


def settings(plan: isthmus.Plan) -> dict[str, object]:
    return json.loads(next(file.text or "" for file in plan.files if file.name == "config.json"))


def model(folder: Path, layers: int, **more: object) -> None:
    write(folder, llama(layers=layers), config(layers=layers) | more)


def stacked(*pieces: tuple[object, int, int]) -> str:
    sources = [f"  - sources: [{{model: {name}, layer_range: [{a}, {b}]}}]" for name, a, b in pieces]
    return "\n".join(["slices:", *sources, "merge_method: passthrough", ""])


@pytest.mark.parametrize("ends", [(3, 5), (3, 4)])
def test_slices_of_several_depths(recipe: Make, tmp_path: Path, ends: tuple[int, int]):
    model(tmp_path / "deep", 5)
    plan = isthmus.plan(recipe(stacked(("a", 0, 2), (tmp_path / "deep", *ends))))
    written = {row.name.split(".")[2] for row in plan.rows if ".layers." in row.name}
    assert settings(plan)["num_hidden_layers"] == len(written) == 2 + ends[1] - ends[0]
    assert f"layers: model.layers x {len(written)} of 3 and 5" in plan.notes


def test_layers_that_are_taken_unmerged_are_counted(recipe: Make, tmp_path: Path):
    model(tmp_path / "deep", 5)
    text = f"models: [{{model: a}}, {{model: {tmp_path}/deep}}]\nmerge_method: linear\nparameters: {{weight: 1}}\n"
    plan = isthmus.plan(recipe(text + "isthmus: {skip: ['model.layers.3.*', 'model.layers.4.*']}\n"))
    assert settings(plan)["num_hidden_layers"] == 5
    assert "config.json: num_hidden_layers 3 becomes 5" in plan.notes


def test_two_numbers_of_the_same_layers(recipe: Make, tmp_path: Path):
    model(tmp_path / "x", 3, n_layer=3, layer_types=["s", "f", "t"])
    plan = isthmus.plan(recipe(stacked((tmp_path / "x", 1, 3), (tmp_path / "x", 0, 1))))
    assert settings(plan)["layer_types"] == ["f", "t", "s"]
    plan = isthmus.plan(recipe(stacked((tmp_path / "x", 1, 3))))
    told = settings(plan)
    assert (told["n_layer"], told["num_hidden_layers"], told["layer_types"]) == (2, 2, ["f", "t"])


def test_one_layer_is_a_depth_too(recipe: Make, tmp_path: Path):
    state = {name: t for name, t in llama(2).items() if ".layers." not in name or "up_proj" in name}
    write(tmp_path / "x", state, config(2) | {"architectures": ["X", "Y"], "eos_token_id": [1, 2]})
    told = settings(isthmus.plan(recipe(stacked((tmp_path / "x", 1, 2)))))
    assert told["num_hidden_layers"] == 1
    assert told["architectures"] == ["X", "Y"] and told["eos_token_id"] == [1, 2]


def test_lists_over_the_layers_are_those_of_the_models(recipe: Make, tmp_path: Path):
    kinds, deeper = ["f", "s", "f"], ["s", "s", "f", "f", "s"]
    model(tmp_path / "x", 3, layer_types=kinds, hybrid_pattern="abc", hidden_act="gel")
    model(tmp_path / "y", 5, layer_types=deeper, hybrid_pattern="vwxyz", heads=[1, 2, 3, 4, 5])
    model(tmp_path / "plain", 3)
    x, y, plain = (tmp_path / name for name in ("x", "y", "plain"))

    plan = isthmus.plan(recipe(stacked((x, 0, 2), (y, 3, 5))))
    told = settings(plan)
    assert told["layer_types"] == ["f", "s", "f", "s"] and told["hybrid_pattern"] == "abyz"
    assert told["hidden_act"] == "gel" and "heads" not in told
    assert (
        f"config.json: heads, a list over the layers of {y}, is not in that of x, whose the output has"
        in plan.notes
    )
    assert settings(isthmus.plan(recipe(stacked((y, 3, 5), (x, 0, 2)))))["layer_types"] == [
        "f",
        "s",
        "f",
        "s",
    ]

    # As deep and without lists: a sibling, saved by an older version.
    assert settings(isthmus.plan(recipe(stacked((x, 0, 1), (plain, 1, 3)))))["layer_types"] == kinds
    # Another depth, and without lists: nobody knows.
    plan = isthmus.plan(recipe(stacked((y, 0, 4), (plain, 1, 3))))
    assert "layer_types" not in settings(plan)
    assert f"config.json: layer_types, a list over the layers, is left out: {plain} has none" in plan.notes


def test_lists_of_the_numbers_of_layers_name_those_of_the_output(recipe: Make, tmp_path: Path):
    model(
        tmp_path / "x", 4, mlp_only_layers=[0, 3], attn_layer_indices=[], eos_token_ids=[1], wide_layers=[7]
    )
    model(tmp_path / "y", 3, mlp_only_layers=[1], attn_layer_indices=[2])
    x, y = tmp_path / "x", tmp_path / "y"
    same = isthmus.plan(recipe(stacked((x, 0, 4))))
    assert settings(same)["mlp_only_layers"] == [0, 3] and not any("numbers of" in n for n in same.notes)
    plan = isthmus.plan(recipe(stacked((x, 2, 4), (y, 1, 3), (x, 0, 1))))
    told = settings(plan)
    assert told["mlp_only_layers"] == [1, 2, 4] and told["attn_layer_indices"] == [3]
    assert told["eos_token_ids"] == [1] and told["wide_layers"] == [7]
    assert "config.json: mlp_only_layers, numbers of layers, follows them" in plan.notes

    # A list over the layers whose name might be that of a list of numbers, and which is 0 and 1 once it is cut.
    model(tmp_path / "flags", 4, no_rope_layers=[1, 0, 1, 1])
    told = settings(isthmus.plan(recipe(stacked((tmp_path / "flags", 1, 3)))))
    assert told["no_rope_layers"] == [0, 1]

    model(tmp_path / "z", 4, mlp_only_layers=[0])
    text = f"models: [{{model: {x}}}, {{model: {tmp_path}/z}}]\nmerge_method: linear\nparameters: {{weight: 1}}\n"
    plan = isthmus.plan(recipe(text))
    assert settings(plan)["mlp_only_layers"] == [0, 3]
    assert "config.json: models differ in mlp_only_layers of layers that are merged: 3" in plan.notes


def test_models_that_differ_in_a_list_where_they_are_merged_are_told(recipe: Make, tmp_path: Path):
    model(tmp_path / "x", 3, layer_types=["f", "s", "f"])
    model(tmp_path / "y", 3, layer_types=["f", "f", "s"])
    pair = f"models: [{{model: {tmp_path}/y}}, {{model: {tmp_path}/x}}]\n"
    plan = isthmus.plan(
        recipe(f"{pair}base_model: {tmp_path}/x\nmerge_method: linear\nparameters: {{weight: 1}}\n")
    )
    assert settings(plan)["layer_types"] == ["f", "s", "f"]  # the configuration is the base's
    assert "config.json: models differ in layer_types of layers that are merged: 1, 2" in plan.notes


def test_a_layer_that_a_configuration_does_not_count_changes_nothing(recipe: Make, tmp_path: Path):
    """As of models that were trained to foretell a second token, whose layer for that is numbered with the others."""
    write(tmp_path / "x", llama(4), config(3) | {"layer_types": ["f", "s", "f"]})
    plan = isthmus.plan(recipe(f"models: [{{model: {tmp_path}/x}}]\nmerge_method: passthrough\n"))
    assert settings(plan)["num_hidden_layers"] == 3 and settings(plan)["layer_types"] == ["f", "s", "f"]
    longer = isthmus.plan(recipe(stacked((tmp_path / "x", 0, 3), (tmp_path / "x", 1, 3))))
    assert settings(longer)["num_hidden_layers"] == 5
    write(tmp_path / "two", llama(4), config(3) | {"vision_config": {"depth": 5}})
    plan = isthmus.plan(recipe(stacked((tmp_path / "two", 0, 2))))
    assert any(
        "says nowhere that two has 4 model.layers, so nothing in it says that 2" in n for n in plan.notes
    )


OVERLAP = """
modules:
  {}: {{models: [{{model: a, parameters: {{weight: {}}}}}, {{model: b}}]}}
  {}: {{models: [{{model: a, parameters: {{weight: {}}}}}, {{model: b}}]}}
merge_method: linear
parameters: {{weight: 1}}
"""


def weights(plan: isthmus.Plan) -> dict[str, object]:
    names = ("mlp.up_proj", "self_attn.q_proj")
    rows = {row.name: row for row in plan.rows}
    return {name: rows[f"model.layers.1.{name}.weight"].parts[0].values["weight"] for name in names}


@pytest.mark.parametrize("order", [("mlp", 3, "default", 5), ("default", 5, "mlp", 3)])
def test_default_is_what_no_other_module_takes(recipe: Make, order: tuple[str, int, str, int]):
    plan = isthmus.plan(recipe(OVERLAP.format(*order)))
    assert weights(plan) == {"mlp.up_proj": 3, "self_attn.q_proj": 5}
    assert len(plan.rows) == 24 and not any("too" in note for note in plan.notes)


def test_modules_that_overlap_are_told(recipe: Make):
    plan = isthmus.plan(recipe(OVERLAP.format("mlp", 3, "layers", 5)))
    assert weights(plan) == {"mlp.up_proj": 5, "self_attn.q_proj": 5}
    assert (
        "6 of the 6 tensors of the module mlp are of layers too, which stands behind it and merges them"
        in plan.notes
    )
    plan = isthmus.plan(recipe(OVERLAP.format("layers", 5, "mlp", 3)))
    assert weights(plan) == {"mlp.up_proj": 3, "self_attn.q_proj": 5}
    assert any(
        note.startswith("6 of the 21 tensors of the module layers are of mlp too") for note in plan.notes
    )
    whole = OVERLAP.format("model", 3, "default", 1).replace(
        "  default", "  lm_head: {models: [{model: a}]}\n  default"
    )
    assert (
        "the module default has no tensor: the other modules have them all"
        in isthmus.plan(recipe(whole)).notes
    )


def test_half_of_a_layer_is_not_numbered_anew(recipe: Make):
    slices = "[{sources: [{model: a, layer_range: [0, 3]}]}, {sources: [{model: b, layer_range: [1, 3]}]}]"
    with pytest.raises(InputError) as raised:
        isthmus.plan(recipe(f"modules: {{mlp: {{slices: {slices}}}}}\nmerge_method: passthrough\n"))
    said = raised.value.render()
    assert "model.layers would have 5 in what is of mlp and 3 in what is of no module" in said
    both = (
        f"modules: {{mlp: {{slices: {slices}}}, default: {{slices: {slices}}}}}\nmerge_method: passthrough\n"
    )
    assert settings(isthmus.plan(recipe(both)))["num_hidden_layers"] == 5
