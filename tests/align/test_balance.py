"""The shortest weights of the same function."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus
from isthmus.align.orders.balance import balance
from isthmus.symmetry import SymmetryGraph

Weights = dict[str, Tensor]
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def length(graph: SymmetryGraph, weights: Weights) -> float:
    taken = {slot.key for gauge in graph.gauges.values() for slot in gauge.slots} - graph.program.buffers
    return sum(float(weights[key].square().sum()) for key in taken)


def uneven(model: nn.Module) -> nn.Module:
    """Rows of very different lengths, as training leaves them."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        shape = [parameter.shape[0], *[1] * (parameter.ndim - 1)]
        parameter.data = torch.randn_like(parameter) * torch.exp(torch.randn(shape))
    for key, value in model.named_buffers():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if key.endswith("var") else torch.randn_like(value))
    return model.double().eval()


def square(*between: nn.Module) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(8, 8)]
    for module in between:
        layers += [module, nn.Linear(8, 8)]
    return uneven(nn.Sequential(*layers))


NETS = {
    "relu": lambda: square(nn.ReLU(), nn.ReLU()),
    "linear": lambda: square(nn.Identity(), nn.Identity()),
    "cubes": lambda: square(Power(3.0)),
    "batch norm": lambda: square(nn.BatchNorm1d(8), nn.ReLU()),
}


class Power(nn.Module):
    def __init__(self, exponent: float):
        super().__init__()
        self.exponent = exponent

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) ** self.exponent


@pytest.mark.parametrize("name", NETS)
def test_balanced_weights_compute_the_same_and_are_the_shortest(name: str):
    model = NETS[name]()
    graph = isthmus.trace(model, X)
    state = dict(model.state_dict())
    element = balance(graph, state)
    assert not element.orders
    short = element.apply(graph, state)
    torch.testing.assert_close(torch.func.functional_call(model, short, (X,)), model(X))
    best = length(graph, short)
    if name != "batch norm":
        assert best < 0.99 * length(graph, state)
        for seed in range(2):
            # Any other point of the orbit is longer: nearby, and far away.
            other = graph.random_element(seed)
            other = type(other)({}, {k: v for k, v in other.values.items() if graph.gauges[k].kind != "sign"})
            assert length(graph, other.apply(graph, short)) > best * (1 + 1e-6)
    again = balance(graph, short)
    for key, value in again.apply(graph, short).items():
        torch.testing.assert_close(value, short[key], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["relu", "cubes", "batch norm"])
def test_two_points_of_one_orbit_have_the_same_shortest_point(name: str):
    model = NETS[name]()
    graph = isthmus.trace(model, X)
    state = dict(model.state_dict())
    scales = graph.random_element(1)
    scales = type(scales)({}, {k: v for k, v in scales.values.items() if graph.gauges[k].kind == "positive"})
    moved = scales.apply(graph, state)
    ours, theirs = balance(graph, state).apply(graph, state), balance(graph, moved).apply(graph, moved)
    for key in graph.layout:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-6, atol=1e-8)


def test_a_balanced_relu_unit_is_written_as_long_as_it_is_read():
    model = NETS["relu"]()
    graph = isthmus.trace(model, X)
    short = balance(graph, dict(model.state_dict())).apply(graph, dict(model.state_dict()))
    written = short["0.weight"].square().sum(1) + short["0.bias"].square()
    torch.testing.assert_close(written, short["2.weight"].square().sum(0))


def test_in_a_balanced_linear_network_layers_have_the_same_products():
    model = NETS["linear"]()
    graph = isthmus.trace(model, X)
    short = balance(graph, dict(model.state_dict())).apply(graph, dict(model.state_dict()))
    written = short["0.weight"] @ short["0.weight"].T + torch.outer(short["0.bias"], short["0.bias"])
    torch.testing.assert_close(written, short["2.weight"].T @ short["2.weight"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("which", ["0.weight", "2.weight"])
def test_a_dead_unit_is_left_alone(which: str):
    model = NETS["relu"]()
    model.state_dict()["0.bias"][3] = 0.0
    model.state_dict()[which].select(0 if which == "0.weight" else 1, 3).zero_()
    graph = isthmus.trace(model, X)
    element = balance(graph, dict(model.state_dict()))
    assert element.values["0:positive"][3] == 1.0
    assert all(bool(torch.isfinite(value).all()) for value in element.values.values())


def test_a_linear_space_that_is_not_filled_has_no_shortest_point_and_is_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.Linear(8, 2)).double().eval()
    graph = isthmus.trace(model, X[:, :3])
    element = balance(graph, dict(model.state_dict()))
    assert torch.equal(element.values["0:invertible"], torch.eye(8, dtype=torch.float64))


def test_what_nothing_reads_has_no_shortest_point_either():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 6), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)[:, :3])

    model = uneven(Half())
    graph = isthmus.trace(model, X)
    assert "invertible" in graph.groups.values()
    element = balance(graph, dict(model.state_dict()))
    torch.testing.assert_close(
        torch.func.functional_call(model, element.apply(graph, dict(model.state_dict())), (X,)), model(X)
    )


@pytest.mark.parametrize("reader_first", [False, True])
def test_a_running_variance_stays_positive(reader_first: bool):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            if reader_first:
                self.b = nn.Linear(8, 2)
            self.norm = nn.BatchNorm1d(8, eps=0.1, affine=False)
            self.a = nn.Linear(8, 8)
            if not reader_first:
                self.b = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.norm(self.a(x))))

    model = uneven(Net())
    model.a.weight.data.mul_(50)
    model.norm.running_var.fill_(0.2)
    graph = isthmus.trace(model, X)
    state = dict(model.state_dict())
    element = balance(graph, state)
    moved = element.apply(graph, state)
    assert (moved["norm.running_var"] > 0).all(), "the scale went as far as it may, and no further"
    assert (moved["norm.running_var"] < 1e-3).all()
    torch.testing.assert_close(torch.func.functional_call(model, moved, (X,)), model(X))


class Multiplied(nn.Module):
    """A depthwise convolution that makes several channels of each, and a batch norm."""

    def __init__(self, multiplier: int):
        super().__init__()
        self.a, self.d = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4 * multiplier, 3, groups=4)
        self.norm, self.head = nn.BatchNorm2d(4 * multiplier), nn.Linear(4 * multiplier, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.d(torch.relu(self.a(x))))).mean((2, 3)))


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_units_with_several_running_variances_are_balanced_and_matched(multiplier: int):
    images = torch.randn(9, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    models = []
    for seed in (0, 1):
        model = uneven(Multiplied(multiplier))
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter)
        models.append(model)
    graph = isthmus.trace(models[0], images[:2])
    state, other = (dict(model.state_dict()) for model in models)
    short = balance(graph, state).apply(graph, state)
    torch.testing.assert_close(torch.func.functional_call(models[0], short, (images,)), models[0](images))
    again = balance(graph, short).apply(graph, short)
    for key in graph.layout:
        torch.testing.assert_close(again[key], short[key], rtol=1e-7, atol=1e-9)
    for by in ("weight-matching", "activation-matching"):
        found = isthmus.align(graph, [state, other], by=by, data=[images], groups="full")
        moved = found.apply([state, other])[1]
        torch.testing.assert_close(
            torch.func.functional_call(models[1], moved, (images,)), models[1](images), rtol=1e-12, atol=1e-12
        )
    copy = graph.random_element(3).apply(graph, state)
    back = isthmus.align(graph, [state, copy], by="weight-matching", groups="full").apply([state, copy])[1]
    for key in graph.layout:
        torch.testing.assert_close(back[key], state[key], rtol=1e-6, atol=1e-7)


def test_a_scale_goes_as_far_as_the_smallest_of_a_units_variances_lets_it():
    model = uneven(Multiplied(2))
    model.d.weight.data.mul_(50)
    model.norm.eps = 0.1
    model.norm.running_var.copy_(torch.linspace(0.05, 2, 8))
    images = torch.randn(9, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    graph = isthmus.trace(model, images[:2])
    state = dict(model.state_dict())
    moved = balance(graph, state).apply(graph, state)
    assert (moved["norm.running_var"] > 0).all()
    torch.testing.assert_close(torch.func.functional_call(model, moved, (images,)), model(images))
