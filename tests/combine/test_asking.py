"""What is asked of a rule, and what is said where it is asked wrongly: all of it, at once."""

import jaxtyping
import pytest
import torch
from torch import Tensor

import isthmus
from isthmus.combine import COMBINATIONS, blockwise, combine
from isthmus.errors import InputError, MismatchError, WeightsError

Weights = dict[str, Tensor]


def state(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(4, 3, generator=generator), "b": torch.randn(4, generator=generator)}


BASE, MODELS = state(0), [state(1), state(2)]


@pytest.fixture
def as_users_run_it():
    """Without the checks of annotations at run time, which only our tests have."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


BASED = [row.name for row in COMBINATIONS.rows() if "base" in row.needs]


@pytest.mark.parametrize("name", BASED)
def test_a_missing_base_is_named(name: str):
    models = MODELS[:1] if name in ("near-swap", "arcee-fusion") else MODELS
    with pytest.raises(InputError, match=f"{name} needs a base model"):
        combine(models, name)


@pytest.mark.parametrize("name", ["fisher", "reg-mean"])
def test_missing_statistics_are_named(name: str):
    with pytest.raises(InputError, match=f"{name} needs statistics"):
        combine(MODELS, name)


@pytest.mark.usefixtures("as_users_run_it")
def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(InputError) as raised:
        combine(
            MODELS, "ties", weights=[1.0, float("nan"), 2.0], options={"density": 0.0, "divide": "thirds"}
        )
    text = str(raised.value)
    for words in (
        "ties needs a base model",
        "3 weights for 2 models",
        "not all finite",
        "density = 0 is not in (0, 1]",
        "divide = 'thirds' is none of 'weights', 'count', 'none'",
    ):
        assert words in text


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ties", {"density": 1.2}, "density = 1.2 is not in (0, 1]"),
        ("ties", {"density": [0.5, 0.5, 0.5]}, "density has 3 values for 2 models"),
        ("ties", {"convention": "papers"}, "ties has no convention 'papers'"),
        ("ties", {"vote": "loudest"}, "vote = 'loudest' is none of 'sum', 'count'"),
        ("ties", {"denstiy": 0.2}, "ties has no option 'denstiy'"),
        ("dare-linear", {"density": 0.0}, "density = 0 is not in (0, 1]"),
        ("dare-ties", {"density": float("nan")}, "density = nan is not in (0, 1]"),
        ("breadcrumbs", {"gamma": 1.0}, "gamma = 1 is not in [0, 1)"),
        ("della", {"density": 0.1, "epsilon": 0.15}, "probabilities from -0.05 to 0.25 are not in (0, 1)"),
        ("slerp", {"per": "layer"}, "per = 'layer' is none of"),
        ("slerp", {"threshold": 0.0}, "threshold = 0 is not in (0, 1]"),
        ("karcher", {"tol": 0.0, "max_iter": 0}, "max_iter = 0 is not at least 1"),
        ("model-stock", {"convention": "peft"}, "convention = 'peft' is none of"),
        ("sce", {"density": 2.0}, "density = 2 is not in (0, 1]"),
        ("consensus", {"least": 3}, "least = 3 of 2 models"),
        ("tall-mask", {"task": 2}, "task = 2 of 2 models, from 0"),
        ("iso-cts", {"common": -0.1}, "common = -0.1 is not in [0, 1]"),
        ("ram", {"epsilon": -1.0}, "epsilon = -1 is not at least 0"),
    ],
)
def test_options_out_of_range_are_named(name: str, options: dict, words: str):
    base = BASE if name in BASED else None
    with pytest.raises(InputError) as raised:
        combine(MODELS, name, base=base, options=options)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        ("slerp", 1, "slerp merges 2 models, not 1"),
        ("slerp", 3, "slerp merges 2 models, not 3"),
        ("model-stock", 1, "model-stock merges 2 or more models, not 1"),
        ("passthrough", 2, "passthrough merges 1 model, not 2"),
        ("near-swap", 2, "near-swap merges 1 model, not 2"),
    ],
)
def test_the_number_of_models_is_checked(name: str, count: int, words: str):
    models = [state(i) for i in range(count)]
    with pytest.raises(InputError, match=words):
        combine(models, name, base=BASE if name in BASED else None)


def test_what_a_rule_does_not_take_is_refused():
    with pytest.raises(InputError, match="average takes no base model"):
        combine(MODELS, base=BASE)
    with pytest.raises(InputError, match="average takes no statistics"):
        combine(MODELS, statistics=MODELS)
    with pytest.raises(InputError, match="takes no weights"):
        combine(MODELS, "model-stock", base=BASE, weights=[0.3, 0.7])


@pytest.mark.parametrize("name", ["linear", "multislerp", "task-arithmetic"])
def test_weights_that_sum_to_nothing_cannot_be_divided_by(name: str):
    options = {"normalize": True} if name == "task-arithmetic" else {}
    with pytest.raises(InputError, match="sum to 0"):
        combine(MODELS, name, base=BASE if name in BASED else None, weights=[1.0, -1.0], options=options)


def test_coefficients_need_not_sum_to_one_and_shares_must():
    assert combine(MODELS, "task-arithmetic", base=BASE, weights=[0.3, 0.3])
    with pytest.raises(InputError, match=r"sum to 0\.6, not 1"):
        combine(MODELS, "slerp", weights=[0.3, 0.3])


def test_directions_that_cancel_have_no_mean():
    far = [torch.tensor([1.0, 0]), torch.tensor([-0.5, 0.75**0.5]), torch.tensor([-0.5, -(0.75**0.5)])]
    with pytest.raises(InputError, match="directions cancel"):
        combine([{"w": t} for t in far], "multislerp")


def test_negative_information_is_refused():
    known = [{"w": torch.ones(4, 3)}, {"w": -torch.ones(4, 3)}]
    with pytest.raises(InputError, match="the information of w is negative"):
        combine(MODELS, "fisher", statistics=known)


def test_the_base_is_checked_as_the_models_are():
    with pytest.raises(MismatchError, match="the base"):
        combine(MODELS, "ties", base={"w": BASE["w"]})
    with pytest.raises(MismatchError, match="the base"):
        combine(MODELS, "ties", base={**BASE, "b": torch.zeros(5)})
    with pytest.raises(WeightsError, match="the base"):
        combine(MODELS, "ties", base={**BASE, "b": torch.full((4,), float("nan"))})


def test_statistics_are_checked_against_the_models():
    with pytest.raises(InputError, match="1 mappings of statistics for 2 models"):
        combine(MODELS, "fisher", statistics=[BASE])
    known = [{"w": torch.ones(4, 3), "b": torch.ones(3), "x": torch.ones(1)}, {"w": torch.ones(4, 3)}]
    known[1]["x"] = torch.ones(1)
    with pytest.raises(MismatchError, match="2 statistics do not fit") as raised:
        combine(MODELS, "fisher", statistics=known)
    assert "b (of 1 of 2 models only)" in str(raised.value) and "x (no model" in str(raised.value)
    bad = {"w": torch.full((4, 3), float("inf"))}
    with pytest.raises(WeightsError, match=r"the statistics of models\[1\]"):
        combine(MODELS, "fisher", statistics=[{"w": torch.ones(4, 3)}, bad])
    with pytest.raises(MismatchError, match=r"Gram matrices of w \(4, 3\) are not \(3, 3\)"):
        combine(MODELS, "reg-mean", statistics=[{"w": torch.eye(4)}] * 2)


def test_integers_counters_and_ties_are_as_in_an_average():
    def with_buffers(model: Weights, steps: int) -> Weights:
        return {
            **model,
            "head": model["w"],
            "bn.num_batches_tracked": torch.tensor(steps),
            "ids": torch.arange(3),
        }

    base, a, b = with_buffers(BASE, 0), with_buffers(MODELS[0], 5), with_buffers(MODELS[1], 6)
    found = combine([a, b], "ties", base=base)
    assert list(found) == list(a)
    assert found["head"] is found["w"] and found["bn.num_batches_tracked"] == 5
    assert torch.equal(found["ids"], torch.arange(3))
    b["ids"] = torch.arange(1, 4)
    with pytest.raises(MismatchError, match=r"ids \(int64\)"):
        combine([a, b], "ties", base=base)


def test_complex_tensors_are_for_weighted_sums_only():
    models = [{"w": torch.tensor([1 + 1j])}, {"w": torch.tensor([3 + 1j])}]
    base = {"w": torch.tensor([0j])}
    found = combine(models, "task-arithmetic", base=base)["w"]
    torch.testing.assert_close(found, torch.tensor([4 + 2j]))
    with pytest.raises(MismatchError, match="complex: ties orders numbers"):
        combine(models, "ties", base=base)


def test_names_with_underscores_get_a_hint():
    with pytest.raises(InputError, match="did you mean 'task-arithmetic'"):
        combine(MODELS, "task_arithmetic", base=BASE)


def test_the_seed_and_the_name_of_a_tensor_decide_the_masks():
    options = {"density": 0.5}
    once = combine(MODELS, "dare-linear", base=BASE, seed=1, options=options)
    again = combine(MODELS, "dare-linear", base=BASE, seed=1, options=options)
    other = combine(MODELS, "dare-linear", base=BASE, seed=2, options=options)
    assert all(torch.equal(once[k], again[k]) for k in once)
    assert not torch.equal(once["w"], other["w"])
    # Neither the order of the keys nor what else there is shows.
    alone = combine(
        [{"w": m["w"]} for m in MODELS], "dare-linear", base={"w": BASE["w"]}, seed=1, options=options
    )
    assert torch.equal(alone["w"], once["w"])


def test_a_rule_is_built_for_a_number_of_models_or_for_weights():
    assert blockwise("ties", 3).passes == blockwise("ties", [1.0, 1.0, 1.0]).passes
    with pytest.raises(InputError, match="sum to 3, not 1"):
        blockwise("average", [1.0, 2.0])


# merge


def test_merge_takes_a_base_and_a_rule_with_its_options():
    how = {"method": "ties", "density": 0.5, "convention": "mergekit"}
    found = isthmus.merge(MODELS, base=BASE, combine=how, weights=[0.5, 0.7])
    expected = combine(
        MODELS,
        "ties",
        base=BASE,
        weights=[0.5, 0.7],
        options={"density": 0.5, "convention": "mergekit"},
    )
    assert all(torch.equal(found.weights[k], expected[k]) for k in expected)
    same = isthmus.merge(
        MODELS, base=BASE, method="ties", density=0.5, convention="mergekit", weights=[0.5, 0.7]
    )
    assert all(torch.equal(same.weights[k], expected[k]) for k in expected)
    assert found.settings["method"] == "ties" and found.settings["weights"] == (0.5, 0.7)
    assert found.settings["density"] == 0.5 and found.settings["vote"] == "sum"
    assert "density" in str(found)


def test_merge_of_one_model_needs_a_rule_that_can():
    found = isthmus.merge(MODELS[:1], base=BASE, combine={"method": "task-arithmetic", "lam": 0.5})
    torch.testing.assert_close(found.weights["w"], (BASE["w"] + MODELS[0]["w"]) / 2)
    with pytest.raises(InputError, match="two or more models, got 1"):
        isthmus.merge(MODELS[:1])


def test_saying_twice_how_to_combine_is_refused():
    with pytest.raises(InputError, match="so does something else") as raised:
        isthmus.merge(MODELS, base=BASE, combine={"method": "ties"}, method="average-of", density=0.3)
    assert len(raised.value.where) == 2
    with pytest.raises(InputError, match="does not say how"):
        isthmus.merge(MODELS, base=BASE, combine={"density": 0.3})


def test_merge_says_all_that_is_wrong_with_a_rule_before_it_reads_a_file():
    with pytest.raises(InputError) as raised:
        isthmus.merge(
            ["nowhere/a.safetensors", "nowhere/b.safetensors"], combine={"method": "ties", "density": 0.0}
        )
    assert "needs a base" in str(raised.value) and "density = 0" in str(raised.value)


def test_merge_reads_a_base_and_statistics_from_files(tmp_path):
    for name, weights in (("base", BASE), ("a", MODELS[0]), ("b", MODELS[1])):
        isthmus.merge([weights, weights]).save(tmp_path / f"{name}.safetensors")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    found = isthmus.merge(files, base=tmp_path / "base.safetensors", combine="mag-max")
    expected = combine(MODELS, "mag-max", base=BASE)
    assert all(torch.equal(found.weights[k], expected[k]) for k in expected)
    assert str(found.settings["base"]).endswith("base.safetensors")
    known = isthmus.merge(MODELS, combine="fisher", statistics=[{"w": m["w"].abs()} for m in MODELS])
    assert known.weights["w"].shape == (4, 3)
