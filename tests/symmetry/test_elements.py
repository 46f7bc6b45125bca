"""Elements of the full group: they keep the function, follow each other, and undo each other."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus import zoo
from isthmus.errors import InputError
from isthmus.symmetry import Element, SymmetryGraph, around_ones, check, off_ones
from isthmus.symmetry.elements import random_value

Weights = dict[str, Tensor]


def conv_bn() -> nn.Module:
    layers = [
        nn.Conv2d(2, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3))


class GroupedConv(nn.Module):
    """Groups with units of their own on both sides of a grouped convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.g, self.b = nn.Conv1d(2, 6, 1), nn.Conv1d(6, 4, 1, groups=2), nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.g(torch.relu(self.a(x)))))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)),
        (4,),
    ),
    "tanh": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)),
        (4,),
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)), (4,)),
    "conv-bn": (conv_bn, (2, 6, 6)),
    "groups": (GroupedConv, (2, 4)),
    "vit": (lambda: zoo.vit(8, 4, 6, 1, 2, 2), (3, 8, 8)),
    "norms": (
        lambda: nn.Sequential(
            nn.Linear(4, 6),
            nn.LayerNorm(6, elementwise_affine=False),
            nn.Linear(6, 5),
            nn.RMSNorm(5, elementwise_affine=False),
            nn.Linear(5, 2),
        ),
        (4,),
    ),
}


@functools.cache
def build(name: str) -> tuple[nn.Module, SymmetryGraph, Tensor]:
    make, shape = NETS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn_like(tensor)
            tensor.copy_(0.5 + noise.abs() if key.endswith("var") else noise / tensor[0].numel() ** 0.5)
    data = torch.randn(5, *shape, dtype=torch.float64)
    return model, isthmus.trace(model, data), data


def output(name: str, weights: Weights) -> Tensor:
    model, _, data = build(name)
    with torch.no_grad():
        return torch.func.functional_call(model, weights, (data,))


def close(ours: Weights, theirs: Weights) -> None:
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-9, atol=1e-9)


every = pytest.mark.parametrize("name", NETS)


@every
def test_an_element_moves_the_weights_and_keeps_the_function(name: str):
    model, graph, _ = build(name)
    state = dict(model.state_dict())
    before = {key: value.clone() for key, value in state.items()}
    element = graph.random_element(3)
    assert element.values, "these nets are free beyond the order of their units"
    moved = element.apply(graph, state)
    assert max((moved[key] - state[key]).abs().max().item() for key in graph.layout) > 0.1
    torch.testing.assert_close(output(name, moved), output(name, state))
    for key in state:
        assert torch.equal(state[key], before[key]), "the model itself is left alone"
    for gauge in element.values:
        alone = element.only([gauge]).apply(graph, state)
        torch.testing.assert_close(output(name, alone), output(name, state))


@every
def test_elements_are_a_group(name: str):
    model, graph, _ = build(name)
    state = dict(model.state_dict())
    one, two, three = (graph.random_element(seed) for seed in (1, 2, 3))
    stepwise = three.apply(graph, two.apply(graph, one.apply(graph, state)))
    close(one.then(two, graph).then(three, graph).apply(graph, state), stepwise)
    close(one.then(two.then(three, graph), graph).apply(graph, state), stepwise)
    for element in (one, one.then(two, graph)):
        back = element.inverse(graph)
        close(back.apply(graph, element.apply(graph, state)), state)
        close(element.apply(graph, back.apply(graph, state)), state)
        close(element.then(back, graph).apply(graph, state), state)
    close(Element().then(one, graph).apply(graph, state), one.apply(graph, state))
    close(one.then(Element(), graph).apply(graph, state), one.apply(graph, state))
    check(one.then(two, graph), graph)
    check(one.inverse(graph), graph)


@every
def test_parts_of_elements_follow_each_other_in_any_order(name: str):
    model, graph, _ = build(name)
    state = dict(model.state_dict())
    one, two = graph.random_element(1), graph.random_element(2)
    orders, values = one.only(graph.spaces), two.only(graph.gauges)
    for first, then in ((orders, values), (values, orders)):
        close(first.then(then, graph).apply(graph, state), then.apply(graph, first.apply(graph, state)))


@every
def test_an_element_in_general_position_leaves_nothing_where_it_was(name: str):
    _, graph, _ = build(name)
    for seed in range(8):
        for gauge, value in graph.random_element(seed).values.items():
            kind = graph.gauges[gauge].kind
            if kind == "sign":
                assert (value.abs() == 1).all() and (value < 0).any(-1).all(), "no family keeps all its signs"
            elif kind == "positive":
                assert (value > 0).all() and (value != 1).all()
            elif graph.gauges[gauge].size > 1:
                assert (value - torch.eye(value.shape[-1])).abs().amax((-2, -1)).min() > 1e-3


def test_a_seed_draws_the_same_element():
    _, graph, _ = build("vit")
    one, two, other = graph.random_element(1), graph.random_element(1), graph.random_element(2)
    assert all(torch.equal(one.values[n], two.values[n]) for n in one.values)
    assert not all(torch.equal(one.values[n], other.values[n]) for n in one.values)


@pytest.mark.parametrize("as_iterator", [False, True])
def test_only_some_keys_are_moved(as_iterator: bool):
    model, graph, _ = build("relu")
    state = dict(model.state_dict())
    element = graph.random_element(1)
    keys = ["0.weight", "0.bias"]
    moved = element.apply(graph, state, iter(keys) if as_iterator else keys)
    whole = element.apply(graph, state)
    assert all(torch.equal(moved[key], whole[key] if key in keys else state[key]) for key in state)
    assert moved["2.weight"] is state["2.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_keep_their_dtype(dtype: torch.dtype):
    model, graph, _ = build("linear")
    state = {key: value.to(dtype) for key, value in model.state_dict().items()}
    element = graph.random_element(1)
    moved = element.apply(graph, {**state, "elsewhere": torch.ones(2)})
    assert all(moved[key].dtype == dtype for key in state) and moved["elsewhere"].shape == (2,)
    wide = element.apply(graph, dict(model.state_dict()))
    bound = 4 * torch.finfo(dtype).eps * 4
    assert all(
        (moved[key].double() - wide[key]).abs().max() <= bound * wide[key].abs().max() for key in state
    )


def test_values_may_be_in_half_precision():
    model, graph, _ = build("linear")
    narrow = Element({}, {n: v.bfloat16() for n, v in graph.random_element(1).values.items()})
    state = {key: value.float() for key, value in model.state_dict().items()}
    moved = narrow.apply(graph, state)
    assert all(bool(torch.isfinite(value).all()) for value in moved.values())
    back = narrow.inverse(graph)
    assert all(value.dtype == torch.bfloat16 for value in back.values.values())


def test_the_basis_beside_ones():
    for size in (1, 2, 5):
        basis = off_ones(size)
        assert basis.shape == (size, size - 1)
        torch.testing.assert_close(basis.mT @ basis, torch.eye(size - 1, dtype=torch.float64))
        torch.testing.assert_close(basis.sum(0), torch.zeros(size - 1, dtype=torch.float64))
    rotation = torch.linalg.qr(torch.randn(3, 4, 4, dtype=torch.float64))[0]
    made = around_ones(rotation)
    torch.testing.assert_close(made @ made.mT, torch.eye(5, dtype=torch.float64).expand(3, 5, 5))
    torch.testing.assert_close(made.sum(-1), torch.ones(3, 5, dtype=torch.float64))


# What is no element of the group is refused, all at once.


def gauge_of(kind: str) -> tuple[SymmetryGraph, str]:
    for name in NETS:
        graph = build(name)[1]
        for gauge in graph.gauges.values():
            if gauge.kind == kind and not gauge.within:
                return graph, gauge.name
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "spoil", "why"),
    [
        ("positive", lambda v: v.index_fill(0, torch.tensor([0]), 0.0), "has a scale that is not positive"),
        ("positive", lambda v: -v, "has a scale that is not positive"),
        ("positive", lambda v: v * torch.nan, "is not finite"),
        ("positive", lambda v: v[:-1], "has shape"),
        ("sign", lambda v: v / 2, "has a sign that is neither 1 nor -1"),
        ("orthogonal", lambda v: 2 * v, "is not orthogonal"),
        (
            "centred",
            lambda v: torch.linalg.qr(torch.randn(v.shape).double())[0],
            "does not fix the vector of ones",
        ),
        ("invertible", torch.zeros_like, "has no inverse"),
        ("invertible", lambda v: v[..., 0], "has shape"),
    ],
)
def test_a_value_that_is_none_of_a_gauges_is_refused_with_the_reason(
    kind: str, spoil: Callable[[Tensor], Tensor], why: str
):
    graph, name = gauge_of(kind)
    value = random_value(graph, graph.gauges[name], torch.Generator().manual_seed(0))
    check(Element({}, {name: value}), graph)
    with pytest.raises(InputError, match="the maps do not fit the model") as raised:
        check(Element({}, {name: spoil(value)}), graph)
    (line,) = raised.value.where
    assert line.startswith(f"{name}: {why}")


def test_everything_that_is_wrong_is_listed():
    _, graph, _ = build("relu")
    wrong = Element(
        {"nowhere": torch.arange(3), "0": torch.zeros(6, dtype=torch.int64), "2": torch.arange(9)},
        {"0:spin": torch.ones(6), "2:positive": -torch.ones(5)},
    )
    with pytest.raises(InputError) as raised:
        check(wrong, graph)
    assert raised.value.where == (
        "nowhere: no such space",
        "0: the index does not name each unit once",
        "2: the permutation has shape (9,), needs (5,)",
        "0:spin: no such freedom; the graph has 0:positive, 2:positive",
        "2:positive: has a scale that is not positive",
    )
