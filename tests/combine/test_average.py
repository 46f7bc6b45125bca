"""The weighted average, and what `combine` does around every rule."""

import inspect
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import isthmus
from isthmus.combine import COMBINATIONS, combine, normalised
from isthmus.combine.average import average
from isthmus.errors import InputError, MismatchError, WeightsError

Weights = dict[str, Tensor]


def state(seed: int, dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(3, 4, generator=generator).to(dtype),
        "a.bias": torch.randn(3, generator=generator).to(dtype),
        "scale": torch.randn((), generator=generator).to(dtype),
    }


def same(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@settings(max_examples=25)
@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=5),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_average_is_the_exact_sum_rounded_once(raw: list[float], dtype: torch.dtype):
    shares = [r / sum(raw) for r in raw]
    models = [state(i, dtype) for i in range(len(shares))]
    merged = combine(models, weights=shares)
    assert list(merged) == list(models[0])
    for key, value in merged.items():
        exact = sum(w * m[key].double() for w, m in zip(shares, models, strict=True))
        assert value.dtype == dtype
        # The sum itself rounds at the size of what is summed.
        rtol = torch.finfo(dtype).eps
        torch.testing.assert_close(value, exact.to(dtype), rtol=rtol, atol=1e-15)  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_copies_give_the_model_to_the_bit_where_rounded_once(dtype: torch.dtype, count: int):
    model = state(0, dtype)
    merged = combine([model] * count)
    if dtype == torch.float64:
        torch.testing.assert_close(merged, model, rtol=1e-15, atol=0)
    else:
        assert same(merged, model)
    assert all(merged[k] is not model[k] for k in model), "never the model's own memory"


def test_order_does_not_show_in_narrower_dtypes():
    models, shares = [state(i, torch.float16) for i in range(4)], [0.4, 0.3, 0.2, 0.1]
    results = [
        combine([models[i] for i in order], weights=[shares[i] for i in order])
        for order in itertools.permutations(range(4))
    ]
    assert all(same(result, results[0]) for result in results)


def test_halves_do_not_overflow_on_the_way():
    large = {"w": torch.full((4,), 60000.0, dtype=torch.float16)}
    assert combine([large, large, large])["w"].tolist() == [60000.0] * 4


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.5, -0.5]])
def test_weights_may_pick_or_extrapolate(weights: list[float]):
    a, b = state(0), state(1)
    merged = combine([a, b], weights=weights)
    torch.testing.assert_close(merged["scale"], weights[0] * a["scale"] + weights[1] * b["scale"])


def test_by_default_weights_are_uniform():
    models = [state(i) for i in range(3)]
    assert same(combine(models), combine(models, weights=[1 / 3] * 3))
    assert normalised(None, 4) == (0.25,) * 4


def test_the_models_are_left_alone():
    models = [state(0), state(1)]
    before = [{k: v.clone() for k, v in m.items()} for m in models]
    combine(models)
    assert all(same(m, b) for m, b in zip(models, before, strict=True))


@pytest.mark.parametrize("wide_first", [True, False])
def test_the_result_is_as_wide_as_the_widest(wide_first: bool):
    wide, narrow = state(0), state(1, torch.bfloat16)
    merged = combine([wide, narrow] if wide_first else [narrow, wide])
    assert all(v.dtype == torch.float32 for v in merged.values())
    torch.testing.assert_close(merged["a.bias"], (wide["a.bias"] + narrow["a.bias"].float()) / 2)


def test_the_sum_may_run_in_float32():
    models = [state(i) for i in range(3)]
    torch.testing.assert_close(
        combine(models, options={"accumulate": "float32"}), combine(models), rtol=1e-5, atol=1e-6
    )
    double = [state(i, torch.float64) for i in range(3)]
    assert combine(double, options={"accumulate": "float32"})["a.bias"].dtype == torch.float64


def test_complex_weights_are_weights():
    models = [{"w": torch.tensor([1 + 2j, 3 - 1j])}, {"w": torch.tensor([3 + 0j, 1 + 1j])}]
    assert combine(models)["w"].tolist() == [2 + 1j, 2 + 0j]


def test_a_transposed_weight_is_read_as_it_is_shaped():
    a = torch.arange(6.0).view(2, 3).t()
    b = torch.arange(6.0).view(3, 2).clone()
    assert torch.equal(combine([{"w": a}, {"w": b}])["w"], (a + b) / 2)


# Integers are no weights.


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_equal_integers_are_kept(dtype: torch.dtype):
    mask = torch.tensor([1, 0, 1]).to(dtype)
    merged = combine([{"mask": mask}, {"mask": mask.clone()}])["mask"]
    assert merged.dtype == dtype and torch.equal(merged, mask) and merged is not mask


def test_counters_are_taken_from_the_first_model():
    models = [{"bn.num_batches_tracked": torch.tensor(n)} for n in (7, 9)]
    assert combine(models)["bn.num_batches_tracked"].item() == 7


def test_other_integers_that_differ_are_all_named():
    models = [{"ids": torch.tensor([n]), "w": torch.ones(1), "on": torch.tensor(n > 1)} for n in (1, 2)]
    with pytest.raises(
        MismatchError, match="2 tensors differ in a way that average cannot combine"
    ) as raised:
        combine(models)
    assert raised.value.where == ("ids (int64)", "on (bool)")


# Tied weights.


def tied(seed: int) -> Weights:
    model = state(seed)
    return {**model, "head.weight": model["a.weight"]}


def test_what_is_tied_in_every_model_stays_tied():
    merged = combine([tied(0), tied(1)])
    assert merged["head.weight"] is merged["a.weight"]


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_tied_in_one_model_only_is_combined_apart(which: int):
    models = [tied(0), tied(1)]
    models[which]["head.weight"] = torch.full((3, 4), 5.0)
    merged = combine(models)
    expected = (models[0]["head.weight"] + models[1]["head.weight"]) / 2
    torch.testing.assert_close(merged["head.weight"], expected)
    assert merged["head.weight"] is not merged["a.weight"]


def test_tied_keys_may_be_named():
    models = [{**state(i), "head.weight": state(i)["a.weight"].clone()} for i in range(2)]
    merged = combine(models, tied={"head.weight": "a.weight"})
    assert merged["head.weight"] is merged["a.weight"]


def test_a_slice_that_begins_where_its_whole_does_is_not_tied():
    whole = torch.arange(6.0).view(3, 2)
    models = [{"w": whole, "part": whole[:2]}, {"w": whole + 1, "part": whole[:2] + 3}]
    merged = combine(models)
    assert torch.equal(merged["part"], whole[:2] + 1.5)


# Bad input: all problems, and a hint.


def test_keys_and_shapes_that_differ_are_all_listed():
    a, b = state(0), state(1)
    b["extra"], b["a.bias"] = b.pop("scale"), torch.zeros(4)
    with pytest.raises(MismatchError) as raised:
        combine([a, b], names=["ours", "theirs"])
    text = str(raised.value)
    for word in ("extra", "scale", "a.bias", "(3,)", "(4,)", "ours", "theirs"):
        assert word in text


def test_the_third_model_is_checked_too():
    with pytest.raises(MismatchError, match=r"models\[2\]"):
        combine([state(0), state(1), {"a.bias": torch.zeros(3)}])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_names_model_and_tensor(value: float):
    models = [state(0), state(1)]
    models[1]["a.bias"][2] = value
    with pytest.raises(WeightsError, match=r"models\[1\][\s\S]*a\.bias|a\.bias[\s\S]*models\[1\]"):
        combine(models)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([0.5, 0.7], "sum to 1.2, not 1"),
        ([1.0], "1 weights for 2 models"),
        ([0.5, float("nan")], "not all finite"),
        ([0.5, 0.5, 0.5], "3 weights for 2 models"),
    ],
)
def test_wrong_weights_are_refused(weights: list[float], words: str):
    with pytest.raises(InputError, match="the models' weights are wrong") as raised:
        combine([state(0), state(1)], weights=weights)
    assert words in str(raised.value)


def test_a_number_and_a_sum_that_are_wrong_are_said_together():
    with pytest.raises(InputError) as raised:
        normalised([0.5, 0.7, 0.2], 2)
    assert len(raised.value.where) == 2


@pytest.mark.parametrize("options", [{"density": 0.5}, {"weights": [1, 0]}, {"tensors": []}])
def test_an_unknown_option_is_named(options: dict[str, object]):
    with pytest.raises(InputError, match=f"average has no option '{next(iter(options))}'"):
        combine([state(0), state(1)], options=options)


def test_an_unknown_rule_has_a_hint():
    with pytest.raises(InputError, match="did you mean 'average'"):
        combine([state(0), state(1)], "averag")


def test_no_models_are_nothing_to_merge():
    with pytest.raises(InputError, match="nothing to merge"):
        combine([])


def test_the_rule_is_a_pure_function_of_tensors():
    tensors = [torch.ones(2), torch.full((2,), 3.0)]
    assert average(tensors, weights=[0.25, 0.75]).tolist() == [2.5, 2.5]
    assert all(p.kind is p.KEYWORD_ONLY for p in list(inspect.signature(average).parameters.values())[1:])
    assert COMBINATIONS.get("average").function is average


def test_merging_mappings_is_combining():
    models = [state(0), state(1)]
    assert same(isthmus.merge(models, weights=[0.3, 0.7]).weights, combine(models, weights=[0.3, 0.7]))
