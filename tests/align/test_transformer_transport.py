"""Fusion of transformers: every policy is exact where plans are the planted orders, and what they are named for."""

import functools
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus
from isthmus.align import align
from isthmus.align.methods.transformer_transport import _met
from isthmus.errors import InputError
from isthmus.maps import Dense, Permutation, Transport
from isthmus.symmetry.elements import random_orders
from isthmus.testing.subjects import drawn
from isthmus.zoo import ResNet, ViT

Weights = dict[str, Tensor]
RESIDUALS = ("shared", "branch", "stream", "mean", "weighted-scalar", "weighted-matrix")


class Bert(nn.Module):
    """Embeddings of words and places, and one block with its norms behind the additions."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(11, 8), nn.Embedding(5, 8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 9), nn.Linear(9, 8)
        self.after, self.last, self.head = nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.words(x) + self.places(torch.arange(5)))
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.after(x + self.o(mixed))
        return self.head(self.last(x + self.down(F.gelu(self.up(x))))[:, 0])


@functools.cache
def build(name: str):
    generator = torch.Generator().manual_seed(0)
    if name == "bert":
        model = Bert().double().eval()
        data = torch.randint(0, 11, (60, 5), generator=generator)
    else:
        model = ViT(image=6, patch=2, dim=8, depth=2, heads=2, mlp_ratio=1, in_channels=1, num_classes=3)
        model = model.double().eval()
        data = torch.randn(30, 1, 6, 6, generator=generator, dtype=torch.float64)
    graph = isthmus.trace(model, data[:2])
    first = drawn(model, generator)
    orders = random_orders(graph, torch.Generator().manual_seed(1))
    other = Transport(graph, {n: Permutation(o) for n, o in orders.items()}).apply(first)
    return model, graph, data, (first, other, drawn(model, generator))


def run(name: str, weights: Weights) -> Tensor:
    model, _, data, _ = build(name)
    with torch.no_grad():
        return torch.func.functional_call(model, weights, (data,))


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_transformer_meets_its_reordered_copy_exactly_by_every_policy(name: str, residual: str):
    _, graph, data, (first, other, _) = build(name)
    heads = "per-head" if residual != "mean" else "equal"
    found = align(
        graph,
        [first, other],
        "transformer-transport",
        data=[data],
        solver="exact",
        residual=residual,
        heads=heads,
    )
    for weights in ((0.9, 0.1), (0.1, 0.9)):
        merged = isthmus.combine(found.apply([first, other], weights), weights=weights)
        torch.testing.assert_close(run(name, merged), run(name, first), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_soft_plans_of_strangers_are_finite_and_the_reference_is_itself(name: str):
    _, graph, data, models = build(name)
    strangers = [models[0], models[2]]
    for residual in (*RESIDUALS, "identity"):
        found = align(
            graph, strangers, "transformer-transport", data=[data], residual=residual, heads="separate"
        )
        moved = found.apply(strangers)
        assert all(bool(t.isfinite().all()) for t in moved[1].values())
        torch.testing.assert_close(run(name, moved[0]), run(name, strangers[0]))
        assert run(name, isthmus.combine(moved)).isfinite().all()
    assert residual == "identity" and not any(n in found.transports[1].maps for n in ("words", "embed"))


def test_queries_and_keys_share_a_plan_only_where_they_are_equal():
    _, graph, data, models = build("bert")
    for heads, shared in (("equal", True), ("separate", False)):
        found = align(graph, [models[0], models[2]], "transformer-transport", data=[data], heads=heads)
        q, k = (found.transports[1].maps[f"@{n}.weight:0"] for n in "qk")
        assert isinstance(q, Dense) and isinstance(k, Dense)
        assert torch.equal(q.forward, k.forward) == shared


def test_what_arrives_at_an_addition_is_weighed_as_its_name_says():
    branch, stream = torch.eye(2).double() / 2, torch.ones(2, 2).double() / 4
    ours, theirs = torch.tensor([9.0, 0.0]).double(), torch.tensor([1.0, 1.0]).double()
    assert torch.equal(_met(branch, stream, ours, theirs, "branch"), branch)
    assert torch.equal(_met(branch, stream, ours, theirs, "stream"), stream)
    assert torch.equal(_met(branch, stream, ours, theirs, "mean"), (branch + stream) / 2)
    matrix = _met(branch, stream, ours, theirs, "weighted-matrix")
    torch.testing.assert_close(matrix[:, 0], 0.75 * branch[:, 0] + 0.25 * stream[:, 0])
    torch.testing.assert_close(matrix[:, 1], stream[:, 1])
    scalar = _met(branch, stream, ours, theirs, "weighted-scalar")
    torch.testing.assert_close(scalar, 0.6 * branch + 0.4 * stream)


def test_what_is_added_is_as_large_as_it_is_there_behind_norms_too(monkeypatch: pytest.MonkeyPatch):
    model, graph, data, models = build("bert")
    met: list[tuple[Tensor, Tensor]] = []

    def noted(branch: Tensor, stream: Tensor, ours: Tensor, theirs: Tensor, residual: str) -> Tensor:
        met.append((ours, theirs))
        return _met(branch, stream, ours, theirs, residual)

    monkeypatch.setattr(sys.modules[_met.__module__], "_met", noted)
    align(graph, [models[0], models[2]], "transformer-transport", data=[data], residual="weighted-matrix")
    seen: dict[str, Tensor] = {}
    hooks = [
        getattr(model, name).register_forward_hook(lambda _, __, made, name=name: seen.update({name: made}))
        for name in ("norm", "o", "after", "down")
    ]
    run("bert", models[0])
    for hook in hooks:
        hook.remove()
    size = {name: made.square().mean((0, 1)) for name, made in seen.items()}
    for found, wanted in zip(met, (("o", "norm"), ("down", "after")), strict=True):
        for own, name in zip(found, wanted, strict=True):
            torch.testing.assert_close(own, size[name])


def test_policies_for_streams_are_not_for_batch_norms():
    model = ResNet(8, base=4, norm="bn", in_channels=1, num_classes=3).double().eval()
    data = torch.randn(8, 1, 8, 8).double()
    graph = isthmus.trace(model, data)
    with pytest.raises(InputError, match="a stream that batch norms write is carried by one plan"):
        align(graph, [model, model], "transformer-transport", data=[data], residual="mean")
