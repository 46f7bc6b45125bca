"""The exact split of linear networks, against the formulas written out."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from isthmus import zoo
from isthmus.errors import InputError
from isthmus.measure import linear_split
from isthmus.paths import Segment
from isthmus.program import export


def rms(value: Tensor) -> float:
    return float(value.square().mean().sqrt())


def network(residual: bool, depth: int = 4) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(depth + residual)
    net = zoo.linear_network(depth=depth, width=5, residual=residual, d_in=3, num_classes=2).double()
    return net, {k: v.detach() for k, v in net.state_dict().items()}


def symmetric(matrices: list[Tensor], k: int) -> Tensor:
    """e_k of matrices, later ones on the left."""
    size = matrices[0].shape[0] if matrices else 5
    total = torch.zeros(size, size, dtype=torch.float64)
    for chosen in combinations(matrices, k):
        product = torch.eye(size, dtype=torch.float64)
        for matrix in chosen:
            product = matrix @ product
        total = total + product
    return total


def test_a_chain_is_products_of_matrices_and_a_term_per_bias():
    net, w = network(residual=False)
    x = torch.randn(6, 3, dtype=torch.float64)
    found = linear_split(export(net, x), w, list(x.split(4)))
    assert found.layers == tuple(f"layers.{i}" for i in range(4)) and found.examples == 6
    g, terms = x.T, {}
    for layer in range(4):
        matrix = w[f"layers.{layer}.weight"]
        g = matrix @ g
        terms = {key: matrix @ term for key, term in terms.items()}
        terms[f"layers.{layer}.bias"] = w[f"layers.{layer}.bias"]
        assert found.features[layer] == pytest.approx(float(g.square().mean(0).sqrt().mean()), rel=1e-9)
        assert found.offset[layer] == pytest.approx(rms(sum(terms.values())), rel=1e-9)
        for key, term in terms.items():
            assert found.biases[key][layer] == pytest.approx(rms(term), rel=1e-9)
    assert found.biases["layers.3.bias"][:3] == (0, 0, 0)


def test_residual_layers_are_elementary_symmetric_polynomials():
    # Equation 5.2, of the three layers between the first and the last.
    net, w = network(residual=True, depth=5)
    x = torch.randn(6, 3, dtype=torch.float64)
    found = linear_split(export(net, x), w, [x])
    inner = [w[f"layers.{i}.weight"] for i in (1, 2, 3)]
    g = sum(symmetric(inner, k) for k in range(4)) @ w["layers.0.weight"] @ x.T
    assert found.features[3] == pytest.approx(float(g.square().mean(0).sqrt().mean()), rel=1e-9)
    h = sum(symmetric(inner[1:], k) for k in range(3)) @ w["layers.1.bias"]
    assert found.biases["layers.1.bias"][3] == pytest.approx(rms(h), rel=1e-9)
    last = w["layers.4.weight"] @ h
    assert found.biases["layers.1.bias"][4] == pytest.approx(rms(last), rel=1e-9)


def test_scaling_weights_and_biases_scales_terms_as_the_paper_says():
    net, w = network(residual=False)
    x = torch.randn(3, 3, dtype=torch.float64)
    lam, mu = 0.5, 3.0
    scaled = {k: v * (lam if k.endswith("weight") else mu) for k, v in w.items()}
    before, after = (linear_split(export(net, x), v, [x]) for v in (w, scaled))
    assert after.features == pytest.approx([lam ** (l + 1) * v for l, v in enumerate(before.features)])
    for j in range(4):
        old, new = (f.biases[f"layers.{j}.bias"] for f in (before, after))
        assert new == pytest.approx([lam ** max(l - j, 0) * mu * v for l, v in enumerate(old)])


def test_features_of_a_merge_fade_while_the_offset_does_not():
    (net, a), (_, b) = network(False, 8), network(False, 8)
    torch.manual_seed(9)
    b = {k: torch.randn_like(v) * a[k].std() for k, v in b.items()}
    x = torch.randn(20, 3, dtype=torch.float64)
    program = export(net, x)
    parents = [linear_split(program, m, [x]) for m in (a, b)]
    merged = linear_split(program, Segment(a, b).at(0.5), [x])
    lost = merged.features[-1] / sum(p.features[-1] for p in parents) * 2
    kept = merged.offset[-1] / sum(p.offset[-1] for p in parents) * 2
    assert lost < kept and lost < 0.2


def test_convolutions_are_split_too_and_findings_hold_every_layer():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    x = torch.randn(4, 2, 4, 4)
    found = linear_split(export(net, x), net.state_dict(), [x], split="validation")
    assert [f.name for f in found.findings][:2] == ["input-induced features", "bias offset"]
    assert (
        list(found.findings[-1].layers) == list(found.layers)
        and "validation: 4 examples" in found.findings[0].note
    )


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Tanh()])
def test_a_network_that_bends_is_refused(act: nn.Module):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4, bias=False), act, nn.Linear(4, 2, bias=False))
    x = torch.randn(5, 3)
    with pytest.raises(InputError, match=r"not linear in its input(.|\n)*vanishing"):
        linear_split(export(net, x), net.state_dict(), [x])


class Both(nn.Module):
    """Linear in the input, but two biases multiply."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.one(torch.zeros_like(x)) * self.two(torch.zeros_like(x))
        return self.out(gate + x.sum(1, keepdim=True))


def test_an_offset_that_is_no_sum_of_terms_is_refused():
    x = torch.randn(5, 3)
    with pytest.raises(InputError, match="not the sum of what each bias gives"):
        linear_split(export(Both(), x), Both().state_dict(), [x])
