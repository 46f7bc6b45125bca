"""A whole model moved: apply, follow, undo, save and load."""

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus.errors import InputError, MismatchError
from isthmus.maps import Dense, Membership, Permutation, ScaledPermutation, Stack, Transport
from isthmus.symmetry import SymmetryGraph
from isthmus.symmetry.elements import random_element, random_orders
from isthmus.zoo import MLP, VGG, ViT

Weights = dict[str, Tensor]
NETS = {
    "mlp": (lambda: MLP(d_in=6, widths=(5, 4), num_classes=3), (6,)),
    "conv-bn": (lambda: VGG((1, "M", 1), base=4, norm="bn", in_channels=1, num_classes=3), (1, 4, 4)),
    "heads": (
        lambda: ViT(
            image=4, patch=2, dim=6, depth=1, heads=2, mlp_ratio=1, pool="mean", in_channels=1, num_classes=3
        ),
        (1, 4, 4),
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
            tensor.copy_(0.5 + noise.abs() if key.endswith("var") else noise)
    data = torch.randn(5, *shape, dtype=torch.float64)
    return model, isthmus.trace(model, data), data


def element(name: str, seed: int) -> Transport:
    graph = build(name)[1]
    orders = random_orders(graph, torch.Generator().manual_seed(seed))
    return Transport(graph, {space: Permutation(order) for space, order in orders.items()})


def same(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def output(model: nn.Module, weights: Weights, data: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.func.functional_call(model, weights, (data,))


every = pytest.mark.parametrize("name", NETS)


def test_heads_have_orders_of_their_own():
    graph = build("heads")[1]
    inner = [space for space in graph.spaces.values() if space.within]
    assert len(inner) == 2, "queries with keys, and values, per head"
    assert all(element("heads", 1).orders[s.name].shape == (2, 3) for s in inner)


@every
def test_a_moved_model_is_another_that_computes_the_same(name: str):
    model, _, data = build(name)
    state = model.state_dict()
    before = {k: v.clone() for k, v in state.items()}
    moved = element(name, 1).apply(state)
    assert not same(moved, state)
    torch.testing.assert_close(output(model, moved, data), output(model, state, data))
    assert same(dict(state), before), "the model itself is left alone"


@every
def test_there_and_back_is_the_model(name: str):
    state = dict(build(name)[0].state_dict())
    transport = element(name, 1)
    assert same(transport.inverse().apply(transport.apply(state)), state)
    assert same(transport.apply(transport.inverse().apply(state)), state)
    assert same(transport.then(transport.inverse()).apply(state), state)


@every
def test_one_after_another_is_their_composition(name: str):
    state = dict(build(name)[0].state_dict())
    one, two, three = (element(name, seed) for seed in (1, 2, 3))
    stepwise = three.apply(two.apply(one.apply(state)))
    assert same(one.then(two).then(three).apply(state), stepwise)
    assert same(one.then(two.then(three)).apply(state), stepwise)


@pytest.mark.parametrize("swap", [False, True])
def test_an_order_inside_heads_composes_with_an_order_of_the_heads(swap: bool):
    model, graph, _ = build("heads")
    state = dict(model.state_dict())
    whole = element("heads", 1).maps
    inner = Transport(graph, {n: m for n, m in whole.items() if graph.spaces[n].within})
    outer = Transport(graph, {n: m for n, m in whole.items() if not graph.spaces[n].within})
    first, then = (outer, inner) if swap else (inner, outer)
    both = first.then(then)
    assert same(both.apply(state), then.apply(first.apply(state)))
    assert same(both.inverse().apply(both.apply(state)), state)


@every
def test_nothing_moves_without_maps(name: str):
    model, graph, _ = build(name)
    assert same(Transport(graph, {}).apply(model.state_dict()), dict(model.state_dict()))


@every
def test_maps_are_saved_and_loaded(name: str, tmp_path: Path):
    model, graph, _ = build(name)
    transport = element(name, 1)
    transport.save(tmp_path / "maps.safetensors")
    loaded = Transport.load(tmp_path / "maps.safetensors", graph)
    assert loaded.orders.keys() == transport.orders.keys()
    assert all(torch.equal(loaded.orders[n], o) for n, o in transport.orders.items())
    assert same(loaded.apply(model.state_dict()), transport.apply(model.state_dict()))
    assert str(loaded) == str(transport)


def kinds_for_the_mlp() -> dict[str, object]:
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    half = torch.full((5,), 0.5, dtype=torch.float64)
    return {
        "scaled": ScaledPermutation(
            torch.tensor([4, 2, 0, 1, 3]), torch.tensor([0.5, 2, 3, 4, 0.1]).double()
        ),
        "dense": Dense(rotation, rotation.mT.contiguous(), True),
        "groups": Membership(torch.tensor([0, 1, 0, 1, 2]), half, 3),
        "stack": Stack(5, 5, 10),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "scaled",
        "dense",
        "groups",
        "stack",
    ],
)
def test_every_kind_makes_a_w_b_and_is_saved(kind: str, tmp_path: Path):
    model, graph, _ = build("mlp")
    name = next(iter(graph.spaces))
    item = kinds_for_the_mlp()[kind]
    transport = Transport(graph, {name: item})  # type: ignore[dict-item]
    state = model.state_dict()
    a, b = item.matrices()  # type: ignore[attr-defined]
    moved = transport.apply(state)
    writers = [m.key for m in graph.spaces[name].members if m.role == "writes"]
    readers = [m.key for m in graph.spaces[name].members if m.role == "reads"]
    assert len(writers) == 2 and len(readers) == 1
    for key in writers:
        torch.testing.assert_close(moved[key], a @ state[key])
    torch.testing.assert_close(moved[readers[0]], state[readers[0]] @ b)
    transport.save(tmp_path / "m.safetensors")
    loaded = Transport.load(tmp_path / "m.safetensors", graph)
    assert type(loaded.maps[name]) is type(item)
    assert loaded.maps[name].keeps_function == item.keeps_function  # type: ignore[attr-defined]
    assert same(loaded.apply(state), moved)


def test_positive_scales_keep_a_relu_network():
    model, graph, data = build("mlp")
    name = next(iter(graph.spaces))
    transport = Transport(graph, {name: kinds_for_the_mlp()["scaled"]})  # type: ignore[dict-item]
    state = dict(model.state_dict())
    torch.testing.assert_close(output(model, transport.apply(state), data), output(model, state, data))
    back = transport.inverse().apply(transport.apply(state))
    for key in state:
        torch.testing.assert_close(back[key], state[key])


def test_different_kinds_follow_each_other():
    model, graph, data = build("mlp")
    name, other = list(graph.spaces)[:2]
    scaled = Transport(graph, {name: kinds_for_the_mlp()["scaled"]})  # type: ignore[dict-item]
    ordered = element("mlp", 1)
    state = dict(model.state_dict())
    for first, then in ((scaled, ordered), (ordered, scaled), (scaled, scaled)):
        both = first.then(then)
        stepwise = then.apply(first.apply(state))
        for key, value in both.apply(state).items():
            torch.testing.assert_close(value, stepwise[key])
        torch.testing.assert_close(output(model, both.apply(state), data), output(model, state, data))
    assert other in scaled.then(ordered).maps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_dtype_and_other_keys_pass(dtype: torch.dtype):
    model, _, _ = build("mlp")
    state = {k: v.to(dtype) for k, v in model.state_dict().items()}
    extra = torch.ones(2)
    moved = element("mlp", 1).apply({**state, "something.else": extra})
    assert moved["something.else"] is extra
    assert all(moved[k].dtype == dtype for k in state)


def test_tied_weights_move_together_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle, self.second = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.middle(torch.relu(self.first(x)))))

    torch.manual_seed(0)
    model = Tied().double()
    data = torch.randn(3, 4, dtype=torch.float64)
    graph = isthmus.trace(model, data)
    orders = random_orders(graph, torch.Generator().manual_seed(0))
    transport = Transport(graph, {n: Permutation(o) for n, o in orders.items()})
    moved = transport.apply(model.state_dict())
    assert moved["first.weight"] is moved["second.weight"]
    torch.testing.assert_close(output(model, moved, data), model(data))


# What is wrong is said, all at once.


def test_every_map_that_does_not_fit_is_listed():
    graph = build("heads")[1]
    outer = next(n for n, s in graph.spaces.items() if not s.within)
    inner = next(s for s in graph.spaces.values() if s.within)
    free = next(n for n, s in graph.spaces.items() if not s.within and n != outer)
    with pytest.raises(InputError, match="the maps do not fit the model") as raised:
        Transport(
            graph,
            {
                "nowhere": Permutation(torch.arange(3)),
                outer: Permutation(torch.arange(99)),
                inner.name: Stack(0, inner.size, 2 * inner.size),
                free: Stack(0, 77, 88),
            },
        )
    assert raised.value.where == (
        "nowhere: no such space",
        f"{outer}: the permutation has shape (99,), needs ({graph.spaces[outer].size},)",
        f"{inner.name}: only permutations can differ within {', '.join(inner.within)}",
        f"{free}: the map takes 77 units, the space has {graph.spaces[free].size}",
    )


@pytest.mark.parametrize("index", [[0, 0, 1, 2, 3], [-1, 0, 1, 2, 3]])
def test_an_index_that_repeats_units_is_no_permutation(index: list[int]):
    graph = build("mlp")[1]
    with pytest.raises(InputError):
        Transport(graph, {next(iter(graph.spaces)): Permutation(torch.tensor(index))})


def test_one_order_for_all_heads_does_not_fit():
    graph = build("heads")[1]
    inner = next(s for s in graph.spaces.values() if s.within)
    with pytest.raises(InputError, match=r"has shape \(3,\), needs \(2, 3\)"):
        Transport(graph, {inner.name: Permutation(torch.arange(3))})


def test_weights_of_other_shapes_are_all_listed():
    model, graph, _ = build("mlp")
    wrong = {k: torch.zeros(*v.shape, 1) if v.ndim == 2 else v for k, v in model.state_dict().items()}
    with pytest.raises(MismatchError) as raised:
        Transport(graph, {}).apply(wrong)
    assert len(raised.value.where) == 3
    assert "(5, 6, 1), expected (5, 6)" in str(raised.value)


def test_running_statistics_follow_permutations_only():
    model, graph, _ = build("conv-bn")
    name = next(n for n, s in graph.spaces.items() if any(m.role == "statistic" for m in s.members))
    size = graph.spaces[name].size
    scaled = ScaledPermutation(torch.arange(size), torch.full((size,), 2.0))
    with pytest.raises(InputError, match=r"running statistics follow permutations only[\s\S]*hint: fold"):
        Transport(graph, {name: scaled}).apply(model.state_dict())


# Scales, signs and matrices travel with the orders.


class Head(nn.Module):
    """One rotary head pair, so that there are planes too."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.q, self.k, self.v))
        angle = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1])
        cos, sin = angle.cos().to(x), angle.sin().to(x)
        q, k = (
            torch.cat([a * cos - b * sin, b * cos + a * sin], -1) for a, b in (q.chunk(2, -1), k.chunk(2, -1))
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(mixed.transpose(1, 2).flatten(2))


NETS["rotary"] = (Head, (5, 6))
EVERY_KIND = ("mlp", "conv-bn", "heads", "rotary")


def full(name: str, seed: int) -> Transport:
    graph = build(name)[1]
    found = random_element(graph, torch.Generator().manual_seed(seed))
    return Transport(
        graph, {space: Permutation(order) for space, order in found.orders.items()}, found.values
    )


def near(ours: Weights, theirs: Weights) -> bool:
    return all(torch.allclose(ours[key], theirs[key], rtol=1e-9, atol=1e-9) for key in theirs)


def test_the_nets_have_values_of_every_kind_but_rotations():
    kinds = {g.kind for name in EVERY_KIND for g in build(name)[1].gauges.values()}
    assert kinds == {"positive", "sign", "invertible", "planes"}


@pytest.mark.parametrize("name", EVERY_KIND)
def test_values_keep_the_function_compose_and_invert(name: str):
    model, _, data = build(name)
    state = dict(model.state_dict())
    one, two = full(name, 1), full(name, 2)
    assert one.values
    moved = one.apply(state)
    torch.testing.assert_close(output(model, moved, data), output(model, state, data))
    assert near(one.then(two).apply(state), two.apply(moved))
    assert near(one.inverse().apply(moved), state)
    assert near(one.then(one.inverse()).apply(state), state)
    bare = element(name, 3)
    assert near(bare.then(one).apply(state), one.apply(bare.apply(state)))
    assert near(one.then(bare).apply(state), bare.apply(moved))


@pytest.mark.parametrize("name", EVERY_KIND)
def test_values_are_saved_and_loaded(name: str, tmp_path: Path):
    model, graph, _ = build(name)
    transport = full(name, 1)
    transport.save(tmp_path / "maps.safetensors")
    loaded = Transport.load(tmp_path / "maps.safetensors", graph)
    assert loaded.values.keys() == transport.values.keys()
    assert all(torch.equal(loaded.values[n], v) for n, v in transport.values.items())
    assert same(loaded.apply(model.state_dict()), transport.apply(model.state_dict()))
    assert str(loaded) == str(transport) and all(n in str(loaded) for n in transport.values)


def test_values_that_do_not_fit_are_all_listed_with_the_orders():
    graph = build("mlp")[1]
    first, second = (name for name in graph.gauges if name.endswith(":positive"))
    with pytest.raises(InputError, match="the maps do not fit the model") as raised:
        Transport(
            graph,
            {first.partition(":")[0]: Permutation(torch.arange(9))},
            {first: torch.zeros(5), second: torch.ones(7), "elsewhere:sign": torch.ones(2)},
        )
    assert raised.value.where == (
        f"{first.partition(':')[0]}: the permutation has shape (9,), needs (5,)",
        f"{first}: has a scale that is not positive",
        f"{second}: has shape (7,), needs (4,)",
        f"elsewhere:sign: no such freedom; the graph has {', '.join(graph.gauges)}",
    )


def test_a_running_variance_cannot_be_scaled_below_what_the_norm_adds():
    model, graph, _ = build("conv-bn")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    gauge, slot = next((g, s) for g in graph.gauges.values() for s in g.slots if s.offset)
    state[slot.key].fill_(1e-7)
    down = torch.full((gauge.size,), 0.5 if slot.power > 0 else 2.0, dtype=torch.float64)
    with pytest.raises(InputError, match="would make its running variance negative") as raised:
        Transport(graph, {}, {gauge.name: down}).apply(state)
    assert raised.value.where == (slot.key,) and "scale these units up instead" in str(raised.value.hint)
    moved = Transport(graph, {}, {gauge.name: 1 / down}).apply(state)
    assert (moved[slot.key] > 0).all()


def test_tied_weights_take_their_values_together():
    class Tied(nn.Module):
        """An autoencoder whose decoder is its encoder, turned over."""

        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(4, 6), nn.Linear(4, 6, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.encode(x)) @ self.decode.weight

    torch.manual_seed(0)
    model = Tied().double()
    data = torch.randn(3, 4, dtype=torch.float64)
    graph = isthmus.trace(model, data)
    found = random_element(graph, torch.Generator().manual_seed(0))
    assert list(found.values) == ["encode:sign"], "a scale would have to be its own inverse"
    transport = Transport(graph, {n: Permutation(o) for n, o in found.orders.items()}, found.values)
    moved = transport.apply(model.state_dict())
    assert moved["encode.weight"] is moved["decode.weight"]
    assert not torch.equal(moved["encode.weight"], model.encode.weight)
    torch.testing.assert_close(output(model, moved, data), model(data))
