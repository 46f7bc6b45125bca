"""Which spaces may be given more units, and which operations stand in the way: against networks that are given more."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus
from isthmus.errors import InputError
from isthmus.maps import Membership, Transport
from isthmus.maps.resize import resized
from isthmus.program import ProgramModule
from isthmus.symmetry import SymmetryGraph, counted
from isthmus.zoo import MLP, VGG, ResNet, ViT

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Stream(nn.Module):
    """What the forms below are made of: six units "a" at each of three places."""

    def __init__(self, form: Callable[["Stream", Tensor], Tensor]):
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.a, self.b, self.head, self.two, self.flat = (
            nn.Linear(*s) for s in ((4, 6), (4, 6), (6, 5), (12, 5), (18, 5))
        )
        self.n, self.bn, self.gn = nn.LayerNorm(6), nn.BatchNorm1d(6), nn.GroupNorm(1, 6)
        self.square, self.conv = nn.Linear(6, 6), nn.Conv1d(6, 6, 3, padding=1)
        self.lstm, self.deep = nn.LSTM(4, 6, batch_first=True), nn.LSTM(4, 6, num_layers=2)
        self.depthwise = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.left, self.right = nn.Parameter(torch.zeros(5, 2)), nn.Parameter(torch.zeros(2, 6))
        self.g = nn.Parameter(torch.rand(6) + 0.5)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
        self.register_buffer("ones", torch.ones(6))
        self.double().eval()
        for parameter in self.parameters():
            parameter.data.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x)


def long(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def standardised(w: Tensor) -> Tensor:
    return (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True)


Form = Callable[[Stream, Tensor], Tensor]

GROWS: dict[str, Form] = {
    "relu": lambda s, x: s.head(torch.relu(s.a(x))),
    "sigmoid": lambda s, x: s.head(torch.sigmoid(s.a(x))),
    "gate": lambda s, x: s.head(torch.sigmoid(s.a(x)) * s.b(x)),
    "sum of two": lambda s, x: s.head(torch.relu(s.a(x) + s.b(x) * s.g)),
    "batch norm": lambda s, x: s.head(torch.relu(s.bn(s.a(x).mT)).mT),
    "convolution": lambda s, x: s.head(torch.relu(s.conv(s.a(x).mT)).mT),
    "depthwise convolution": lambda s, x: s.head(torch.relu(s.depthwise(s.a(x).mT)).mT),
    "its own reader": lambda s, x: s.head(torch.relu(s.square(torch.relu(s.square(s.a(x)))))),
    "mean over places": lambda s, x: s.head(torch.relu(s.a(x)).mean(1)),
    "softmax over places": lambda s, x: s.head(s.a(x).softmax(1)),
    "norm over places": lambda s, x: s.head(F.layer_norm(s.a(x).mT, (3,)).mT),
    "largest over places": lambda s, x: s.head(s.a(x).amax(1)),
    "some places": lambda s, x: s.head(torch.relu(s.a(x))[:, 1:]),
    "padded places": lambda s, x: s.head(F.pad(torch.relu(s.a(x)), (0, 0, 1, 1))),
    "places in another order": lambda s, x: s.head(torch.relu(s.a(x)).flip(1).cumsum(1)),
    "side by side": lambda s, x: s.two(torch.cat([s.a(x), torch.tanh(s.b(x))], -1)),
    "flattened": lambda s, x: s.flat(s.a(x).mT.flatten(1)),
    "einsum": lambda s, x: torch.einsum("bti,oi->bto", torch.relu(s.a(x)), s.head.weight),
    "product of weights": lambda s, x: torch.relu(x) @ (s.head.weight @ s.a.weight).mT,
    "weights that keep zeros": lambda s, x: F.linear(s.a(x), 2 * torch.tanh(-s.head.weight) + s.head.weight.relu()),
    "low rank": lambda s, x: F.linear(torch.relu(s.a(x)), s.head.weight + s.left @ s.right),
    "attention over places": lambda s, x: s.head((x @ x.mT).softmax(-1) @ s.a(x)),
    "values of attention": lambda s, x: s.head(F.scaled_dot_product_attention(x, x, s.a(x))),
    "lstm": lambda s, x: s.head(s.lstm(x)[0]),
}  # fmt: skip

COUNTS: dict[str, tuple[Form, str, str]] = {
    "layer norm": (lambda s, x: s.head(s.n(s.a(x))), "n:layer_norm", "mean"),
    "rms norm": (lambda s, x: s.head(F.rms_norm(s.a(x), (6,), s.g)), "rms_norm", "mean"),
    "rms norm by hand": (lambda s, x: s.head(long(s.a(x))), "mean", "mean"),
    "group norm": (lambda s, x: s.head(s.gn(s.a(x).mT).mT), "gn:group_norm", "mean"),
    "softmax": (lambda s, x: s.head(s.a(x).softmax(-1)), "softmax", "sum"),
    "log softmax": (lambda s, x: s.head(s.a(x).log_softmax(-1)), "log_softmax", "sum"),
    "mean": (lambda s, x: s.head(s.b(x)) * s.a(x).mean(-1, keepdim=True), "mean", "mean"),
    "mean of all": (lambda s, x: s.head(s.b(x)) * s.a(x).mean(), "mean", "mean"),
    "sum": (lambda s, x: s.head(s.b(x)) * torch.sigmoid(s.a(x)).sum(-1, keepdim=True), "sum", "sum"),
    "variance": (lambda s, x: s.head(s.b(x)) * s.a(x).var(-1, keepdim=True), "var", "mean"),
    "largest": (lambda s, x: s.head(s.b(x)) * s.a(x).amax(-1, keepdim=True), "amax", "mean"),
    "largest, named": (lambda s, x: s.head(s.b(x)) * s.a(x).max(-1, keepdim=True)[0], "max", "mean"),
    "length": (lambda s, x: s.head(F.normalize(s.a(x), dim=-1)), "linalg_vector_norm", "sum"),
    "products of units": (lambda s, x: (s.a(x).sigmoid() @ s.a(x).sigmoid().mT).softmax(-1) @ x, "matmul", "sum"),
    "by letters": (lambda s, x: torch.einsum("bti,bsi->bts", s.a(x).sigmoid(), s.b(x).sigmoid()), "einsum", "sum"),
    "attention": (
        lambda s, x: F.scaled_dot_product_attention(s.a(x).exp(), s.b(x).exp(), x),
        "scaled_dot_product_attention",
        "sum",
    ),
    "read by ones": (lambda s, x: torch.sigmoid(s.a(x)) @ s.ones.new_ones(6, 2), "matmul", "sum"),
    "standardised weights": (lambda s, x: F.linear(torch.sigmoid(s.a(x)), standardised(s.head.weight)), "std", "mean"),
    "weights that lose zeros": (lambda s, x: F.linear(torch.sigmoid(s.a(x)), s.head.weight.exp()), "linear", "sum"),
    "weights with a shift": (lambda s, x: F.linear(torch.sigmoid(s.a(x)), s.head.weight + 1), "linear", "sum"),
}  # fmt: skip

#: What the program is told of a space by number: of these nothing can be shown, since it does not run with another.
TOLD: dict[str, tuple[Form, str]] = {
    "halves": (lambda s, x: s.head(s.two.weight.new_zeros(()) + F.glu(torch.cat([s.a(x)] * 2, -1))), "glu"),
    "chunks": (lambda s, x: s.head(torch.mul(*torch.cat([s.a(x), s.b(x)], -1).chunk(2, -1))), "chunk"),
    "padded": (lambda s, x: s.two(F.pad(s.a(x), (0, 6))), "pad"),
    "repeated": (lambda s, x: s.two(s.a(x).repeat(1, 1, 2)), "repeat"),
    "in turn": (lambda s, x: s.two(s.a(x).repeat_interleave(2, -1)), "repeat_interleave"),
    "weight norm": (lambda s, x: s.normed(s.a(x)), "normed.parametrizations.weight.0:_weight_norm"),
    "divided by weights": (lambda s, x: s.head(s.a(x) / s.g), "div"),
    "length of a unit's weights": (lambda s, x: s.head(F.linear(x, F.normalize(s.a.weight, dim=1))), "div"),
    "several layers": (lambda s, x: s.head(s.deep(x)[0]), "deep:lstm"),
}


def grown(graph: SymmetryGraph, model: nn.Module, space: str) -> nn.Module:
    """The network with three more units in one space: drawn at random, read by zeros."""
    size = graph.spaces[space].size
    wider = Membership(torch.arange(size), torch.ones(size).double(), size + 3)
    state = Transport(graph, {space: wider}).apply(model.state_dict())
    generator = torch.Generator().manual_seed(3)
    for member in graph.spaces[space].members:
        if member.role != "reads" and not (
            set(map(str, graph.layout[member.key][member.axis : member.axis + 1])) - {space}
        ):
            new = state[member.key].narrow(member.axis, size, 3)
            new.copy_(0.5 + torch.rand(new.shape, generator=generator, dtype=new.dtype))
    return ProgramModule(resized(graph, {space: size + 3}), state)


@pytest.mark.parametrize("form", GROWS)
def test_what_is_not_counted_can_be_given_more_units(form: str):
    model = Stream(GROWS[form])
    graph = isthmus.trace(model, X)
    assert graph.spaces and not counted(graph)
    for space in graph.spaces:
        torch.testing.assert_close(grown(graph, model, space)(X), model(X))


@pytest.mark.parametrize("form", COUNTS)
def test_what_is_counted_is_named_and_would_change_the_function(form: str, monkeypatch: pytest.MonkeyPatch):
    make, place, kind = COUNTS[form]
    model = Stream(make)
    graph = isthmus.trace(model, X)
    found = counted(graph)
    assert "a" in found and (place, kind) in {(count.place, count.kind) for count in found["a"]}
    with pytest.raises(InputError, match=place):
        resized(graph, {"a": 9})
    monkeypatch.setattr("isthmus.maps.resize.counted", lambda _: {})
    try:
        other = grown(graph, model, "a")(X)
    except RuntimeError:
        return  # it is told its number as well
    assert (other - model(X)).norm() > 1e-3 * model(X).norm()


@pytest.mark.parametrize("form", TOLD)
def test_what_is_told_a_number_is_named(form: str):
    make, place = TOLD[form]
    found = counted(isthmus.trace(Stream(make), X))
    assert found and any(
        (count.place, count.kind) == (place, "told") for counts in found.values() for count in counts
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str | None]] = {
    "mlp": (lambda: MLP(d_in=5, widths=(6, 7), num_classes=3), (5,), None),
    "vgg": (lambda: VGG((1, "M", 2), base=3, norm="bn", in_channels=1, num_classes=3), (1, 6, 6), None),
    "resnet": (lambda: ResNet(8, base=3, norm="bn", in_channels=1, num_classes=3), (1, 8, 8), None),
    "resnet-ln": (lambda: ResNet(8, base=4, norm="ln", in_channels=1, num_classes=3), (1, 8, 8), "norm"),
    "vit": (lambda: ViT(image=4, patch=2, dim=8, depth=1, heads=1, in_channels=1, num_classes=3), (1, 4, 4), "norm"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_networks_grow_where_nothing_counts_their_units(name: str):
    make, shape, counting = NETS[name]
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(3, *shape).double()
    graph = isthmus.trace(model, x)
    found = counted(graph)
    places = {count.place for counts in found.values() for count in counts}
    assert bool(found) == bool(counting) and (counting is None or any(counting in place for place in places))
    for space in graph.spaces:
        if space not in found:
            torch.testing.assert_close(grown(graph, model, space)(x), model(x))
