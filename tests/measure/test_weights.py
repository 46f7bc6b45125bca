"""What weights say without being run: agreement, signs, magnitudes."""

import pytest
import torch

from isthmus.errors import InputError, MismatchError
from isthmus.measure import scale_ratio, sign_conflict, weight_cosine, weight_distance


def test_cosine_and_distance_are_those_of_all_matrices_as_one_vector():
    a = {
        "one.weight": torch.tensor([[3.0, 0.0]]),
        "two.weight": torch.tensor([[4.0]]),
        "two.bias": torch.ones(1),
    }
    b = {
        "one.weight": torch.tensor([[0.0, 3.0]]),
        "two.weight": torch.tensor([[4.0]]),
        "two.bias": -torch.ones(1),
    }
    cosine, distance = weight_cosine([a, b]), weight_distance([a, b])
    assert cosine.value == pytest.approx(16 / 25)
    assert cosine.layers == pytest.approx({"one.weight": 0.0, "two.weight": 1.0})
    assert distance.value == pytest.approx(18**0.5 / 5)
    assert distance.layers == pytest.approx({"one.weight": 2**0.5, "two.weight": 0.0})


def test_copies_agree_and_three_models_are_three_pairs():
    a, b = {"w": torch.tensor([[1.0, 0.0]])}, {"w": torch.tensor([[0.0, 2.0]])}
    assert weight_distance([a, a]).value == 0 and weight_cosine([a, a]).value == pytest.approx(1)
    assert weight_cosine([a, a, b]).value == pytest.approx(1 / 3)
    nothing = {"w": torch.zeros(1, 2)}
    assert weight_cosine([nothing, nothing]).value == 1 and weight_cosine([a, nothing]).value == 0
    assert weight_distance([nothing, nothing]).value == 0


def test_strangers_of_equal_length_are_at_right_angles():
    random = torch.Generator().manual_seed(0)
    a, b = ({"w": torch.randn(300, 300, generator=random)} for _ in range(2))
    assert abs(weight_cosine([a, b]).value) < 0.02
    assert weight_distance([a, b]).value == pytest.approx(2**0.5, abs=0.02)
    assert sign_conflict([a, b]).value == pytest.approx(0.5, abs=0.01)


def test_signs_are_counted_by_hand():
    models = [
        {
            "a": torch.tensor([1.0, -1.0, 0.0, 2.0]),
            "b.running_mean": torch.tensor([1.0]),
            "n": torch.tensor(3),
        },
        {
            "a": torch.tensor([1.0, 1.0, -5.0, -2.0]),
            "b.running_mean": torch.tensor([-1.0]),
            "n": torch.tensor(4),
        },
    ]
    found = sign_conflict(models)
    assert found.value == 2 / 4 and found.layers == {"a": 0.5}
    base = {"a": torch.zeros(4) + 3, "b.running_mean": torch.zeros(1), "n": torch.tensor(0)}
    assert sign_conflict(models, base=base).value == 0  # all task vectors point down


def test_scale_ratio_is_mean_magnitude_over_the_parents_mean():
    a = {
        "l.weight": torch.tensor([[2.0, -2.0]]),
        "l.bias": torch.tensor([1.0]),
        "n.weight": torch.tensor([9.0]),
    }
    b = {
        "l.weight": torch.tensor([[-2.0, -4.0]]),
        "l.bias": torch.tensor([3.0]),
        "n.weight": torch.tensor([9.0]),
    }
    mean = {k: (a[k] + b[k]) / 2 for k in a}
    weights, biases = scale_ratio(mean, [a, b])
    assert weights.layers == pytest.approx({"l.weight": 1.5 / 2.5}) and weights.value == pytest.approx(0.6)
    assert biases.layers == pytest.approx({"l.bias": 1.0})


def test_the_midpoint_of_gaussians_shrinks_by_the_root_of_two():
    random = torch.Generator().manual_seed(0)
    a, b = ({"w": torch.randn(300, 300, generator=random)} for _ in range(2))
    weights, _ = scale_ratio({"w": (a["w"] + b["w"]) / 2}, [a, b])
    assert weights.value == pytest.approx(2**-0.5, rel=0.01)


def test_what_does_not_fit_is_refused():
    one = {"w": torch.ones(2, 2)}
    for measure in (weight_cosine, weight_distance, sign_conflict):
        with pytest.raises(InputError, match="two or more"):
            measure([one])
        with pytest.raises(MismatchError, match="w"):
            measure([one, {"w": torch.ones(3, 2)}])
    with pytest.raises(InputError, match="no matrix"):
        weight_cosine([{"b": torch.ones(2)}] * 2)
    with pytest.raises(InputError, match="no parent"):
        scale_ratio(one, [])
