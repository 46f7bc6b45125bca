"""REPAIR without running the merged model: exact in linear networks, near in others."""

import pytest
import torch
from torch import nn

from isthmus.errors import InputError
from isthmus.program import Cut, export, keep_apart
from isthmus.repair import goals, repair, repairable, rescale, reshift
from isthmus.zoo import LinearNetwork

both = pytest.mark.parametrize("method", [repair, rescale, reshift], ids=lambda m: m.__name__)


def strangers(make, count):
    torch.manual_seed(0)
    models = [make().double().eval() for _ in range(count)]
    for model in models:
        for key, value in model.state_dict().items():
            if value.ndim == 1 and "running" not in key:
                value += 0.3 * torch.randn_like(value)
            if "running_var" in key:
                value += torch.rand_like(value)
    return models


def average(states, shares):
    return {
        k: sum(w * s[k] for w, s in zip(shares, states, strict=True))
        if states[0][k].is_floating_point()
        else states[0][k]
        for k in states[0]
    }


@both
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.3, 0.5)])
def test_in_a_linear_network_it_is_the_forward_one(method, shares):
    make = lambda: LinearNetwork(depth=5, width=6, residual=False, d_in=7, num_classes=3)  # noqa: E731
    models = strangers(make, len(shares))
    data = torch.randn(40, 7, dtype=torch.float64) * torch.rand(7, dtype=torch.float64) + 0.4
    program, states = export(models[0], data[:2]), [m.state_dict() for m in models]
    merged = average(states, shares)
    batches = data.split(9)
    forward = method(
        program,
        merged,
        batches,
        goals=goals(program, states, shares, batches),
        mode="sequential",
    )
    closed = method(
        program,
        merged,
        iter(()),  # the data is not read
        goals=goals(program, states, shares, batches, reads=True),
        mode="closed-form",
    )
    assert closed.skipped == forward.skipped
    assert set(closed.changed) == set(forward.changed)
    for key, value in forward.weights.items():
        assert (closed.weights[key] - value).abs().max() <= 1e-9 * value.abs().max()
    assert (closed.mode, closed.examples, closed.batch_size) == ("closed-form", 40, 0)
    assert "closed form from what the models do on 40 examples" in str(closed)


@both
def test_the_first_layer_of_any_network_is_exact(method, get_net):
    net = get_net("vgg")
    first = repairable(net.program)[0]
    to = goals(net.program, net.weights, [0.5, 0.5], [net.data], [first], reads=True)
    closed = method(net.program, net.average, [], goals=to, layers=[first], mode="closed-form")
    forward = method(net.program, net.average, [net.data], goals=to, layers=[first], mode="sequential")
    for key in ("features.0.weight", "features.0.bias"):
        assert torch.allclose(closed.weights[key], forward.weights[key], rtol=1e-9)


@pytest.mark.parametrize("net", ["mlp", "vgg", "vgg-ln", "resnet", "vit"], indirect=True)
def test_elsewhere_it_is_nearer_to_the_forward_one_than_none(net):
    to = goals(net.program, net.weights, [0.5, 0.5], [net.data], reads=True)
    closed = repair(net.program, net.average, [], goals=to, mode="closed-form")
    forward = repair(net.program, net.average, [net.data], goals=to, mode="sequential")
    reached = goals(net.program, [closed.weights], [1.0], [net.data])
    before = goals(net.program, [net.average], [1.0], [net.data])
    assert closed.changed.keys() == forward.changed.keys()

    def off(stats):
        return sum(float((stats[v].std / to[v].std).log().abs().mean()) for v in closed.changed)

    assert off(reached) < 0.5 * off(before)


def test_batch_norms_right_behind_get_the_statistics_and_others_are_named():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.n, self.m = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.BatchNorm1d(5)
            self.b = nn.Linear(5, 2)

        def forward(self, x):
            return self.b(self.m(self.n(self.a(x)).relu()))

    models = strangers(Net, 2)
    data = torch.randn(30, 4, dtype=torch.float64)
    program, states = export(models[0], data[:2]), [m.state_dict() for m in models]
    to = goals(program, states, [0.5, 0.5], [data], reads=True)
    result = repair(program, average(states, (0.5, 0.5)), [], goals=to, mode="closed-form")
    assert torch.allclose(result.weights["n.running_mean"], to["linear"].mean)
    assert torch.allclose(result.weights["n.running_var"], to["linear"].std ** 2)
    assert [why for v, why in result.skipped.items() if "norm" in v] == [
        "its statistics have no closed form: it does not read one repaired layer"
    ]


def test_where_branches_meet_their_average_is_read_as_it_is(get_net):
    net = get_net("mlp")
    program, _ = keep_apart(net.program, Cut(preserve_first=1), [0.5, 0.5])
    weights = {
        key: net.weights[int(key[6])][key[8:]] if key.startswith("branch") else net.average[key]
        for key in program.weights.values()
    }
    to = goals(net.program, net.weights, [0.5, 0.5], [net.data], ["linear_1"], reads=True)
    closed = repair(program, weights, [], goals=to, mode="closed-form")
    forward = repair(program, weights, [net.data], goals=to, mode="sequential")
    for key, value in forward.weights.items():
        assert torch.allclose(closed.weights[key], value, rtol=1e-9, atol=1e-12)


def test_layers_without_a_closed_form_are_named_and_goals_without_what_it_takes_refused(get_net):
    net = get_net("mobilenet")
    to = goals(net.program, net.weights, [0.5, 0.5], [net.data], reads=True)
    result = rescale(net.program, net.average, [], goals=to, mode="closed-form")
    grouped = [v for v, why in result.skipped.items() if "no closed form: it is no product" in why]
    assert grouped and all("depthwise" in net.program.module_of(v) or v for v in grouped)
    assert all(v.isfinite().all() for v in result.weights.values())
    plain = goals(net.program, net.weights, [0.5, 0.5], [net.data])
    with pytest.raises(InputError, match=r"(?s)closed-form.*hint: measure them with.*reads=True"):
        rescale(net.program, net.average, [], goals=plain, mode="closed-form")
