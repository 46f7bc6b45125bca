"""Rotary heads: a complex number per plane, found by trying."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus
from isthmus.symmetry.gauges import turn

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))


class Rotary(nn.Module):
    """Attention with rotary positions, in the conventions that are met."""

    def __init__(
        self, pairing: str, part: int = 8, grouped: bool = False, fused: bool = False, bias: bool = True
    ):
        super().__init__()
        torch.manual_seed(0)
        self.pairing, self.part, self.fused = pairing, part, fused
        self.heads, self.keys = 4, 2 if grouped else 4
        if fused:
            self.qkv = nn.Linear(6, 3 * 4 * 8, bias=bias)
        else:
            self.q = nn.Linear(6, 4 * 8, bias=bias)
            self.k, self.v = (nn.Linear(6, self.keys * 8, bias=bias) for _ in range(2))
        self.o = nn.Linear(32, 3)

    def turned(self, x: Tensor) -> Tensor:
        rest, x = x[..., self.part :], x[..., : self.part]
        angle = torch.arange(x.shape[-2])[:, None] / 10 ** torch.arange(self.part // 2)
        cos, sin = angle.cos().to(x), angle.sin().to(x)
        a, b = x.chunk(2, -1) if self.pairing == "halves" else (x[..., 0::2], x[..., 1::2])
        a, b = a * cos - b * sin, b * cos + a * sin
        made = torch.cat([a, b], -1) if self.pairing == "halves" else torch.stack([a, b], -1).flatten(-2)
        return torch.cat([made, rest], -1) if rest.shape[-1] else made

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        if self.fused:
            q, k, v = self.qkv(x).view(n, tokens, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (p(x).unflatten(-1, (-1, 8)).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = self.turned(q), self.turned(k)
        k, v = (p.repeat_interleave(self.heads // self.keys, 1) for p in (k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("pairing", ["halves", "neighbours"])
@pytest.mark.parametrize("part", [8, 4])
@pytest.mark.parametrize("how", ["plain", "grouped", "fused", "no bias"])
def test_planes_are_found_in_every_convention(pairing: str, part: int, how: str):
    model = Rotary(
        pairing, part, grouped=how == "grouped", fused=how == "fused", bias=how != "no bias"
    ).eval()
    graph = isthmus.trace(model, X)
    (gauge,) = (g for g in graph.gauges.values() if g.kind == "planes")
    assert (gauge.pairing, gauge.turned) == (pairing, part)
    assert len(gauge.within) == 1 and graph.spaces[gauge.within[0]].size == (2 if how == "grouped" else 4)
    assert graph.verify(model, X).ok
    before = {key: value.double() for key, value in model.state_dict().items()}
    element = graph.random_element(2)
    assert element.values[gauge.name].is_complex()
    after = element.only([gauge.name]).apply(graph, before)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {slot.key for slot in gauge.slots}
    double = model.double()
    torch.testing.assert_close(torch.func.functional_call(double, after, (X.double(),)), double(X.double()))
    back = element.inverse(graph).apply(graph, element.apply(graph, before))
    assert all(torch.allclose(back[key], before[key], atol=1e-12) for key in before)


def test_without_rotary_positions_there_are_no_planes():
    class Plain(Rotary):
        def turned(self, x: Tensor) -> Tensor:
            return x

    graph = isthmus.trace(Plain("halves").eval(), X)
    assert not [g for g in graph.gauges.values() if g.kind == "planes"]
    assert "invertible" in graph.groups.values()


def test_a_table_per_unit_that_is_no_rotation_has_no_planes():
    class Decay(Rotary):
        def turned(self, x: Tensor) -> Tensor:
            units = torch.arange(x.shape[-1])
            return x * (1.7 * torch.arange(x.shape[-2])[:, None] + 0.9 * units).sin().to(x)

    model = Decay("halves").eval()
    graph = isthmus.trace(model, X)
    assert not [g for g in graph.gauges.values() if g.kind == "planes"]
    assert graph.verify(model, X).ok


def test_turning_is_multiplication_of_complex_numbers():
    _, graph = None, isthmus.trace(Rotary("neighbours", 4).eval(), X)
    (gauge,) = (g for g in graph.gauges.values() if g.kind == "planes")
    view = torch.randn(4, 7, 8, dtype=torch.float64)
    z = torch.polar(torch.rand(4, 2).double() + 0.5, torch.rand(4, 2).double())
    expected = torch.view_as_complex(view[..., :4].unflatten(-1, (2, 2)).contiguous()) * z[:, None]
    rest = view[..., 4:].clone()
    turn(view, gauge, z)
    torch.testing.assert_close(
        torch.view_as_complex(view[..., :4].unflatten(-1, (2, 2)).contiguous()), expected
    )
    assert torch.equal(view[..., 4:], rest)
