"""Scales, signs and changes of basis through every form of every operation: right, and no freedom lost."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus
from isthmus.symmetry.flow import RULES, Flow, Layout
from isthmus.symmetry.flow_rules import passes
from isthmus.symmetry.operations import operation

P, POSITIVE, SIGNED, BOTH = (
    "permutation",
    "permutation x positive",
    "signed permutation",
    "signed permutation x positive",
)
ANY, TURNS, CENTRED = "invertible", "orthogonal", "orthogonal fixing ones"
X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))


class Between(nn.Module):
    """A linear map, one operation on what it makes, another linear map."""

    def __init__(self, form: Callable[["Between", Tensor], Tensor]):
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(4, 6)
        self.p, self.q = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.one, self.m = nn.Parameter(torch.randn(1)), nn.Parameter(torch.randn(6, 6))
        self.k = nn.Parameter(torch.randn(6, 1, 3))
        self.register_buffer("mean", torch.rand(6) + 0.5)
        self.register_buffer("var", torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        made = self.b(self.form(self, self.a(x)))
        del self.x
        return made

    @property
    def other(self) -> Tensor:
        """Another value like the first, of another weight."""
        return self.c(self.x)


def first(form: Callable[[Between, Tensor], Tensor]) -> Callable[[Between, Tensor], Tensor]:
    """The form on channels-first values."""
    return lambda s, h: form(s, h.transpose(1, 2)).transpose(1, 2)


def rms(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def overwritten(h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 0] = 1.0
    return h


r, t = F.relu, torch.tanh
FORMS: dict[str, tuple[Callable[[Between, Tensor], Tensor], str]] = {
    "nothing": (lambda s, h: h, ANY),
    # sums: keyword arguments, numbers, zero, broadcasting
    "add alpha": (lambda s, h: torch.add(h, s.p, alpha=2), ANY),
    "add a number": (lambda s, h: r(h + 1), P),
    "add zero": (lambda s, h: r(h + 0), POSITIVE),
    "add zeros": (lambda s, h: r(h) + torch.zeros(6), POSITIVE),
    "add ones": (lambda s, h: r(h) + torch.ones_like(h), P),
    "add one weight to all": (lambda s, h: r(h + s.one), P),
    "add positions": (lambda s, h: r(h + torch.arange(3.0)[:, None]), P),
    "add an expanded weight": (lambda s, h: s.p.expand_as(h) + r(h), POSITIVE),
    "rsub": (lambda s, h: 1 - r(h), P),
    "rsub zero": (lambda s, h: torch.rsub(r(h), 0, alpha=2), POSITIVE),
    "sub alpha": (lambda s, h: r(torch.sub(h, s.p, alpha=3)), POSITIVE),
    "lerp": (lambda s, h: torch.lerp(r(h), r(s.p), 0.3), POSITIVE),
    "lerp by a weight": (lambda s, h: torch.lerp(r(h), r(s.p), s.one), POSITIVE),
    "lerp by a weight per unit": (lambda s, h: torch.lerp(r(h), r(s.p), s.q), P),
    "lerp by itself": (lambda s, h: torch.lerp(h, s.p, h), P),
    # products
    "mul a number": (lambda s, h: r(h * -2), POSITIVE),
    "mul one weight": (lambda s, h: r(h * s.one), POSITIVE),
    "mul a weight": (lambda s, h: r(h * s.p), BOTH),
    "mul twice": (lambda s, h: r(h * s.p) * s.p, BOTH),
    "mul a weight's sum": (lambda s, h: r(h * s.p) * s.p.sum(), POSITIVE),
    "mul a weight's square": (lambda s, h: r(h) * s.p**2, BOTH),
    "mul a softmax of weights": (lambda s, h: r(h) * s.p.softmax(0), POSITIVE),
    "mul positions": (lambda s, h: r(h) * torch.arange(1, 4)[:, None], POSITIVE),
    "mul units": (lambda s, h: r(h) * torch.arange(1, 7), "fixed"),
    "mul zeros": (lambda s, h: h + r(h) * torch.zeros(6), POSITIVE),
    "div by a weight": (lambda s, h: r(h / s.p.abs()), BOTH),
    "div a weight": (lambda s, h: r(s.p / h.abs()), BOTH),
    "div a number": (lambda s, h: 2 / h, BOTH),
    "div rounded": (lambda s, h: r(h) + torch.div(r(h), s.p, rounding_mode="floor"), P),
    "mul itself": (lambda s, h: h * h, BOTH),
    "addcmul": (lambda s, h: torch.addcmul(h, s.p, s.q, value=2), P),
    "gate": (lambda s, h: h * s.p.sigmoid() * s.q.sigmoid(), BOTH),
    "glu": (lambda s, h: F.glu(torch.cat([r(h), h], -1)), P),
    "another power added": (lambda s, h: r(h) + r(h) ** 2, P),
    # powers
    "pow 3": (lambda s, h: h**3, BOTH),
    "pow 1/2": (lambda s, h: r(h) ** 0.5, POSITIVE),
    "pow -2": (lambda s, h: h**-2.0, BOTH),
    "pow nearly 22/7": (lambda s, h: r(h) ** 3.14159, P),
    "a number to the power": (lambda s, h: 2**h, P),
    "pow of a weight": (lambda s, h: r(h) ** s.p.exp(), P),
    # functions whose arguments decide
    "clamp": (lambda s, h: h.clamp(min=0), POSITIVE),
    "clamp max": (lambda s, h: h.clamp(max=0), POSITIVE),
    "clamp both": (lambda s, h: h.clamp(max=1, min=-1), SIGNED),
    "clamp one side more": (lambda s, h: h.clamp(-1, 2), P),
    "clamp upside down": (lambda s, h: h.clamp(1, -1) + h, P),
    "clamp to nothing": (lambda s, h: h.clamp(0, 0) + t(h), P),
    "clamp to a tensor": (lambda s, h: torch.clamp(h, min=torch.zeros(6)), P),
    "clamp_min": (lambda s, h: torch.clamp_min(h, 0), POSITIVE),
    "clamp_min 1": (lambda s, h: torch.clamp_min(h, 1), P),
    "clamp_max": (lambda s, h: torch.clamp_max(h, 0), POSITIVE),
    "clamp_max 1": (lambda s, h: torch.clamp_max(h, 1), P),
    "hardtanh": (lambda s, h: F.hardtanh(h), SIGNED),
    "hardtanh 0 6": (lambda s, h: F.hardtanh(h, 0, 6), P),
    "prelu": (first(lambda s, h: F.prelu(h, s.p)), POSITIVE),
    "relu": (lambda s, h: r(h), POSITIVE),
    "leaky_relu": (lambda s, h: F.leaky_relu(h, 0.2), POSITIVE),
    "tanh": (lambda s, h: t(h), SIGNED),
    "gelu": (lambda s, h: F.gelu(h), P),
    "cos": (lambda s, h: h.cos(), SIGNED),
    "sgn": (lambda s, h: h.sgn() + 0 * h, SIGNED),
    # masks and choices
    "where": (lambda s, h: torch.where(h > 0, h, 0.0), POSITIVE),
    "where the other way": (lambda s, h: torch.where(h <= 0, 0.0, h), POSITIVE),
    "where one": (lambda s, h: torch.where(h > 0, h, torch.tensor(1.0)), P),
    "where by a threshold": (lambda s, h: torch.where(h > 1, h, 0.0), P),
    "where by a weight": (lambda s, h: torch.where(s.p > s.q, r(h), 2 * r(h)), POSITIVE),
    "where zero is odd": (lambda s, h: torch.where(h == 0, 0.0, t(h)), SIGNED),
    "where of a basis": (lambda s, h: torch.where(h > 0, h, 2 * h), POSITIVE),
    "mask times": (lambda s, h: h * (h > 0), POSITIVE),
    "mask times, threshold": (lambda s, h: h * (h > 1), P),
    "mask times, weights": (lambda s, h: h * (h > s.p), P),
    "masked_fill": (lambda s, h: h.masked_fill(h < 0, 0.0), POSITIVE),
    "masked_fill with one": (lambda s, h: h.masked_fill(h < 0, 1.0), P),
    "masked_fill by position": (lambda s, h: r(h).masked_fill(torch.arange(3)[:, None] > 1, 0.0), POSITIVE),
    "maximum": (lambda s, h: torch.maximum(h, s.p), POSITIVE),
    "maximum with zeros": (lambda s, h: torch.maximum(h, torch.zeros_like(h)), POSITIVE),
    "maximum of odd": (lambda s, h: torch.maximum(t(h), t(s.p)), P),
    # casts
    "to float": (lambda s, h: r(h).to(torch.bfloat16).to(torch.float32), POSITIVE),
    "to int": (lambda s, h: r(h) + (3 * h).to(torch.int64), P),
    "long": (lambda s, h: h + (3 * h).long().float(), P),
    "to bool": (lambda s, h: h * h.bool() + h.bool(), P),
    "mean to int": (lambda s, h: r(h) + r(h).sum(1, keepdim=True, dtype=torch.int64), P),
    # reductions
    "sum of all": (lambda s, h: r(h) + r(h).sum(), P),
    "sum of units": (lambda s, h: r(h) * r(h).sum(-1, keepdim=True), P),
    "mean of tokens": (lambda s, h: r(h) + r(h).mean(1, keepdim=True, dtype=torch.float64), POSITIVE),
    "cumsum": (lambda s, h: h.cumsum(1), ANY),
    "amax": (lambda s, h: r(h) + r(h).amax(1, keepdim=True), POSITIVE),
    "amax of odd": (lambda s, h: t(h) + t(h).amax(1, keepdim=True), P),
    "max": (lambda s, h: r(h) + r(h).max(1, keepdim=True).values, P),
    "argmax": (lambda s, h: r(h) + h.argmax(1, keepdim=True), P),
    "prod": (lambda s, h: r(h) + r(h).prod(1, keepdim=True), P),
    "softmax of tokens": (lambda s, h: r(h) * h.softmax(1), P),
    "softmax of units": (lambda s, h: h.softmax(-1), P),
    "max_pool": (first(lambda s, h: F.max_pool1d(-r(h), 2, padding=1)), POSITIVE),
    "max_pool of odd": (first(lambda s, h: F.max_pool1d(t(h), 2)), P),
    "avg_pool": (first(lambda s, h: F.avg_pool1d(t(h), 2)), SIGNED),
    "sort": (lambda s, h: r(h).sort(1).values, P),
    # lengths
    "normalize": (lambda s, h: F.normalize(h, dim=-1), TURNS),
    "normalize tokens": (lambda s, h: F.normalize(h, dim=1), P),
    "norm 1": (lambda s, h: h * h.norm(p=1, dim=-1, keepdim=True), P),
    "norm of all": (lambda s, h: h / h.norm(), TURNS),
    "rms by hand": (lambda s, h: rms(h), TURNS),
    "rms by hand, scaled": (lambda s, h: s.p * rms(h), BOTH),
    "rms by hand, 1 + scale": (lambda s, h: (1 + s.p) * rms(h), SIGNED),
    "squares of tokens": (lambda s, h: h * h.pow(2).sum(1, keepdim=True), BOTH),
    "squares of one token": (lambda s, h: h * h.pow(2)[:, :1].sum(-1, keepdim=True), SIGNED),
    # norms
    "layer_norm": (lambda s, h: F.layer_norm(h, (6,), s.p, s.q), BOTH),
    "layer_norm plain": (lambda s, h: F.layer_norm(h, (6,)), CENTRED),
    "layer_norm shift": (lambda s, h: F.layer_norm(h, (6,), bias=s.q), CENTRED),
    "layer_norm of tokens too": (lambda s, h: F.layer_norm(h, (3, 6)), P),
    "rms_norm": (lambda s, h: F.rms_norm(h, (6,), s.p), BOTH),
    "rms_norm plain": (lambda s, h: F.rms_norm(h, (6,)), TURNS),
    "rms_norm of tokens": (first(lambda s, h: F.rms_norm(h, (3,))), SIGNED),
    "batch_norm": (first(lambda s, h: F.batch_norm(r(h), s.mean, s.var, s.p, s.q)), BOTH),
    "batch_norm plain": (first(lambda s, h: F.batch_norm(r(h), s.mean, s.var)), POSITIVE),
    "batch_norm shift": (first(lambda s, h: F.batch_norm(r(h), s.mean, s.var, bias=s.q)), POSITIVE),
    "batch_norm of batches": (first(lambda s, h: F.batch_norm(h, None, None, training=True)), P),
    "batch_norm twice": (
        first(lambda s, h: F.batch_norm(h, s.mean, s.var) + F.batch_norm(r(h), s.mean, s.var, eps=0.1)),
        P,
    ),
    "instance_norm": (first(lambda s, h: F.instance_norm(t(h))), SIGNED),
    "instance_norm of statistics": (
        first(lambda s, h: F.instance_norm(r(h), s.mean, s.var, s.p, s.q, use_input_stats=False)),
        BOTH,
    ),
    "group_norm": (first(lambda s, h: F.group_norm(h, 6, s.p)), BOTH),
    "group_norm plain": (first(lambda s, h: F.group_norm(h, 6)), P),
    # products that sum
    "addmm": (
        lambda s, h: torch.addmm(s.p, r(h).flatten(0, 1), s.m, beta=0.5, alpha=2).view(-1, 3, 6),
        POSITIVE,
    ),
    "square, with a skip": (lambda s, h: r(h) + F.linear(r(h), s.m), POSITIVE),
    "square, with a skip, linear": (lambda s, h: h + F.linear(h, s.m), ANY),
    "square, both ways": (lambda s, h: h @ s.m + h @ s.m.T, P),
    "square, with its transpose": (lambda s, h: h @ (s.m @ s.m.T), ANY),
    "square, normed": (lambda s, h: h @ (s.m / s.m.norm(dim=0, keepdim=True)), TURNS),
    "square, absolute": (lambda s, h: r(F.linear(r(h), s.m.abs())), BOTH),
    "tied": (lambda s, h: r(h) @ s.a.weight @ s.a.weight.T, P),
    "tied, linear": (lambda s, h: (h @ s.a.weight) @ s.a.weight.T, TURNS),
    "quadratic": (lambda s, h: h * (h @ s.m * h).sum(-1, keepdim=True), BOTH),
    "gram": (lambda s, h: (h @ h.transpose(1, 2)) @ h, TURNS),
    "gram of units": (lambda s, h: h @ (h.transpose(1, 2) @ h), TURNS),
    "outer": (lambda s, h: (r(h)[..., None] * r(h)[..., None, :]) @ s.p, P),
    "einsum": (lambda s, h: torch.einsum("...c,dc->...d", r(h), s.m), POSITIVE),
    "einsum scale": (lambda s, h: torch.einsum("btc,c->btc", r(h), s.p), BOTH),
    "einsum of three": (lambda s, h: torch.einsum("btc,btc,btd->btd", h, h, h), TURNS),
    "einsum gram": (lambda s, h: torch.einsum("btc,bsc,bsd->btd", h, h, h), TURNS),
    "einsum diagonal": (lambda s, h: torch.einsum("btc,cc->btc", r(h), s.m), BOTH),
    "einsum sum": (lambda s, h: h * torch.einsum("btc->bt", h)[..., None], P),
    "bilinear": (lambda s, h: F.bilinear(h, h, s.m.expand(6, 6, 6).contiguous()), P),
    # convolutions
    "conv": (first(lambda s, h: F.conv1d(r(h), s.m[..., None], s.p)), POSITIVE),
    "conv transposed": (first(lambda s, h: F.conv_transpose1d(r(h), s.m[..., None])), POSITIVE),
    "conv, with a skip": (first(lambda s, h: r(h) + F.conv1d(r(h), s.m[..., None])), POSITIVE),
    "depthwise": (first(lambda s, h: F.conv1d(h, s.k, s.p, padding=1, groups=6)), BOTH),
    "depthwise, with a skip": (first(lambda s, h: r(h) + F.conv1d(r(h), s.k, padding=1, groups=6)), POSITIVE),
    # attention
    "attention": (lambda s, h: F.scaled_dot_product_attention(h, h, h), SIGNED),
    "attention of values": (lambda s, h: F.scaled_dot_product_attention(X[:, :, :2], X[:, :, :2], h), ANY),
    "attention of positive values": (
        lambda s, h: F.scaled_dot_product_attention(X[:, :, :2], X[:, :, :2], r(h)),
        POSITIVE,
    ),
    "attention mask": (
        lambda s, h: F.scaled_dot_product_attention(X[:, :, :2], X[:, :, :2], h, attn_mask=h[..., :3] * 0),
        "any",
    ),
    # movements
    "pad tokens": (first(lambda s, h: F.pad(r(h), (1, 1))), POSITIVE),
    "pad tokens with ones": (first(lambda s, h: F.pad(r(h), (1, 1), value=1.0)), P),
    "pad tokens, reflected": (first(lambda s, h: F.pad(r(h), (1, 1), mode="reflect")), POSITIVE),
    "pad units": (lambda s, h: F.pad(r(h), (1, 1))[..., 1:7], POSITIVE),
    "cat tokens": (lambda s, h: torch.cat([r(h), s.p.expand(h.shape[0], 1, 6)], 1), POSITIVE),
    "cat ones": (lambda s, h: torch.cat([r(h), torch.ones(h.shape[0], 1, 6)], dim=1), P),
    "cat zeros": (lambda s, h: torch.cat([r(h), h.new_zeros(h.shape[0], 1, 6)], 1), POSITIVE),
    "stack": (lambda s, h: torch.stack([r(h), s.p.expand_as(h)], 0).amax(0), POSITIVE),
    "stack ones": (lambda s, h: torch.stack([r(h), torch.ones_like(h)], 0).mean(0), P),
    "halves": (lambda s, h: torch.cat([h[..., :3] * h[..., 3:].sigmoid(), h[..., 3:]], -1), "any"),
    "repeat_interleave tokens": (lambda s, h: r(h).repeat_interleave(2, 1), POSITIVE),
    "repeat units": (lambda s, h: r(h).repeat(1, 1, 2)[..., :6], POSITIVE),
    "slice_scatter": (lambda s, h: torch.slice_scatter(r(h), r(h)[:, 1:2], 1, 0, 1), POSITIVE),
    "slice_scatter ones": (lambda s, h: torch.slice_scatter(r(h), torch.ones_like(h[:, :1]), 1, 0, 1), P),
    "slice_scatter into zeros": (
        lambda s, h: torch.slice_scatter(torch.zeros_like(h), r(h)[:, 1:], 1, 1, 3),
        POSITIVE,
    ),
    "slice_scatter into ones": (
        lambda s, h: torch.slice_scatter(torch.ones_like(h), r(h)[:, 1:], 1, 1, 3),
        P,
    ),
    "written in place": (lambda s, h: overwritten(r(h)), P),
    "index_put": (lambda s, h: torch.index_put(r(h), (torch.tensor([0]),), torch.tensor(1.0)), P),
    "copy": (lambda s, h: torch.ops.aten.copy(torch.zeros_like(h), r(h)), POSITIVE),
    "gather": (lambda s, h: r(h).gather(1, torch.zeros(h.shape[0], 1, 6, dtype=torch.long)), POSITIVE),
    "index": (lambda s, h: r(h)[:, torch.tensor([1, 0, 2])], POSITIVE),
    "flip": (lambda s, h: r(h).flip(1), POSITIVE),
    "movedim": (lambda s, h: r(h).movedim(-1, 0).movedim(0, -1), POSITIVE),
    "unfold": (first(lambda s, h: r(h).unfold(-1, 2, 1).mean(-1)), POSITIVE),
    "complex": (lambda s, h: torch.complex(h, h).abs() + h, P),
    "fft": (lambda s, h: torch.fft.fft(h, dim=1).real, P),
}


def traced(form: Callable[[Between, Tensor], Tensor]) -> tuple[nn.Module, isthmus.SymmetryGraph]:
    model = Between(form).eval()
    return model, isthmus.trace(model, X)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_passes_what_it_should_and_nothing_else(name: str):
    form, expected = FORMS[name]
    model, graph = traced(form)
    found = graph.verify(model, X, each=False)
    assert found.error <= 1e-12, f"{found}\n{graph}"
    if expected != "any":
        assert graph.groups.get("a", "fixed") == expected


# What a space as a whole may do is not what its parts may do.


def test_heads_and_what_is_inside_them_have_freedoms_of_their_own():
    model, graph = traced(lambda s, h: F.rms_norm(h.unflatten(-1, (2, 3)), (3,)).flatten(-2))
    assert graph.groups == {"a/0": SIGNED, "a/1": TURNS}
    inner = graph.gauges["a/1:orthogonal"]
    assert inner.within == ("a/0",) and inner.size == 3
    assert graph.verify(model, X).ok


def test_units_that_hold_spaces_of_their_own_are_not_mixed():
    # An order inside each unit and a mixture of units would not compose to one of each.
    model, graph = traced(lambda s, h: h.unflatten(-1, (2, 3)).transpose(-1, -2).flatten(-2))
    assert graph.spaces["a/1"].within == ("a/0",)
    assert graph.groups == {"a/0": BOTH, "a/1": ANY}
    one, two = graph.random_element(1), graph.random_element(2)
    state = {key: value.double() for key, value in model.state_dict().items()}
    together = one.then(two, graph).apply(graph, state)
    for key, value in two.apply(graph, one.apply(graph, state)).items():
        torch.testing.assert_close(together[key], value)


@pytest.mark.parametrize("apply", [F.conv1d, F.conv_transpose1d])
def test_groups_of_a_convolution(apply: Callable[..., Tensor]):
    model, graph = traced(first(lambda s, h: r(apply(r(h), s.m[:, :3, None], groups=2))))
    assert graph.verify(model, X).ok
    inner = [graph.groups[name] for name, space in graph.spaces.items() if space.within == ("a/0",)]
    assert POSITIVE in inner, "inside a group, units scale"


def test_a_grouped_convolution_beside_a_skip():
    model, graph = traced(first(lambda s, h: r(h) + F.conv1d(r(h), s.m[:, :3, None], groups=2)))
    assert POSITIVE in graph.groups.values()
    assert graph.verify(model, X).ok


def test_each_half_of_a_packed_gate_has_a_scale():
    model, graph = traced(lambda s, h: (lambda a, b: torch.cat([a * b, b], -1))(*h.chunk(2, -1)))
    one, two = (g for g in graph.gauges.values() if g.kind == "positive")
    powers = [{(s.key, s.occurrence): s.power for s in gauge.slots} for gauge in (one, two)]
    assert graph.verify(model, X).ok
    assert powers[0]["a.weight", 0] == 1 and ("a.weight", 1) not in powers[0]
    assert powers[1]["a.weight", 1] == 1 and ("a.weight", 0) not in powers[1]
    # What reads the product answers to both, what reads the other half to its own.
    assert powers[0]["b.weight", 0] == powers[1]["b.weight", 0] == powers[1]["b.weight", 1] == -1


def test_zeros_beside_units_that_do_not_scale_let_nothing_through():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.pad(self.a(x).softmax(-1), (2, 2)))

    model = Padded().eval()
    graph = isthmus.trace(model, X)
    assert graph.groups["a"] == P and graph.verify(model, X).ok


def test_powers_multiply_along_the_way():
    _, graph = traced(lambda s, h: r(h) ** 3)
    (gauge,) = graph.gauges.values()
    powers = {slot.key: slot.power for slot in gauge.slots}
    assert powers["a.weight"] == powers["a.bias"] == 1 and powers["b.weight"] == -3


def test_a_root_is_written_in_whole_powers():
    _, graph = traced(lambda s, h: r(h) ** 0.5)
    (gauge,) = graph.gauges.values()
    assert {slot.power for slot in gauge.slots} == {2, -1}


def test_a_running_variance_takes_the_square_beside_what_the_norm_adds():
    _, graph = traced(first(lambda s, h: F.batch_norm(r(h), s.mean, s.var, s.p, s.q, eps=0.25)))
    slots = {slot.key: slot for gauge in graph.gauges.values() for slot in gauge.slots}
    assert abs(slots["var"].power) == 2 * abs(slots["mean"].power) and slots["var"].offset == 0.25
    assert slots["mean"].offset == 0.0


# What verification is for.


def test_a_rule_that_is_wrong_is_found_out_refused_and_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(RULES, "softmax", lambda flow, node: flow.state(node.args[0]))
    model, graph = traced(lambda s, h: r(h).softmax(-1))
    assert graph.groups["a"] == POSITIVE
    found = graph.verify(model, X)
    assert not found.ok and list(found.failed) == ["a:positive"] and found.failed["a:positive"] > 1e-3
    with pytest.raises(isthmus.IsthmusError, match=r"a:positive: relative error"):
        found.require()
    model, _ = traced(lambda s, h: r(h).softmax(-1))
    graph, found = isthmus.verified(model, X)
    assert found.ok and graph.groups["a"] == P, "the order of the space is kept"
    assert list(found.frozen) == ["a:positive"] == list(graph.refused)
    assert graph.refused["a:positive"].startswith("relative error")


def test_one_wrong_freedom_does_not_take_the_others_with_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(RULES, "softmax", lambda flow, node: flow.state(node.args[0]))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(r(self.b(r(self.a(x)).softmax(-1))))

    graph, found = isthmus.verified(Two().eval(), X)
    assert list(graph.refused) == ["a:positive"] and list(graph.gauges) == ["b:positive"] and found.ok


def test_a_rule_is_registered_under_every_name():
    def rule(flow: Flow, node: torch.fx.Node) -> None:
        return None

    try:
        passes("no_such_operation", "nor_this")(rule)
        assert RULES["no_such_operation"] is RULES["nor_this"] is rule
    finally:
        RULES.pop("no_such_operation")
        RULES.pop("nor_this")


def test_a_flow_says_where_a_basis_breaks():
    _, graph = traced(lambda s, h: t(h))
    layout = Layout(graph.program, graph.layout, graph.values, graph.ones)
    with pytest.raises(Exception, match="tanh"):
        Flow(layout, "a", "basis")
    assert any(operation(node) == "tanh" for node in layout.nodes)


# Fixing a space takes its freedoms along.


def test_a_part_of_a_weight_that_comes_in_turn_is_scaled_where_it_stands():
    def shuffled(s: Between, h: Tensor) -> Tensor:
        both = torch.cat([r(h), r(s.other)], -1)
        return both.unflatten(-1, (2, 6)).transpose(-1, -2).flatten(-2)[..., :6]

    model, graph = traced(shuffled)
    assert graph.verify(model, X).ok


def test_a_frozen_space_has_no_freedoms():
    model, graph = traced(lambda s, h: r(h))
    frozen = graph.frozen({"a": "asked for"})
    assert not frozen.gauges and not frozen.groups and frozen.verify(model, X).ok


def test_what_is_inside_frozen_heads_has_one_basis_for_all():
    model, graph = traced(lambda s, h: F.rms_norm(h.unflatten(-1, (2, 3)), (3,)).flatten(-2))
    frozen = graph.frozen({"a/0": "asked for"})
    (gauge,) = frozen.gauges.values()
    assert gauge.within == () and gauge.kind == "orthogonal" and frozen.verify(model, X).ok
