"""Repairs that look at weights alone: biases removed and calibrated, parameters rescaled."""

import pytest
import torch
from torch import nn

from isthmus.errors import InputError
from isthmus.program import Cut, export, keep_apart
from isthmus.repair import calibrate_bias, remove_bias, rescale_parameters
from isthmus.repair.homogeneity import degrees
from isthmus.repair.writers import levels


def removed(result):
    return [change.module for change in result.changed.values()]


def merged_apart(net, **cut):
    program, _ = keep_apart(net.program, Cut(**cut), [0.5, 0.5])
    weights = {
        key: net.weights[int(key[6])][key[8:]] if key.startswith("branch") else net.average[key]
        for key in program.weights.values()
    }
    return program, weights


# Bias removal.


def test_biases_are_removed_from_either_end(get_net):
    net = get_net("mlp")
    for options, modules in (
        ({}, ["layers.0", "layers.1", "layers.2"]),
        ({"last": 1}, ["layers.2"]),
        ({"last": 2}, ["layers.1", "layers.2"]),
        ({"first": 2}, ["layers.0", "layers.1"]),
        ({"first": "all"}, ["layers.0", "layers.1", "layers.2"]),
        ({"last": 0}, []),
    ):
        result = remove_bias(net.program, net.average, **options)
        assert removed(result) == modules
        for key, value in result.weights.items():
            gone = key.endswith("bias") and key.removesuffix(".bias") in modules
            assert torch.equal(value, torch.zeros_like(value) if gone else net.average[key])
    assert result.mode == "none" and "from weights alone" in str(result)


def test_the_best_number_of_layers_is_the_one_that_scores_best_and_the_smaller_of_two(get_net):
    net = get_net("vgg")
    depth = max(levels(net.program).values())
    seen = []

    def score(weights):
        gone = sum(int(not v.any()) for k, v in weights.items() if k.endswith("bias"))
        seen.append(gone)
        return -abs(gone - 3.5)

    result = remove_bias(net.program, net.average, last="best", score=score)
    assert seen == list(range(depth + 1))
    assert result.settings == {"last": 3}
    assert len(result.changed) == 3
    assert "3: -0.5" in result.notes[0] and "4: -0.5" in result.notes[0]
    assert removed(remove_bias(net.program, net.average, first="best", score=score))[0] == "features.0"


def test_layers_are_counted_by_depth_without_the_borders_of_kept_apart_parts(get_net):
    net = get_net("resnet")
    numbers = levels(net.program)
    shortcut = [v for v in numbers if "shortcut" in net.program.module_of(v)]
    assert shortcut and all(list(numbers.values()).count(numbers[v]) == 2 for v in shortcut)
    net = get_net("vgg")
    program, weights = merged_apart(net, preserve_first=3)
    result = remove_bias(program, weights)
    assert set(result.skipped.values()) == {"it is kept apart, not merged"}
    changed = {k for k in weights if not torch.equal(weights[k], result.weights[k])}
    assert changed == {k for k in weights if k.endswith("bias") and not k.startswith("branch")}
    assert {v: n for v, n in levels(program).items() if not v.startswith("branch")} == {
        v: n for v, n in levels(net.program).items() if n > 3
    }


def test_a_bias_that_the_norm_behind_takes_off_is_left():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    result = remove_bias(export(net, torch.randn(5, 3)), net.state_dict())
    assert removed(result) == ["3"]
    assert list(result.skipped.values()) == ["the batch norm behind it takes its bias off"]


def test_wrong_numbers_of_layers_are_all_named(get_net):
    net = get_net("mlp")
    with pytest.raises(InputError, match=r"(?s)last=4, the model has 3 layers"):
        remove_bias(net.program, net.average, last=4)
    with pytest.raises(InputError, match=r"(?s)last=1 and first=9: one of them.*first=9, the model has 3"):
        remove_bias(net.program, net.average, last=1, first=9)
    with pytest.raises(InputError, match='last="best" is chosen on validation data, and there is no score'):
        remove_bias(net.program, net.average, last="best")


# Bias calibration.


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_calibrated_biases_are_those_of_the_formula(get_net, alpha):
    net = get_net("vgg")
    a, b = net.weights
    merged = {k: (1 - alpha) * a[k] + alpha * b[k] for k in a}
    result = calibrate_bias(net.program, merged, terms=net.weights, shares=[1 - alpha, alpha])
    depth, obstacles = degrees(net.program)
    assert obstacles == [] and sorted(depth.values()) == list(range(1, 1 + len(depth)))
    for change in result.changed.values():
        (key,) = change.into
        power = depth[change.value]
        wanted = (1 - alpha) ** power * a[key] + alpha**power * b[key]
        assert torch.allclose(result.weights[key], wanted, rtol=1e-12, atol=0)
    if alpha in (0.0, 1.0):  # the ends of the segment stay exact
        assert all(torch.equal(result.weights[k], (a, b)[int(alpha)][k]) for k in a)
    assert all(torch.equal(v, merged[k]) for k, v in result.weights.items() if not k.endswith("bias"))


@pytest.mark.parametrize("net", ["mlp", "vgg"], indirect=True)
def test_a_network_scales_along_with_its_weights_if_its_biases_are_calibrated(net):
    """What the method stands on: all weights times s, biases times s^depth, is the function times s^L."""
    depth, _ = degrees(net.program)
    own, s = net.weights[0], 0.7
    scaled = {k: v * s for k, v in own.items()}
    result = calibrate_bias(net.program, scaled, terms=[own, own], shares=[s, 1 - s])
    only = {
        k: own[k] * s ** depth[next(v for v, c in result.changed.items() if k in c.into)]
        if k.endswith("bias")
        else v
        for k, v in scaled.items()
    }
    ours, theirs = net.run(only), net.run(own) * s ** max(depth.values())
    assert (ours - theirs).abs().max() < 1e-12 * theirs.abs().max()


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        ("vgg-bn", "features.1:batch_norm: a norm takes scales off"),
        ("vgg-ln", "a norm takes scales off"),
        ("resnet", "paths of different depth meet, 1 and 3 layers from the input"),
        ("linear", "paths of different depth meet, 1 and 2 layers"),
        ("vit", "weights come in that are no layer's own"),
    ],
    indirect=["net"],
)
def test_networks_in_which_depth_means_nothing_are_refused_with_the_place(net, reason):
    with pytest.raises(InputError, match=f"(?s)biases cannot be calibrated.*{reason}.*hint: 'rescale' and"):
        calibrate_bias(net.program, net.average, terms=net.weights, shares=[0.5, 0.5])


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (nn.GELU(), "it does not scale with its input"),
        (nn.Tanh(), "it does not scale"),
        (nn.PReLU(), "weights come in"),
        (nn.LeakyReLU(), None),
        (nn.MaxPool1d(2), None),
        (nn.ReLU6(), "it does not scale"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_activations_are_positively_homogeneous_or_refused(act, why):
    torch.manual_seed(0)
    inner = 2 if isinstance(act, nn.MaxPool1d) else 4
    net = nn.Sequential(nn.Linear(3, 4), act, nn.Linear(inner, 2))
    _, obstacles = degrees(export(net, torch.randn(5, 3)))
    assert obstacles == [] if why is None else why in obstacles[0]


def test_paths_of_one_depth_may_meet_and_constants_may_not():
    class Two(nn.Module):
        def __init__(self, add):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
            self.add = add

        def forward(self, x):
            return self.c((self.a(x).relu() + self.b(x)) / 2 + self.add)

    assert degrees(export(Two(0), torch.randn(5, 3))) == ({"linear": 1, "linear_1": 1, "linear_2": 2}, [])
    assert degrees(export(Two(1.0), torch.randn(5, 3)))[1] == ["add: a constant is added"]


def test_preserved_layers_count_as_depth(get_net):
    net = get_net("vgg")
    program, weights = merged_apart(net, preserve_first=3)
    depth, obstacles = degrees(program)
    assert obstacles == []
    whole, _ = degrees(net.program)
    assert {v: d for v, d in depth.items() if not v.startswith("branch")} == {
        v: d for v, d in whole.items() if d > 3
    }
    result = calibrate_bias(program, weights, terms=net.weights, shares=[0.5, 0.5])
    key = "classifier.bias"
    assert torch.allclose(result.weights[key], weights[key] * 2.0 ** (1 - whole["linear"]))
    assert not any(k.startswith("branch") for c in result.changed.values() for k in c.into)


# Rescaled parameters.


def test_magnitudes_are_the_models_average_afterwards(get_net):
    net = get_net("vgg-ln")
    shares = [0.3, 0.7]
    merged = {k: shares[0] * net.weights[0][k] + shares[1] * net.weights[1][k] for k in net.average}
    result = rescale_parameters(net.program, merged, parents=net.weights, shares=shares)
    for change in result.changed.values():
        for key in change.into:
            goal = sum(w * m[key].abs().mean() for w, m in zip(shares, net.weights, strict=True))
            assert torch.allclose(result.weights[key].abs().mean(), goal)
            assert torch.allclose(result.weights[key] / merged[key], change_of(result, merged, key))
        assert change.gain[0] > 1  # strangers' average is smaller than they are
    assert result.skipped == {"linear": "it is an output of the model"}


def change_of(result, merged, key):
    """One factor for the whole tensor."""
    return (result.weights[key] / merged[key]).flatten()[0]


def test_averages_of_independent_weights_are_smaller_by_the_root_of_their_number():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 2))
    models = [
        {k: torch.randn(v.shape, dtype=torch.float64) for k, v in net.state_dict().items()} for _ in range(4)
    ]
    merged = {k: sum(m[k] for m in models) / 4 for k in models[0]}
    result = rescale_parameters(export(net, torch.randn(3, 40)), merged, parents=models, shares=[0.25] * 4)
    assert abs(result.changed["linear"].gain[0] - 2) < 0.1


def test_factors_are_limited_and_nothing_is_made_of_nothing(get_net):
    net = get_net("mlp")
    weak = {k: v * 1e-4 if k == "layers.0.weight" else v * 0 for k, v in net.average.items()}
    result = rescale_parameters(net.program, weak, parents=net.weights, shares=[0.5, 0.5])
    assert result.clamped == 1
    assert result.changed["linear"].gain == (100.0, 100.0, 100.0)
    assert result.changed["linear_1"].gain == (1.0, 1.0, 1.0)
    with pytest.raises(InputError, match=r"max_gain=0\.0 is not positive"):
        rescale_parameters(net.program, weak, parents=net.weights, shares=[0.5, 0.5], max_gain=0.0)
    with pytest.raises(InputError, match=r"shares \(0.5, 0.6\) do not weigh 2 models"):
        rescale_parameters(net.program, weak, parents=net.weights, shares=[0.5, 0.6])
