"""Matching in the full group: what was planted is found, on networks with weights as training leaves them."""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus
from isthmus.align.orders.full_groups import best_signs, check_choices, match, procrustes
from isthmus.errors import InputError
from isthmus.symmetry import Element, SymmetryGraph
from isthmus.symmetry.residual import residual_streams

Weights = dict[str, Tensor]


def trained_like(model: nn.Module) -> nn.Module:
    """Rows of different lengths, norms away from one: nothing as it is initialised."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
        else:
            parameter.data.mul_(torch.exp(0.5 * torch.randn(parameter.shape[0], *[1] * (parameter.ndim - 1))))
    for key, value in model.named_buffers():
        if key.endswith(("mean", "var")):
            value.copy_(torch.rand_like(value) + 0.5)
    return model.eval()


def mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    layers = [nn.Linear(10, 24), activation(), nn.Linear(24, 16), activation(), nn.Linear(16, 5)]
    return nn.Sequential(*layers)


def conv() -> nn.Module:
    one = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    two = [nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*one, *two, nn.Flatten(), nn.Linear(24, 3))


class Block(nn.Module):
    """Pre-norm attention, rotary or not, with grouped keys, and a gated layer."""

    def __init__(self, dim: int, rotary: bool, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.norm1, self.norm2, self.rotary = norm(dim), norm(dim), rotary
        self.q, self.o = nn.Linear(dim, 16, bias=False), nn.Linear(16, dim, bias=False)
        self.k, self.v = nn.Linear(dim, 8, bias=False), nn.Linear(dim, 8, bias=False)
        self.gate, self.up, self.down = nn.Linear(dim, 24), nn.Linear(dim, 24), nn.Linear(24, dim)

    def turned(self, x: Tensor) -> Tensor:
        if not self.rotary:
            return x
        angle = torch.arange(x.shape[-2])[:, None] / torch.tensor([1.0, 10.0])
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (p(h).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = (p.repeat_interleave(2, 1) for p in (self.turned(k), v))
        mixed = F.scaled_dot_product_attention(self.turned(q), k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """Such blocks between an embedding and a head."""

    def __init__(self, rotary: bool, norm: Callable[[int], nn.Module] = nn.RMSNorm, depth: int = 1):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.blocks = nn.ModuleList(Block(16, rotary, norm) for _ in range(depth))
        self.norm, self.head = norm(16), nn.Linear(16, 30, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


NETS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "relu": (lambda: mlp(nn.ReLU), False),
    "tanh": (lambda: mlp(nn.Tanh), False),
    "linear": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)), False),
    "conv": (conv, False),
    "decoder": (lambda: Decoder(False), False),
    "decoder, folded": (lambda: Decoder(False), True),
    "rotary": (lambda: Decoder(True), False),
    "rotary, folded": (lambda: Decoder(True, depth=2), True),
    "layer norms, folded": (lambda: Decoder(False, nn.LayerNorm), True),
}


def example(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if "norm" in name or "decoder" in name or "rotary" in name:
        return torch.randint(0, 30, (4, 9), generator=generator)
    shape = {"conv": (4, 3, 6, 6), "linear": (4, 8)}.get(name, (4, 10))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@functools.cache
def build(name: str) -> tuple[nn.Module, SymmetryGraph, Weights, Tensor]:
    make, fold = NETS[name]
    torch.manual_seed(0)
    model = trained_like(make()).double()
    x = example(name)
    graph = isthmus.trace(model, x)
    state = graph.fold_norms(model) if fold else dict(model.state_dict())
    return model, graph.folded if fold else graph, state, x


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def run(name: str, weights: Weights) -> Tensor:
    model, _, _, x = build(name)
    with torch.no_grad():
        return torch.func.functional_call(model, weights, (x,))


@pytest.mark.parametrize("name", NETS)
def test_a_model_merged_with_its_own_moved_copy_is_the_model(name: str):
    _, graph, state, _ = build(name)
    kinds = {gauge.kind for gauge in graph.gauges.values()}
    assert {
        "relu": {"positive"},
        "tanh": {"sign"},
        "linear": {"invertible"},
        "conv": {"positive", "sign"},
        "decoder": {"positive", "sign", "invertible"},
        "decoder, folded": {"orthogonal", "positive", "sign", "invertible"},
        "rotary": {"positive", "sign", "invertible", "planes"},
        "rotary, folded": {"orthogonal", "positive", "sign", "invertible", "planes"},
        "layer norms, folded": {"centred", "positive", "sign", "invertible"},
    }[name] == kinds
    copy = graph.random_element(5).apply(graph, state)
    before = run(name, state)
    assert relative(run(name, copy), before) < 1e-9
    alignment = isthmus.align(graph, [state, copy], by={"method": "weight-matching", "groups": "full"})
    assert alignment.status == "converged"
    back = alignment.apply([state, copy])[1]
    for alpha in (0.1, 0.5, 0.9):
        merged = {
            key: (1 - alpha) * state[key] + alpha * back[key] if value.is_floating_point() else value
            for key, value in state.items()
        }
        assert relative(run(name, merged), before) < 1e-5
    if name != "linear":
        # Without the orders and values it is another matter: the test can fail.
        plain = {
            key: (state[key] + copy[key]) / 2 if v.is_floating_point() else v for key, v in state.items()
        }
        assert relative(run(name, plain), before) > 1e-2


@pytest.mark.parametrize("name", ["relu", "decoder", "rotary, folded"])
def test_orders_alone_do_not_find_it(name: str):
    _, graph, state, _ = build(name)
    copy = graph.random_element(5).apply(graph, state)
    alignment = isthmus.align(graph, [state, copy], by="weight-matching")
    back = alignment.apply([state, copy])[1]
    merged = {key: (state[key] + back[key]) / 2 if v.is_floating_point() else v for key, v in state.items()}
    assert relative(run(name, merged), run(name, state)) > 0.02


@pytest.mark.parametrize("name", ["relu", "tanh", "decoder, folded", "layer norms, folded"])
def test_activations_find_it_too(name: str):
    _, graph, state, x = build(name)
    torch.manual_seed(3)
    shape = (200, *x.shape[1:])
    data = [
        torch.randn(shape).double() if x.is_floating_point() else torch.randint(0, 30, shape) for _ in "ab"
    ]
    copy = graph.random_element(5).apply(graph, state)
    by = {"method": "activation-matching", "groups": "full"}
    back = isthmus.align(graph, [state, copy], by=by, data=data).apply([state, copy])[1]
    merged = {key: (state[key] + back[key]) / 2 if v.is_floating_point() else v for key, v in state.items()}
    assert relative(run(name, merged), run(name, state)) < 1e-4


@pytest.mark.parametrize("name", ["relu", "decoder"])
def test_an_aligned_stranger_computes_what_it_did(name: str):
    _, graph, state, _ = build(name)
    torch.manual_seed(9)
    stranger = {k: torch.randn_like(v) * v.std() if v.is_floating_point() else v for k, v in state.items()}
    by = {"method": "weight-matching", "groups": "full", "max_sweeps": 3}
    alignment = isthmus.align(graph, [state, stranger], by=by)
    back = alignment.apply([state, stranger])[1]
    assert relative(run(name, back), run(name, stranger)) < 1e-9
    for cost in alignment.costs:
        assert cost.after >= cost.before - 1e-9 or cost.after > 0


def test_the_same_seed_finds_the_same():
    _, graph, state, _ = build("relu")
    copy = {key: value + 0.3 * torch.randn_like(value) for key, value in state.items()}
    one, two = (match(graph, state, copy, seed=4)[0] for _ in range(2))
    assert all(torch.equal(one.values[name], two.values[name]) for name in one.values)
    assert all(torch.equal(one.orders[name], two.orders[name]) for name in one.orders)


def test_a_matching_may_start_from_an_element():
    _, graph, state, _ = build("tanh")
    element = graph.random_element(5)
    copy = element.apply(graph, state)
    found, matching = match(graph, state, copy, start=element.inverse(graph))
    assert matching.sweeps == 1
    for key, value in found.apply(graph, copy).items():
        torch.testing.assert_close(value, state[key])


def test_a_residual_stream_may_stay_as_it_is():
    _, graph, state, _ = build("rotary, folded")
    assert residual_streams(graph) == ("embed",)
    copy = graph.random_element(5).apply(graph, state)
    for groups in ("permutation", "full"):
        by = {"method": "weight-matching", "groups": groups, "residual": "identity"}
        transport = isthmus.align(graph, [state, copy], by=by).transports[1]
        moved = transport.apply(copy)
        assert torch.equal(moved["embed.weight"], copy["embed.weight"])
        assert not torch.equal(moved["blocks.0.gate.weight"], copy["blocks.0.gate.weight"])
        assert relative(run("rotary, folded", moved), run("rotary, folded", copy)) < 1e-9
    # Where only the rest was moved, only the rest is matched, and it is found.
    rest = graph.random_element(5)
    rest = rest.only({*graph.spaces, *graph.gauges} - {"embed", "embed:orthogonal"})
    copy = rest.apply(graph, state)
    by = {"method": "weight-matching", "groups": "full", "residual": "identity"}
    back = isthmus.align(graph, [state, copy], by=by).apply([state, copy])[1]
    assert max(relative(back[key], state[key]) for key in graph.layout) < 1e-5


@pytest.mark.parametrize(
    ("groups", "residual", "line"),
    [
        ("all", "match", "groups = 'all' is neither 'permutation' nor 'full'"),
        ("full", "none", "residual = 'none' is neither 'match' nor 'identity'"),
    ],
)
def test_choices_that_do_not_exist_are_refused(groups: str, residual: str, line: str):
    check_choices("full", "identity")
    with pytest.raises(InputError, match=line):
        check_choices(groups, residual)


def test_units_that_hold_spaces_are_matched_with_them_where_nothing_bends():
    # Both levels are linear: neither solution may be put on top of the other.
    class Woven(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(10, 6), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).unflatten(-1, (2, 3)).transpose(-1, -2).flatten(-2))

    torch.manual_seed(0)
    model = trained_like(Woven()).double()
    graph = isthmus.trace(model, torch.randn(2, 10).double())
    state = dict(model.state_dict())
    copy = graph.random_element(5).apply(graph, state)
    element, _ = match(graph, state, copy)
    x = torch.randn(4, 10).double()
    moved = element.apply(graph, copy)
    torch.testing.assert_close(torch.func.functional_call(model, moved, (x,)), model(x))


# The pieces.


def test_procrustes_is_the_best_rotation():
    torch.manual_seed(0)
    evidence = torch.randn(3, 5, 5, dtype=torch.float64)
    rotation, gain = procrustes(evidence)
    torch.testing.assert_close((rotation * evidence).sum((-2, -1)), gain)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(5, dtype=torch.float64).expand(3, 5, 5))
    for _ in range(50):
        other = torch.linalg.qr(torch.randn(3, 5, 5, dtype=torch.float64))[0]
        assert ((other * evidence).sum((-2, -1)) <= gain).all()
    planted = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    theirs = torch.randn(5, 40, dtype=torch.float64)
    torch.testing.assert_close(procrustes((planted @ theirs) @ theirs.T)[0], planted)


def test_procrustes_beside_ones():
    torch.manual_seed(0)
    evidence = torch.randn(2, 5, 5, dtype=torch.float64)
    rotation, gain = procrustes(evidence, centred=True)
    torch.testing.assert_close(rotation.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    torch.testing.assert_close((rotation * evidence).sum((-2, -1)), gain)
    assert (gain <= procrustes(evidence)[1]).all()


def test_signs_are_the_better_ones():
    torch.manual_seed(0)
    plain, first, second, both = torch.randn(4, 6, 6, dtype=torch.float64)
    signed = {("a",): first, ("b",): second, ("a", "b"): both}
    total, signs = best_signs(plain, signed)
    a, b = signs["a"], signs["b"]
    torch.testing.assert_close(plain + a * first + b * second + a * b * both, total)
    options = [plain + s * first + u * second + s * u * both for s in (-1.0, 1.0) for u in (-1.0, 1.0)]
    torch.testing.assert_close(total, torch.stack(options).amax(0))
    assert best_signs(plain, {}) == (plain, {})
    assert Element().values == {}
