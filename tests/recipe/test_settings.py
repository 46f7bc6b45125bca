"""Precedence, filters, lists over the layers, presets."""

import pytest

from isthmus.recipe.language.dialect import REQUIRED
from isthmus.recipe.language.ours import Block
from isthmus.recipe.language.parameters import Filtered, Preset
from isthmus.recipe.language.reading import examine
from isthmus.recipe.language.reference import Reference
from isthmus.recipe.rows.settings import Spot, block_levels, gradient, value_of

MLP = Spot("model.layers.1.mlp.up.weight", 0.5, 1, 3)


@pytest.mark.parametrize(
    ("values", "t", "expected"),
    [
        ([0.0, 1.0], 0.25, 0.25),
        ([0.0, 1.0, 0.5], 0.75, 0.75),
        ([2], 1.0, 2),
        ([0.0, 1.0], 1.0, 1.0),
        ([True, False], 0.99, True),
        ([True, False], 1.0, False),
        (["a", "b", "c"], 0.6, "b"),
    ],
)
def test_a_list_over_the_layers(values: list[float], t: float, expected: float):
    assert gradient(values, t) == pytest.approx(expected)


def test_the_first_level_that_says_something_wins():
    levels = [None, {"weight": 0.1}, {"weight": 0.2}]
    assert value_of("weight", REQUIRED, MLP, levels) == 0.1
    assert value_of("weight", REQUIRED, MLP, [{"density": 0.5}, {"weight": "2e-1"}]) == 0.2
    assert value_of("weight", 7.0, MLP, []) == 7.0
    with pytest.raises(LookupError):
        value_of("weight", REQUIRED, MLP, [None, {}])


def test_a_level_whose_filters_do_not_fit_says_nothing():
    level = {"weight": [Filtered(filter="attn", value=0.1), Filtered(filter="mlp", value=[0.0, 1.0])]}
    assert value_of("weight", 9.0, MLP, [level]) == 0.5
    norm = Spot("model.norm.weight")
    assert value_of("weight", REQUIRED, norm, [level, {"weight": 3}]) == 3.0
    assert (
        value_of(
            "weight", REQUIRED, norm, [{"weight": [Filtered(value=4), Filtered(filter="norm", value=5)]}]
        )
        == 4.0
    )
    assert value_of("weight", REQUIRED, norm, [{"weight": Filtered(filter="*", value=6)}]) == 6.0


def test_filters_see_the_name_in_the_source():
    level = {"weight": [Filtered(filter="layers.7.", value=1.0), Filtered(value=0.0)]}
    assert value_of("weight", REQUIRED, MLP, [level], "model.layers.7.mlp.up.weight") == 1.0


@pytest.mark.parametrize(
    ("preset", "layer", "expected"),
    [
        ("ramp", 1, 0.25),
        ("ramp", None, 0.0),
        ("cosine", 2, 0.5),
        ("peak", 2, 1.0),
        ("peak", 4, 0.0),
        ("peak", 1, 0.5),
    ],
)
def test_presets_run_over_all_layers(preset: str, layer: int | None, expected: float):
    spot = Spot("x", 0.0, layer, 5)
    setting = Preset.model_validate({"preset": preset, "from": 0, "to": 1})
    assert value_of("weight", REQUIRED, spot, [{"weight": setting}]) == pytest.approx(expected)


def test_a_preset_ends_behind_the_layers():
    setting = Preset.model_validate({"preset": "ramp", "from": 0.2, "to": 0.8})
    assert value_of(
        "weight", REQUIRED, Spot("lm_head", before=False), [{"weight": setting}]
    ) == pytest.approx(0.8)


def test_blocks_choose_by_pattern_layers_and_model():
    a = Reference(path="a")
    blocks = [
        Block(match="*.mlp.*", layers=(1, 3), model=a, parameters={"weight": [0.0, 1.0]}),
        Block(match="*", parameters={"weight": 0.7}),
    ]
    assert [level["weight"] for level in block_levels(blocks, MLP, a).values()] == [0.0, 0.7]
    later = Spot("model.layers.2.mlp.up.weight", 1.0, 2, 3)
    assert block_levels(blocks, later, a)[0]["weight"] == 1.0
    assert [level["weight"] for level in block_levels(blocks, MLP, Reference(path="b")).values()] == [0.7]
    assert len(block_levels(blocks, Spot("model.norm.weight"), a)) == 1


def test_values_are_checked_before_a_tensor_is():
    text = "models: [{model: a, parameters: {weight: [0, x]}}]\nmerge_method: linear\n"
    _, problems = examine(text, "r.yml")
    assert problems.found == [(1, "weight is 'x', not a number")]
