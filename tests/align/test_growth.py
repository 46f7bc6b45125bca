"""Matched averaging: a network grows where it can, and where it cannot its units are matched one to one."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_nets import NETS, build
from torch import Tensor, nn

import isthmus
from isthmus.align import Alignment
from isthmus.errors import InputError, MismatchError
from isthmus.maps import Membership, Transport
from isthmus.symmetry import counted

#: New units are so likely that every space grows that may.
GROWING = {"method": "matched-averaging", "gamma": 1e12}


class Normed(nn.Module):
    """Units under a layer norm, then others that nothing counts."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.norm(self.a(x))))))


class Grouping(nn.Module):
    """A convnet with group norms: one over all channels, one over groups of two."""

    def __init__(self):
        super().__init__()
        self.a, self.one = nn.Conv2d(1, 4, 3), nn.GroupNorm(1, 4)
        self.b, self.two = nn.Conv2d(4, 6, 1), nn.GroupNorm(3, 6)
        self.c, self.head = nn.Conv2d(6, 5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.two(self.b(torch.relu(self.one(self.a(x))))))
        return self.head(torch.relu(self.c(x)).mean((2, 3)))


class Choosing(nn.Module):
    """A softmax over units, as a mixture's gate or a prototype layer has one."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.a, self.gate, self.head = nn.Linear(6, 7), nn.Linear(7, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(torch.relu(self.a(x))).softmax(-1))


class Attending(nn.Module):
    """Places weighed by the mean over their channels; one head of attention, whose units are multiplied."""

    def __init__(self):
        super().__init__()
        self.a, self.q, self.k, self.v = nn.Conv1d(2, 5, 1), *(nn.Linear(5, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.a(x.unflatten(-1, (2, 3))))
        x = (x * x.mean(1, keepdim=True)).mT
        return self.head(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)).mean(1))


class LowRank(nn.Module):
    """Layers whose weights are computed of others, which read and write in their place."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.up, self.down = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        both = F.linear(torch.relu(self.a(x)), self.b.weight + self.up @ self.down, self.b.bias)
        return self.head(torch.relu(both))


class Directions(nn.Module):
    """Weights as direction and length: of a unit that a model lacks there is no direction."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(x)))


class Remembering(nn.Module):
    """A recurrent layer, which begins with zeros."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.unflatten(-1, (3, 2)))[0][:, -1])


#: Name -> the network, the shape of an input, the spaces that grow and those that cannot, with the operation.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str], dict[str, str]]] = {
    "layer norm": (Normed, (6,), {"b"}, {"a": "norm:layer_norm"}),
    "group norm": (Grouping, (1, 6, 6), {"c"}, {"a": "one:group_norm"}),
    "softmax over units": (Choosing, (6,), {"a"}, {"gate": "softmax"}),
    "mean over channels": (
        Attending, (6,), {"v"}, {"a": "mean", "q": "scaled_dot_product_attention"},
    ),
    "vit": (*NETS["vit"], {"blocks.0.fc1"}, {"patches": "blocks.0.norm1:layer_norm"}),
    "vgg": (*NETS["vgg-bn"], {"features.0", "features.4"}, {}),
    "resnet": (*NETS["resnet"], {"stem", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"}, {}),
    "depthwise": (*NETS["depthwise"], {"stem", "last"}, {}),
    "low rank": (LowRank, (6,), {"a", "up", "down"}, {}),
    "weight norm": (
        Directions, (6,), set(), {"a.parametrizations.weight": "a.parametrizations.weight.0:_weight_norm"},
    ),
    "lstm": (Remembering, (6,), {"lstm"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_network_grows_where_it_can_and_keeps_the_functions(name: str):
    make, shape, grow, stay = CASES[name]
    torch.manual_seed(0)
    nets = [make().double().eval() for _ in range(2)]
    x = torch.randn(24, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    graph = isthmus.trace(nets[0], x[:2])
    assert {
        space: counts[0].place
        for space, counts in counted(graph).items()
        if not graph.spaces[space].within and space in stay
    } == stay
    permuted = make().double().eval()
    permuted.load_state_dict(graph.random_element(1).only(graph.spaces).apply(graph, nets[0].state_dict()))

    def merged(models: list[nn.Module], weights: tuple[float, float]) -> isthmus.Merged:
        return isthmus.merge(models, graph=graph, align=GROWING, data=[x], weights=weights, verify=False)

    for weights, parent in (((1.0, 0.0), nets[0]), ((0.0, 1.0), nets[1])):
        strangers = merged(nets, weights)
        torch.testing.assert_close(strangers.model(x), parent(x))
    assert strangers.alignment is not None
    maps = strangers.alignment.transports[0].maps
    assert grow <= {space for space, item in maps.items() if item.target == 2 * graph.spaces[space].size}
    for space, place in stay.items():
        assert maps[space].target == graph.spaces[space].size
        assert any(note.startswith(f"{space}: stays") and place in note for note in strangers.alignment.notes)
    for weights in ((1.0, 0.0), (0.3, 0.7)):
        torch.testing.assert_close(merged([nets[0], permuted], weights).model(x), nets[0](x))
    if not stay:  # nothing is shared, so both networks run side by side
        both = 0.3 * nets[0](x) + 0.7 * nets[1](x)
        torch.testing.assert_close(merged(nets, (0.3, 0.7)).model(x), both)


@pytest.mark.parametrize(
    ("make", "by", "place"),
    [
        (Normed, "matched-averaging", "norm:layer_norm"),
        (Choosing, "matched-averaging", "softmax"),
        (Choosing, "transport", "softmax"),
        (Choosing, "zipit", "softmax"),
    ],
)
def test_other_widths_are_refused_where_every_unit_counts(make: type[nn.Module], by: str, place: str):
    nets = [make(width).double().eval() for width in (4, 8)]
    x = torch.randn(24, 6).double()
    with pytest.raises(MismatchError, match=rf"as many in every model[\s\S]*4, 8 units, {place}"):
        isthmus.merge(nets, align=by, data=[x])


@pytest.mark.parametrize("by", ["transport", "zipit"])
def test_other_widths_under_a_norm_are_noted(by: str):
    nets = [Normed(width).double().eval() for width in (4, 8)]
    x = torch.randn(24, 6).double()
    found = isthmus.merge(nets, align=by, data=[x]).alignment
    assert found is not None and any("4, 8 units" in n and "norm:layer_norm" in n for n in found.notes)


def test_a_stored_alignment_that_would_grow_under_a_norm_is_refused():
    net = build("vit")
    models = [net.drawn(1), net.drawn(2)]
    apart = [Membership(torch.arange(8) + start, torch.ones(8).double(), 16) for start in (0, 8)]
    found = Alignment("by hand", net.graph, tuple(Transport(net.graph, {"patches": item}) for item in apart))
    with pytest.raises(InputError, match=r"depend on how many[\s\S]*patches: blocks.0.norm1:layer_norm"):
        net.merge(models, align=found)
