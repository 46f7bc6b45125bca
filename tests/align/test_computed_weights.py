"""Weights that a network computes from its parameters: units are added up only where sums pass the computation."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import isthmus
from isthmus.align import align
from isthmus.align.mixed.joint import mixable
from isthmus.errors import MismatchError
from isthmus.maps import Permutation

X = torch.randn(80, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

#: Every way of mixing, as far as it does not come down to an order by itself.
MIXING: dict[str, dict[str, object]] = {
    "zipit": {"method": "zipit"},
    "cca": {"method": "cca"},
    "sinkhorn": {"method": "transport", "solver": "sinkhorn"},
    "masses": {"method": "transport", "by": "weights", "mass": "l1"},
    "transformer-transport": {"method": "transformer-transport"},
    "matched-averaging": {"method": "matched-averaging", "average": "map", "gamma": 1e9},
}

#: Ways that are one to one where widths are equal, by themselves.
ORDERS: dict[str, dict[str, object]] = {
    "transport": {"method": "transport"},
    "by weights": {"method": "transport", "by": "weights"},
    "zipit": {"method": "zipit", "beta": 0},
    "matched-averaging": {"method": "matched-averaging", "gamma": 1e9},
}


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(6, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.5 * self.up @ self.down


class Gains(nn.Module):
    """What a unit is multiplied by is a parameter too, so that the weight is of degree two."""

    def __init__(self):
        super().__init__()
        self.gains = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gains[:, None]


class Standardized(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return (weight - weight.mean(1, keepdim=True)) / weight.std(1, keepdim=True)


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 0.3 * weight.T.contiguous().T


class Bent(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return torch.tanh(weight)


def layer(how: str) -> Callable[[nn.Module], nn.Module]:
    made = {
        "low rank": LowRank,
        "gains": Gains,
        "standardized": Standardized,
        "scaled": Scaled,
        "bent": Bent,
    }
    if how == "plain":
        return lambda linear: linear
    if how == "weight norm":
        return weight_norm
    if how == "of columns":
        return lambda linear: weight_norm(linear, dim=1)
    return lambda linear: parametrize.register_parametrization(linear, "weight", made[how]())


def build(how: str, seed: int, *between: nn.Module, place: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 6), nn.Linear(6, 5)]
    layers[place] = layer(how)(layers[place])  # type: ignore[assignment]
    return nn.Sequential(layers[0], *between, layers[1], nn.Linear(5, 3)).double().eval()


@pytest.mark.parametrize(
    ("how", "operation"),
    [
        ("plain", None),
        ("scaled", None),
        ("low rank", None),
        ("weight norm", "_weight_norm"),
        ("of columns", "_weight_norm"),
        ("gains", "mul"),
        ("standardized", "std"),
        ("bent", "tanh"),
    ],
)
def test_a_moved_linear_network_is_itself_however_its_weights_are_computed(how: str, operation: str | None):
    models = [build(how, seed) for seed in (0, 1)]
    graph = isthmus.trace(models[0], X[:2])
    (first,) = [name for name, space in graph.spaces.items() if space.size == 6]
    assert graph.verify(models[0]).ok
    if operation is None:
        assert graph.computed == {} and mixable(graph) == tuple(graph.spaces)
    else:
        assert list(graph.computed) == [first] and graph.computed[first].endswith(":" + operation)
        assert first not in mixable(graph)
    merged = isthmus.merge(models, align="cca", data=[X], weights=[0.0, 1.0])
    assert merged.model is not None and merged.alignment is not None
    torch.testing.assert_close(merged.model(X), models[1](X))
    told = [note for note in merged.alignment.notes if note.startswith(f"{first}: units are not added up")]
    assert len(told) == (operation is not None) and all(str(operation) in note for note in told)
    if operation:
        assert isinstance(merged.alignment.transports[1].maps[first], Permutation)


@pytest.mark.parametrize("how", ["weight norm", "of columns", "standardized", "bent"])
def test_what_reads_through_a_computed_weight_is_not_mixed_either(how: str):
    models = [build(how, seed, place=1) for seed in (0, 1)]
    graph = isthmus.trace(models[0], X[:2])
    assert len(graph.computed) == 2, "the space that the weight reads, and the one that it writes"
    merged = isthmus.merge(models, align="cca", data=[X], weights=[0.0, 1.0])
    assert merged.model is not None
    torch.testing.assert_close(merged.model(X), models[1](X))


@pytest.mark.parametrize("way", MIXING)
def test_every_method_that_mixes_leaves_weight_norms_rows_whole(way: str):
    models = [build("weight norm", seed, nn.ReLU()) for seed in (0, 1)]
    (space,) = isthmus.trace(models[0], X[:2]).computed
    for weights in ([1.0, 0.0], [0.5, 0.5]):
        merged = isthmus.merge(models, align=MIXING[way], data=[X], weights=weights)
        assert merged.model is not None and merged.alignment is not None
        assert merged.model(X).isfinite().all()
        assert isinstance(merged.alignment.transports[1].maps[space], Permutation)
        assert any("_weight_norm" in note and space in note for note in merged.alignment.notes)


@pytest.mark.parametrize("way", ORDERS)
@pytest.mark.parametrize("place", [0, 1])
def test_a_map_that_is_an_order_passes_a_weight_norm(way: str, place: int):
    models = [build("weight norm", seed, place=place) for seed in (0, 1)]
    graph = isthmus.trace(models[0], X[:2])
    computed = set(graph.computed)
    assert len(computed) == 1 + place and not computed & set(mixable(graph))
    assert computed <= set(mixable(graph, [graph, graph]))
    for weights, model in (([1.0, 0.0], models[0]), ([0.0, 1.0], models[1])):
        merged = isthmus.merge(models, align=ORDERS[way], data=[X], weights=weights)
        assert merged.model is not None and merged.alignment is not None
        torch.testing.assert_close(merged.model(X), model(X))
    for transport in merged.alignment.transports:
        maps = [transport.maps[space] for space in computed if space in transport.maps]
        assert all(((m.matrices()[1] != 0).sum(0) == 1).all() for m in maps)
    assert not any("not added up" in note for note in merged.alignment.notes)
    again = isthmus.merge([models[0], models[0]], align=ORDERS[way], data=[X])
    assert again.model is not None
    torch.testing.assert_close(again.model(X), models[0](X))


@pytest.mark.parametrize("way", ["zipit", "transport"])
def test_computed_weights_of_other_widths_are_refused(way: str):
    def net(width: int) -> nn.Module:
        layers = [weight_norm(nn.Linear(5, width)), nn.ReLU(), nn.Linear(width, 3)]
        return nn.Sequential(*layers).double().eval()

    with pytest.raises(MismatchError, match="tied and computed weights can only change their order"):
        isthmus.merge([net(6), net(8)], align=way, data=[X])


class Attention(nn.Module):
    """Two heads, whose values are written by a weight norm."""

    def __init__(self):
        super().__init__()
        self.embed, self.q, self.k, self.o = (nn.Linear(5 if i == 0 else 8, 8) for i in range(4))
        self.v, self.head = weight_norm(nn.Linear(8, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x + self.o(mixed))


def test_plans_over_heads_leave_computed_ones_in_their_order():
    torch.manual_seed(0)
    models = [Attention().double().eval() for _ in range(2)]
    data = X.unflatten(0, (-1, 4))
    graph = isthmus.trace(models[0], data[:2])
    found = align(
        graph, [m.state_dict() for m in models], "transformer-transport", data=[data], heads="separate"
    )
    assert not any(name.startswith(("@v.", "@q.", "@k.", "@o.")) for name in found.transports[1].maps)
    assert any("_weight_norm" in note for note in found.notes)
    assert {"q/0", "embed"} <= found.transports[1].orders.keys(), (
        "what the weight norm reads is reordered too"
    )
