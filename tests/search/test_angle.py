"""The angle between task vectors."""

import math

import pytest
import torch

from isthmus import angles, soup
from isthmus.errors import InputError


def moved(base, **changes):
    named = {key.replace("_", ".", 1): step for key, step in changes.items()}
    return {**base, **{key: base[key] + step for key, step in named.items()}}


@pytest.fixture
def base():
    return {"body.weight": torch.zeros(3, 2), "head.weight": torch.ones(2), "n.running_mean": torch.zeros(2)}


def test_angles_are_those_of_the_differences_from_the_base(base):
    a = moved(base, body_weight=torch.tensor([[1.0, 0], [0, 0], [0, 0]]))
    b = moved(base, body_weight=torch.tensor([[1.0, 1.0], [0, 0], [0, 0]]))
    c = moved(base, body_weight=torch.tensor([[-2.0, 0], [0, 0], [0, 0]]))
    found = angles([a, b, c], base, names=["a", "b", "c"])
    assert found.degrees[0][1] == pytest.approx(45) and found.degrees[0][2] == pytest.approx(180)
    assert found.lengths == pytest.approx((1, math.sqrt(2), 2))
    assert [pair[:2] for pair in found.pairs] == [("a", "c"), ("b", "c"), ("a", "b")]
    assert str(found).splitlines()[1].startswith("a, c")


def test_statistics_and_excluded_heads_do_not_count(base):
    a = moved(base, body_weight=1.0, head_weight=5.0, n_running_mean=3.0)
    b = moved(base, body_weight=1.0, head_weight=-5.0)
    assert angles([a, b], base).degrees[0][1] > 90
    found = angles([a, b], base, exclude=["head.*"])
    assert found.degrees[0][1] == pytest.approx(0, abs=1e-4)
    assert found.left_out == ("head.weight", "n.running_mean") and found.counted == 6
    with pytest.raises(InputError, match="between two or more models, got 1"):
        angles([a], base)
    with pytest.raises(InputError, match="no tensor is left"):
        angles([a, b], base, exclude=["*"])


def test_a_model_that_did_not_move_has_no_angle(base):
    found = angles([dict(base), moved(base, body_weight=1.0)], base)
    assert math.isnan(found.degrees[0][1]) and found.lengths[0] == 0


def test_in_one_basin_the_angle_orders_the_gain(drawn, near):
    """For a quadratic loss and vectors of one length, the gain of a mean grows with the angle exactly."""
    base = drawn(0)
    generator = torch.Generator().manual_seed(1)
    models = []
    for _ in range(4):
        step = torch.randn(4, 3, generator=generator)
        models.append({**base, "layer.weight": base["layer.weight"] + step / step.norm()})
    score = near(base)
    gains = []
    for first, second, _ in angles(models, base).pairs:
        pair = [models[int(name[7])] for name in (first, second)]
        mean = soup(pair, score, "uniform").score
        gains.append(mean - (score(pair[0]) + score(pair[1])) / 2)
    assert gains == sorted(gains, reverse=True)


def test_distances_follow_from_angles_and_lengths(siblings, drawn):
    found = angles(siblings, drawn(0))
    flat = [torch.cat([v.double().flatten() for k, v in s.items() if k != "steps"]) for s in siblings]
    for i, a in enumerate(flat):
        for j, b in enumerate(flat):
            assert found.distances[i][j] == pytest.approx(float((a - b).norm()), abs=1e-6)
