"""What a model is free to do beyond the order of its units, as people see it: names, powers, groups."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus
from isthmus.symmetry import INTERTWINERS, Gauge

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))


def mlp(*activations: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(4, 5)]
    for activation in activations:
        layers += [activation, nn.Linear(5, 5)]
    return nn.Sequential(*layers[:-1], nn.Linear(5, 3)).eval()


#: A module, and the group of what it stands behind.
TABLE: list[tuple[nn.Module, str]] = [
    (nn.Identity(), "invertible"),
    (nn.ReLU(), "permutation x positive"),
    (nn.LeakyReLU(0.1), "permutation x positive"),
    (nn.PReLU(), "permutation x positive"),
    (nn.Tanh(), "signed permutation"),
    (nn.Softsign(), "signed permutation"),
    (nn.Hardtanh(), "signed permutation"),
    (nn.GELU(), "permutation"),
    (nn.SiLU(), "permutation"),
    (nn.Sigmoid(), "permutation"),
    (nn.Softplus(), "permutation"),
    (nn.ReLU6(), "permutation"),
    (nn.Softmax(-1), "permutation"),
    (nn.Dropout(0.5), "invertible"),
    (nn.RMSNorm(5, elementwise_affine=False), "orthogonal"),
    (nn.LayerNorm(5, elementwise_affine=False), "orthogonal fixing ones"),
    (nn.BatchNorm1d(5), "signed permutation x positive"),
]


@pytest.mark.parametrize(("module", "group"), TABLE, ids=[str(module) for module, _ in TABLE])
def test_the_group_of_each_activation(module: nn.Module, group: str):
    model = mlp(module)
    graph = isthmus.trace(model, X)
    assert graph.groups == {"0": group}
    assert graph.verify(model, X).ok
    assert f"  0       5  {group}\n" in str(graph)


def test_the_table_and_the_graph_agree():
    for name in ("relu", "tanh", "gelu", "sigmoid", "silu", "abs", "square", "sin", "cos", "erf", "exp"):
        f = getattr(torch, name, None) or getattr(F, name)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

            def forward(self, x: Tensor, f=f) -> Tensor:
                return self.b(f(self.a(x)))

        assert isthmus.trace(Net().eval(), X).groups["a"] == INTERTWINERS[name].group


def test_a_gauge_says_who_takes_it_and_how():
    graph = isthmus.trace(mlp(nn.ReLU()), X)
    gauge = graph.gauges["0:positive"]
    assert isinstance(gauge, isthmus.Gauge) and gauge is graph.gauges["0:positive"], "found once"
    assert (gauge.space, gauge.kind, gauge.size, gauge.within) == ("0", "positive", 5, ())
    assert {(s.key, s.axis): s.power for s in gauge.slots} == {
        ("0.weight", 0): 1,
        ("0.bias", 0): 1,
        ("2.weight", 1): -1,
    }


def test_a_linear_network_has_a_basis_at_every_layer():
    graph = isthmus.trace(mlp(nn.Identity(), nn.Identity()), X)
    assert set(graph.groups.values()) == {"invertible"} and len(graph.gauges) == 2


def test_a_reader_that_is_registered_first_takes_the_scale_itself():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.b, self.a = nn.Linear(5, 3), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    model = Backwards().eval()
    graph = isthmus.trace(model, X)
    (gauge,) = graph.gauges.values()
    powers = {s.key: s.power for s in gauge.slots}
    assert powers["a.weight"] == -powers["b.weight"] and graph.verify(model, X).ok


class Attention(nn.Module):
    """Self-attention written out: queries, keys and values apart."""

    def __init__(self, rotary: bool = False, width: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(6, 2 * width) for _ in range(3))
        self.o, self.head = nn.Linear(2 * width, 6), nn.Linear(6, 3)
        self.rotary, self.width = rotary, width

    def turned(self, x: Tensor) -> Tensor:
        half = self.width // 2
        angle = torch.arange(x.shape[-2])[:, None] / 10 ** torch.arange(half)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (2, self.width)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        if self.rotary:
            q, k = self.turned(q), self.turned(k)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.head(F.gelu(self.o(mixed.transpose(1, 2).flatten(2))))


def test_heads_of_attention_have_a_basis_each():
    model, x = Attention().eval(), torch.randn(2, 3, 6)
    graph = isthmus.trace(model, x)
    found = {gauge.space: gauge for gauge in graph.gauges.values() if gauge.kind == "invertible"}
    heads = next(name for name, space in graph.spaces.items() if space.size == 2)
    assert len(found) == 2 and all(gauge.within == (heads,) for gauge in found.values())
    kinds = [{slot.key.partition(".")[0] for slot in gauge.slots} for gauge in found.values()]
    assert {"q", "k"} in kinds and {"v", "o"} in kinds, "queries with keys, values with what reads them"
    queries = next(g for g in found.values() if any(s.key == "q.weight" for s in g.slots))
    powers = {slot.key: slot.power for slot in queries.slots}
    assert powers["q.weight"] == powers["q.bias"] == -powers["k.weight"] == -powers["k.bias"]
    assert graph.verify(model, x).ok


def test_what_a_norm_holds_back_is_an_opening():
    model = mlp(nn.RMSNorm(5))
    graph = isthmus.trace(model, X)
    opening = graph.openings["0"]
    assert (opening.kind, list(opening.scales)) == ("orthogonal", ["1.weight"])
    assert graph.groups["0"] == "signed permutation x positive"
    assert graph.folded.groups["0"] == "orthogonal"
    centred = isthmus.trace(mlp(nn.LayerNorm(5)), X).openings["0"]
    assert (centred.kind, list(centred.scales)) == ("centred", ["1.weight"])


def test_a_graph_on_meta_has_the_same_freedoms_but_planes():
    from isthmus import zoo

    with torch.device("meta"):
        model = zoo.vit(8, 4, 6, 1, 2, 2).eval()
        x = torch.empty(2, 3, 8, 8)
    real = zoo.vit(8, 4, 6, 1, 2, 2).eval()
    graph, here = isthmus.trace(model, x), isthmus.trace(real, torch.randn(2, 3, 8, 8))
    assert graph.groups == here.groups and list(graph.gauges) == list(here.gauges)
    assert all(isinstance(gauge, Gauge) for gauge in graph.gauges.values())
