"""How well calibration data determines standard deviations."""

import math

import pytest
import torch
from torch import nn

import isthmus
from isthmus.errors import DataError
from isthmus.program import export


def test_of_normal_numbers_the_error_is_the_textbooks_and_falls_with_the_root():
    torch.manual_seed(0)
    net = nn.Linear(16, 200)
    program, state = export(net, torch.randn(2, 16)), net.state_dict()
    for n in (128, 2048):
        found = isthmus.calibration_error(program, state, list(torch.randn(n, 16).split(100)))
        assert math.isclose(found.value, math.sqrt(1 / (2 * n)), rel_tol=0.15)
        assert len(found.layers) == 1
        needed = math.ceil(n * (found.value / 0.05) ** 2)
        assert found.note.endswith(f"calibration: {n} examples, 0.05 would take {needed}")


def test_it_does_not_depend_on_how_the_data_is_batched():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).eval(), torch.randn(40, 1, 6, 6)
    program = export(net, x[:2])
    values = [
        isthmus.calibration_error(program, net.state_dict(), list(x.split(n))).value for n in (40, 7, 3)
    ]
    assert max(values) - min(values) < 1e-4 * max(values)


def test_positions_of_one_example_are_no_independent_samples():
    net = nn.Conv2d(1, 2, 1)
    torch.manual_seed(0)
    x = torch.randn(64, 1, 1, 1).expand(64, 1, 5, 5).contiguous()  # 25 equal positions each
    found = isthmus.calibration_error(export(net, x[:2]), net.state_dict(), [x])
    assert 0.5 < found.value / math.sqrt(1 / 128) < 2


def test_dead_channels_are_left_out_and_too_few_examples_refused():
    net = nn.Linear(3, 2)
    state = {"weight": torch.tensor([[1.0, 0, 0], [0, 0, 0]]), "bias": torch.zeros(2)}
    program, x = export(net, torch.randn(2, 3)), torch.randn(32, 3)
    assert 0 < isthmus.calibration_error(program, state, [x]).value < 1
    assert isthmus.calibration_error(program, {**state, "weight": torch.zeros(2, 3)}, [x]).value == 0
    with pytest.raises(DataError, match=r"5 examples cannot be divided into 8 groups"):
        isthmus.calibration_error(program, state, [x[:5]])
