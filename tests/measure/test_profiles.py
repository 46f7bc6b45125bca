import functools
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isthmus.errors import InputError, MismatchError
from isthmus.measure import Vanishing, vanishing, variance_ratio
from isthmus.paths import Segment
from isthmus.program import Cut, Program, export, keep_apart

Weights = dict[str, Tensor]


class Chain(nn.Module):
    """Linear layers, with an activation between them."""

    def __init__(self, widths: Sequence[int] = (6, 8, 8, 5), act: str = "relu"):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.act = getattr(torch, act) if act != "none" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](x)


class Convs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))


def weights_of(model: type[nn.Module], seed: int, *args: object) -> Weights:
    torch.manual_seed(seed)
    return model(*args).double().state_dict()


def inputs(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@functools.cache
def chain(act: str = "relu") -> tuple[Program, list[Weights]]:
    program = export(Chain(act=act).double(), inputs(2, 6))
    return program, [weights_of(Chain, seed, (6, 8, 8, 5), act) for seed in range(2)]


@functools.cache
def convs() -> tuple[Program, list[Weights]]:
    return export(Convs().double(), inputs(2, 2, 5, 5)), [weights_of(Convs, seed) for seed in range(2)]


def scaled(weights: Weights, weight: float, bias: float) -> Weights:
    return {key: value * (weight if key.endswith("weight") else bias) for key, value in weights.items()}


def test_a_model_beside_itself_has_lost_nothing() -> None:
    program, (a, _) = convs()
    x = inputs(12, 2, 5, 5)
    found = vanishing(program, a, [a, a], [x], split="validation")
    assert found.layers == ("one", "two", "head")
    assert found.strength == pytest.approx((1, 1, 1), rel=1e-12)
    assert found.bound() == pytest.approx((1, 1, 1), rel=1e-12)
    assert [f.name for f in found.findings] == [
        "vanishing features",
        "vanishing bound",
        "smoothed vanishing bound",
        "bias dominance",
    ]
    assert all(list(f.layers) == ["one", "two", "head"] for f in found.findings)
    assert all("validation: 12 examples, 2 parents" in f.note for f in found.findings)
    (ratio,) = variance_ratio(program, a, [a, a], [x], split="validation").findings
    assert list(ratio.layers.values()) == pytest.approx([1, 1, 1], rel=1e-9)
    assert "validation: 12 examples" in ratio.note


def test_norms_are_those_of_the_definition() -> None:
    program, (a, b) = convs()
    x = inputs(7, 2, 5, 5)
    found = vanishing(program, a, [b], [x])
    model = Convs().double()
    for weights, norms, offsets in (
        (a, found.merged, found.merged_offset),
        (b, found.parents[0], found.parent_offsets[0]),
    ):
        model.load_state_dict(weights)
        with torch.no_grad():
            values = [model.one(x)]
            values.append(model.two(values[0].relu()))
            values.append(model.head(values[1].relu().mean((2, 3))))
            nothing = [model.one(torch.zeros_like(x[:1]))]
            nothing.append(model.two(nothing[0].relu()))
            nothing.append(model.head(nothing[1].relu().mean((2, 3))))
        for value, zero, norm, offset in zip(values, nothing, norms, offsets, strict=True):
            rms = (value - zero).flatten(1).square().mean(1).sqrt().mean().item()
            assert norm == pytest.approx(rms, rel=1e-9)
            assert offset == pytest.approx(zero.square().mean().sqrt().item(), rel=1e-9)


@settings(max_examples=8, deadline=None)
@given(lam=st.floats(0.1, 3), mu=st.floats(-3, 3))
def test_scaling_a_linear_net_scales_its_features_as_the_theory_says(lam: float, mu: float) -> None:
    # g^l = W_l ... W_1 x: all W by lam is lam^l, and the biases do not enter.
    program, (a, _) = chain("none")
    found = vanishing(program, scaled(a, lam, mu), [a], [inputs(5, 6)])
    assert found.strength == pytest.approx([lam**layer for layer in (1, 2, 3)], rel=1e-9)


@settings(max_examples=8, deadline=None)
@given(lam=st.floats(0.1, 3), mu=st.floats(0.1, 3), layer=st.sampled_from([0, 1, 2]))
def test_the_bias_term_of_one_layer_scales_by_what_lies_behind_it(lam: float, mu: float, layer: int) -> None:
    # h^l = (prod_{k>j} W_k) b_j for the bias of layer j alone: lam^{l-j} mu.
    program, (a, _) = chain("none")
    a = {k: v if k.endswith("weight") or k == f"layers.{layer}.bias" else 0 * v for k, v in a.items()}
    found = vanishing(program, scaled(a, lam, mu), [a], [inputs(3, 6)])
    for index, (merged, parent) in enumerate(zip(found.merged_offset, found.parent_offsets[0], strict=True)):
        assert merged == pytest.approx(
            lam ** (index - layer) * mu * parent if index >= layer else 0, rel=1e-9
        )


def test_a_relu_net_whose_biases_keep_pace_scales_alike() -> None:
    program, (a, _) = chain()
    lam = 0.4
    merged = {
        k: v * (lam if k.endswith("weight") else lam ** (int(k.split(".")[1]) + 1)) for k, v in a.items()
    }
    found = vanishing(program, merged, [a], [inputs(5, 6)])
    assert found.strength == pytest.approx([lam, lam**2, lam**3], rel=1e-9)


def test_the_midpoint_of_two_gaussian_matrices_is_shorter_by_the_root_of_two() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = ({"w": torch.randn(400, 400, generator=random, dtype=torch.float64)} for _ in range(2))
    middle = Segment(a, b).at(0.5)["w"].norm()
    assert middle / a["w"].norm() == pytest.approx(2**-0.5, rel=0.01)


def test_features_of_a_merged_deep_linear_net_vanish_layer_by_layer() -> None:
    # Each layer's midpoint keeps 1/sqrt(2) of its own, so layer l keeps 2^(-l/2).
    width, depth = 300, 4
    program = export(Chain([width] * (depth + 1), "none").double(), inputs(2, width))
    random = torch.Generator().manual_seed(1)

    def draw() -> Weights:
        shapes = program.shapes
        return {
            k: torch.randn(s, generator=random, dtype=torch.float64) * width**-0.5 for k, s in shapes.items()
        }

    a, b = draw(), draw()
    x = inputs(50, width)
    found = vanishing(program, Segment(a, b).at(0.5), [a, b], [x])
    assert found.strength == pytest.approx([2 ** (-layer / 2) for layer in range(1, depth + 1)], rel=0.05)
    assert found.bound() == pytest.approx([found.strength[0], *found.strength[1:]])
    ratio = variance_ratio(program, Segment(a, b).at(0.5), [a, b], [x]).ratio
    assert ratio == pytest.approx(found.strength, rel=0.05)
    collapsed = variance_ratio(program, Segment(a, b).at(0.5), [a, b], [x])
    assert collapsed.bound() == pytest.approx(collapsed.ratio)


def test_biases_dominate_where_their_offset_is_larger_than_what_the_input_makes() -> None:
    found = Vanishing(
        ("a", "b"), (2.0, 1.0), ((4.0, 4.0), (1.0, 2.0)), (1.0, 3.0), ((2.0, 2.0), (0.0, 2.0)), 1
    )
    assert found.dominance == (0.5, 3.0)
    assert found.parent_dominance == (0.25, 0.75)
    assert found.findings[-1].value == 3.0 and "parents 0.75" in found.findings[-1].note


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.one(x)).relu())


def test_features_are_also_seen_behind_norms() -> None:
    x = inputs(20, 6)
    program = export(Normed().double().eval(), x)
    a = weights_of(Normed, 0)
    # The norm's own deviation shrinks as its input does: behind it nothing has vanished.
    half = a | {"one.weight": a["one.weight"] / 2, "one.bias": a["one.bias"] / 2}
    half["norm.running_var"] = a["norm.running_var"] / 4 - 0.75 * 1e-5
    before, behind, both = (vanishing(program, half, [a], [x], at=at) for at in ("layers", "norms", "both"))
    assert before.layers == ("one", "head") and before.strength[0] == pytest.approx(0.5)
    assert behind.layers == ("norm",) and behind.strength == pytest.approx((1.0,))
    assert both.layers == ("one", "norm", "head") and both.strength == pytest.approx((0.5, 1.0, 1.0))


def test_norms_of_a_model_without_are_refused() -> None:
    program, (a, b) = chain()
    with pytest.raises(InputError, match="no norm"):
        vanishing(program, a, [b], [inputs(3, 6)], at="norms")


def profile(*strength: float) -> Vanishing:
    layers = tuple(f"l{i}" for i in range(len(strength)))
    zeros = (0.0,) * len(strength)
    return Vanishing(layers, strength, ((1.0,) * len(strength),), zeros, (zeros,), 1)


def test_the_bounds_are_those_of_the_paper() -> None:
    found = profile(0.5, 0.9, 0.2, 0.4)
    assert found.bound() == (0.9, 0.9, 0.4, 0.4)
    gamma, want = 1.4, [0.4]
    for l, strength in ((3, 0.2), (2, 0.9), (1, 0.5)):  # L = 4
        after = want[0]
        want.insert(0, max(gamma * after + (1 - gamma) * (1 - 1 / (4 + 1 - l)) * after, strength))
    assert found.bound(gamma) == pytest.approx(want)
    assert found.bound(1.0) == found.bound()


@given(strength=st.lists(st.floats(0, 10), min_size=1, max_size=8))
def test_bounds_bound(strength: list[float]) -> None:
    found = profile(*strength)
    plain, smooth = found.bound(), found.bound(1.4)
    assert all(s <= p <= q for s, p, q in zip(strength, plain, smooth, strict=True))
    assert list(plain) == sorted(plain, reverse=True)


def test_layers_that_see_nothing_in_the_parents_have_not_vanished() -> None:
    found = Vanishing(("a", "b"), (0.0, 1.0), ((0.0, 0.0),), (0.0, 0.0), ((0.0, 0.0),), 1)
    assert found.strength == (1.0, float("inf"))


@settings(max_examples=6, deadline=None)
@given(size=st.integers(1, 13))
def test_batching_does_not_matter(size: int) -> None:
    program, (a, b) = convs()
    merged, x = Segment(a, b).at(0.5), inputs(13, 2, 5, 5)
    whole, parts = (vanishing(program, merged, [a, b], data) for data in ([x], list(x.split(size))))
    assert parts.merged == pytest.approx(whole.merged, rel=1e-12)
    assert parts.parents[1] == pytest.approx(whole.parents[1], rel=1e-12)
    assert parts.examples == whole.examples == 13
    ratios = [variance_ratio(program, merged, [a, b], data).ratio for data in ([x], list(x.split(size)))]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-9)


def test_windows_folded_into_the_batch_belong_to_their_example() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 3)
            self.outer = nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            folded = self.inner(x.view(-1, 2)).relu()  # (n * 3, 3)
            # Sequence first, as recurrent code has it.
            return self.outer(folded.view(x.shape[0], 1, 9).transpose(0, 1))[0]

    program = export(Windows().double(), inputs(2, 6))
    a, b = (weights_of(Windows, seed) for seed in range(2))
    x = inputs(5, 6)
    one, many = (vanishing(program, a, [b], data) for data in ([x], list(x.split(1))))
    assert one.layers == ("inner", "outer")
    assert one.merged == pytest.approx(many.merged, rel=1e-12)


def test_variance_ratio_is_that_of_the_definition() -> None:
    program, (a, b) = convs()
    merged, x = Segment(a, b).at(0.3), inputs(9, 2, 5, 5)
    ratio = variance_ratio(program, merged, [a, b], list(x.split(4)), shares=(0.7, 0.3)).ratio
    model = Convs().double()
    stds: list[Tensor] = []
    for weights in (merged, a, b):
        model.load_state_dict(weights)
        with torch.no_grad():
            stds.append(model.two(model.one(x).relu()).std((0, 2, 3), correction=0))
    want = (stds[0] / (0.7 * stds[1] + 0.3 * stds[2])).mean().item()
    assert ratio[1] == pytest.approx(want, rel=1e-9)


def test_dead_channels_are_counted_and_left_out() -> None:
    program, (a, _) = chain()
    a = dict(a)
    a["layers.0.weight"] = a["layers.0.weight"].clone()
    a["layers.0.weight"][:3] = 0
    found = variance_ratio(program, a, [a, a], [inputs(5, 6)])
    assert found.dead == (3, 0, 0)
    assert found.ratio == pytest.approx((1, 1, 1))
    assert "3 dead channels left out" in found.findings[0].note


@pytest.mark.parametrize("variant", ["junction", "paper"])
def test_only_what_is_merged_is_measured(variant: str) -> None:
    program, (a, b) = convs()
    kept, _ = keep_apart(program, Cut(preserve_first=1, variant=variant), (0.5, 0.5))
    merged = dict(Segment(a, b).at(0.5))
    merged |= {f"branch{i}.{key}": value for i, parent in enumerate((a, b)) for key, value in parent.items()}
    x = inputs(6, 2, 5, 5)
    found = vanishing(program, merged, [a, b], [x], merged_program=kept)
    ratio = variance_ratio(program, merged, [a, b], [x], merged_program=kept)
    assert found.layers == ratio.layers == ("two", "head")
    assert found.left_out == ratio.left_out == 1
    assert all("1 layers left out" in finding.note for finding in (*found.findings, *ratio.findings))


def test_where_all_is_kept_apart_there_is_nothing_to_measure() -> None:
    program, (a, b) = convs()
    kept, _ = keep_apart(program, Cut(preserve_first=3), (0.5, 0.5))
    merged = {f"branch{i}.{key}": value for i, parent in enumerate((a, b)) for key, value in parent.items()}
    for found in (
        vanishing(program, merged, [a, b], [inputs(6, 2, 5, 5)], merged_program=kept),
        variance_ratio(program, merged, [a, b], [inputs(6, 2, 5, 5)], merged_program=kept),
    ):
        assert (found.findings, found.left_out) == ((), 3)


def test_a_module_that_is_used_twice_has_two_layers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x).relu())

    program = export(Twice().double(), inputs(2, 4))
    a = weights_of(Twice, 0)
    assert vanishing(program, a, [a], [inputs(3, 4)]).layers == ("inner:linear", "inner:linear_1")


def test_token_ids_need_an_origin_of_the_callers() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.embed(ids))

    ids = torch.arange(6).view(2, 3)
    program = export(Tokens().double(), ids)
    a = weights_of(Tokens, 0)
    with pytest.raises(InputError, match=r"torch.int64.*\n.*\n.*origin="):
        vanishing(program, a, [a], [ids])
    found = vanishing(program, a, [a], [ids], origin=torch.zeros(1, 3, dtype=torch.long))
    assert found.strength == (1.0,)


def test_what_does_not_fit_is_refused() -> None:
    program, (a, b) = chain()
    x = inputs(3, 6)
    with pytest.raises(InputError, match="no parent"):
        vanishing(program, a, [], [x])
    with pytest.raises(InputError, match="no model"):
        variance_ratio(program, a, [], [x])
    with pytest.raises(InputError, match="for 2 models"):
        variance_ratio(program, a, [a, b], [x], shares=(1.0,))
    with pytest.raises(MismatchError, match=r"layers\.1\.bias"):
        vanishing(program, {k: v for k, v in a.items() if k != "layers.1.bias"}, [b], [x])
