"""A gain and a shift fold into the weights of whatever makes a value, or it is said why not."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isthmus.features import centre
from isthmus.program import Batch, export
from isthmus.repair import Fusable, Goal, fusable, goals, repair, repairable, rescale
from isthmus.repair.sites import AffineSite
from isthmus.repair.writers import writer_of


class Weighted(nn.Module):
    """A weight, perhaps a bias, and a way to apply them."""

    def __init__(self, apply, *shape, bias=None):
        super().__init__()
        self.apply_weight = apply
        self.weight = nn.Parameter(torch.randn(*shape))
        self.bias = nn.Parameter(torch.randn(bias)) if bias else None

    def forward(self, x):
        return self.apply_weight(x, self.weight, self.bias)


WRITERS = {
    "linear": (nn.Linear(5, 4), (6, 5), "bias"),
    "linear on tokens": (nn.Linear(5, 4), (6, 3, 5), "bias"),
    "linear, no bias": (nn.Linear(5, 4, bias=False), (6, 5), None),
    "conv1d": (nn.Conv1d(4, 6, 3, padding="same"), (6, 4, 5), "bias"),
    "conv2d, grouped": (nn.Conv2d(4, 6, 3, groups=2), (6, 4, 5, 5), "bias"),
    "conv2d, depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (6, 4, 5, 5), "bias"),
    "conv3d": (nn.Conv3d(2, 3, 2), (6, 2, 3, 3, 3), "bias"),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), (6, 4, 3, 3), "bias"),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), (6, 4, 3, 3), "bias"),
    "transposed 1d, no bias": (nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), (6, 4, 3), None),
    "addmm, stored in x out": (Weighted(lambda x, w, b: torch.addmm(b, x, w), 5, 4, bias=4), (6, 5), "bias"),
    "addmm, transposed": (Weighted(lambda x, w, b: torch.addmm(b, x, w.t()), 4, 5, bias=4), (6, 5), "bias"),
    "x @ w": (Weighted(lambda x, w, b: x @ w, 5, 4), (6, 3, 5), None),
    "x @ w.T": (Weighted(lambda x, w, b: x @ w.T, 4, 5), (6, 5), None),
    "x @ w.mT": (Weighted(lambda x, w, b: torch.mm(x, w.transpose(0, 1)), 4, 5), (6, 5), None),
    "w @ x": (Weighted(lambda x, w, b: w @ x, 4, 5), (6, 5, 3), None),
    "w permuted": (Weighted(lambda x, w, b: F.linear(x, w.permute(1, 0), b), 5, 4, bias=4), (6, 5), "bias"),
    "then batch norm": (
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)),
        (6, 3, 5, 5),
        "running_mean",
    ),
    "bias, then batch norm": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (6, 3, 5, 5), "bias"),
}


def fold(model, shape, seed=0, shifts=True):
    """Fold random statistics into a model, and the same beside it by a tap; both outputs."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    program, weights = export(model, x[:2]), {k: v.detach() for k, v in model.state_dict().items()}
    (value,) = [name for name in program.nodes if writer_of(program, name)]
    writer = writer_of(program, value)
    channels = program.size(value)[writer.axis]
    random = torch.rand(2, channels, generator=generator, dtype=torch.float64)
    goal = Goal(random[0], random[1] + 0.1)
    site = AffineSite(program, writer, goal, fusable(program, value), None, None, shifts, 100.0, 1e-8)
    sample = torch.randn(7, channels, generator=generator, dtype=torch.float64)
    site.pooled.add(centre(sample, 1))
    gain, shift, _ = site.affine(site.pooled.mean, site.pooled.variance)
    if not site.shifted:
        assert (shift == 0).all()

    def tap(name, y):
        return y * gain.view(site.shape(y.ndim)) + shift.view(site.shape(y.ndim))

    batch = Batch((x,), {})
    with torch.no_grad():
        beside = program.compile(taps=[value])(weights, batch, tap=tap)
        change = site.write(weights)
        folded = program.compile()(weights, batch)
    return folded, beside, change, site


@pytest.mark.parametrize("name", WRITERS)
def test_fused_equals_unfused(name):
    model, shape, where = WRITERS[name]
    torch.manual_seed(0)
    folded, beside, change, site = fold(model, shape)
    assert site.fusable.shift == where
    assert site.fusable.scale
    assert change.kind == ("scale" if where is None else "scale and shift")
    assert (folded - beside).abs().max() < 1e-12
    assert not torch.allclose(folded, model(torch.zeros(shape, dtype=torch.float64)))


@settings(max_examples=20)
@given(
    groups=st.integers(1, 3),
    inner=st.integers(1, 3),
    outer=st.integers(1, 3),
    transposed=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_grouping_of_a_convolution_folds(groups, inner, outer, transposed, bias, seed):
    make = nn.ConvTranspose1d if transposed else nn.Conv1d
    conv = make(groups * inner, groups * outer, 2, groups=groups, bias=bias)
    folded, beside, _, _ = fold(conv, (4, groups * inner, 3), seed)
    assert (folded - beside).abs().max() < 1e-12


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.same, self.own = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.own(self.same(self.same(x).relu()).relu()).relu()


class Tied(nn.Module):
    """An embedding that is also the head, as in GPT-2."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.mix(self.embed(tokens)).relu()).softmax(-1)


class Odd(nn.Module):
    """What cannot be folded, one line each."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))
        self.b = nn.Parameter(torch.randn(4))
        self.v = nn.Parameter(torch.randn(4, 4))
        self.deep = nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x):
        normalised = F.linear(x, self.w / self.w.norm(), self.b)
        computed = F.linear(normalised, self.v, self.b.exp()).relu()
        batched = computed.unsqueeze(0).expand(2, -1, -1) @ self.deep
        return batched.sum(0)


def test_what_does_not_fold_says_why():
    x = torch.randn(3, 4)
    program = export(Shared(), x)
    assert fusable(program, "linear") == Fusable(
        False, None, "its weight same.weight is used at several places"
    )
    assert fusable(program, "linear_2") == Fusable(True, "bias")
    assert fusable(program, "relu").reason.startswith("it is not the output of a linear or conv operation")
    program = export(Tied(), torch.zeros(2, 3, dtype=torch.long))
    assert fusable(program, "linear_1").reason.endswith("d.weight is used at several places")
    program = export(Odd(), x)
    assert fusable(program, "linear").reason == "its weight is computed from others before it is applied"
    assert fusable(program, "linear_1").reason == "its bias is computed from others before it is added"
    assert repairable(program) == ("linear", "linear_1")  # a batch of matrices has no one axis of channels
    norms = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.GroupNorm(2, 4))
    assert fusable(export(norms, torch.randn(2, 3, 4, 4)), "conv2d") == Fusable(True, None, "it has no bias")


def test_attention_scores_are_no_layer():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    q = torch.randn(2, 3, 8)
    program = export(model, (q, q, q))
    for value in repairable(program):
        assert writer_of(program, value).weight in program.weights


def test_skipped_layers_are_reported_and_new_parameters_reach_them():
    torch.manual_seed(0)
    models = [Shared().double() for _ in range(2)]
    x = torch.randn(40, 4, dtype=torch.float64)
    program = export(models[0], x[:2])
    states = [m.state_dict() for m in models]
    average = {k: (states[0][k] + states[1][k]) / 2 for k in states[0]}
    to = goals(program, states, [0.5, 0.5], [x])
    result = repair(program, average, [x], goals=to)
    assert result.skipped == dict.fromkeys(
        ("linear", "linear_1"), "its weight same.weight is used at several places"
    )
    assert result.new_parameters == ()
    result = repair(program, average, [x], goals=to, allow_new_parameters=True)
    assert result.skipped == {}
    assert set(result.new_parameters) == {
        f"repair.{v}.{kind}" for v in ("linear", "linear_1") for kind in ("gain", "shift")
    }
    again = goals(result.program, [result.weights], [1.0], [x], ["linear_2"])
    assert torch.allclose(again["linear_2"].mean, to["linear_2"].mean, rtol=1e-6)
    only_scaled = rescale(program, average, [x], goals=to, allow_new_parameters=True)
    assert set(only_scaled.new_parameters) == {"repair.linear.gain", "repair.linear_1.gain"}


@pytest.mark.parametrize("mode", ["joint", "sequential"])
def test_new_parameters_give_a_shift_to_layers_without_bias(mode):
    torch.manual_seed(0)

    def make():
        layers = (
            nn.Conv2d(3, 4, 3, bias=False),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3, bias=False),
        )
        return nn.Sequential(*layers, nn.GELU(), nn.Flatten(), nn.Linear(20, 2)).double()

    models = [make() for _ in range(2)]
    x = torch.randn(30, 3, 6, 6, dtype=torch.float64) + 1
    program = export(models[0], x[:2])
    states = [m.state_dict() for m in models]
    average = {k: (states[0][k] + states[1][k]) / 2 for k in states[0]}
    to = goals(program, states, [0.5, 0.5], [x])
    without = repair(program, average, [x], goals=to, mode=mode)
    assert without.scale_only == ("conv2d", "conv2d_1")
    assert {change.kind for change in without.changed.values()} == {"scale"}
    result = repair(program, average, [x], goals=to, mode=mode, allow_new_parameters=True)
    assert result.scale_only == ()
    assert result.new_parameters == ("repair.conv2d.shift", "repair.conv2d_1.shift")
    module = result.module()
    assert module.state_dict().keys() == result.weights.keys()
    with torch.no_grad():
        out = result.program.compile(["conv2d_shifted", "conv2d_1_shifted"])(result.weights, Batch((x,), {}))
    for value in ("conv2d", "conv2d_1"):
        y = out[f"{value}_shifted"]
        assert torch.allclose(y.mean((0, 2, 3)), to[value].mean, rtol=1e-5)
        assert torch.allclose(y.std((0, 2, 3), correction=0), to[value].std, rtol=1e-5)
    # It is a model like any other: it exports again, with the same function.
    again = export(module, x[:2])
    assert set(again.weights.values()) == set(result.weights)
    assert torch.equal(module(x), again.compile()(module.state_dict(), Batch((x,), {})))
    # And nothing of the given program changed.
    assert not any(key.startswith("repair.") for key in program.weights.values())
    assert not any(name.endswith("_shifted") for name in program.nodes)


def test_a_tied_weight_is_written_under_both_its_keys():
    class Alias(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.a(x).relu()  # b only shares its weight, it is not called

    x = torch.randn(9, 4)
    model = Alias()
    program = export(model, x[:2])
    weights = dict(model.state_dict())
    to = {"linear": Goal(torch.ones(4).double(), torch.ones(4).double())}
    result = rescale(program, weights, [x], goals=to)
    assert torch.equal(result.weights["a.weight"], result.weights["b.weight"])
    assert not torch.equal(result.weights["a.weight"], weights["a.weight"])
