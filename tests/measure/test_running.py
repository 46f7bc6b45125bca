"""Batch norms' stored statistics, dead units and constant logits, against planted ones."""

import pytest
import torch
from torch import Tensor, nn

from isthmus.errors import DataError, InputError
from isthmus.measure import dead_units, logit_profile, running_change, running_gap
from isthmus.program import export


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


X = torch.randn(64, 2, 5, 5, generator=torch.Generator().manual_seed(1))


def fresh() -> tuple[Normed, dict[str, Tensor]]:
    net = Normed()
    out = net.conv(X)
    net.norm.running_mean.copy_(out.mean((0, 2, 3)).detach())
    net.norm.running_var.copy_(out.var((0, 2, 3), correction=0).detach())
    return net.eval(), {k: v.clone() for k, v in net.state_dict().items()}


def test_fresh_statistics_have_no_gap():
    net, weights = fresh()
    mean, deviation = running_gap(export(net, X), weights, list(X.split(20)), split="train")
    assert mean.value == pytest.approx(0, abs=1e-5) and deviation.value == pytest.approx(1, rel=1e-5)
    assert list(mean.layers) == ["norm"] and "train: 64 examples" in mean.note


def test_stale_statistics_are_measured_in_actual_deviations():
    net, weights = fresh()
    deviation = (weights["norm.running_var"] + net.norm.eps).sqrt()
    stale = weights | {
        "norm.running_mean": weights["norm.running_mean"] + 2 * deviation,
        "norm.running_var": 9 * (weights["norm.running_var"] + net.norm.eps) - net.norm.eps,
    }
    mean, ratio = running_gap(export(net, X), stale, [X])
    assert mean.value == pytest.approx(2, rel=1e-4) and ratio.value == pytest.approx(3, rel=1e-4)
    change = running_change(export(net, X), weights, stale)
    assert change[1].value == pytest.approx(3, rel=1e-4)
    old = weights["norm.running_mean"]
    assert change[0].value == pytest.approx(float((2 * deviation).norm() / old.norm()), rel=1e-4)


def test_a_model_without_batch_norms_has_no_statistics():
    net, x = nn.Linear(2, 2), torch.randn(3, 2)
    with pytest.raises(InputError, match="no batch norm"):
        running_gap(export(net, x), net.state_dict(), [x])


def test_dead_units_are_counted_where_they_are_read():
    net, weights = fresh()
    weights["norm.bias"] = torch.tensor([0.0, -99.0, -99.0, 0.0])
    found = dead_units(export(net, X), weights, [X])
    assert found.layers == {"head": 0.5} and found.value == 0.5
    weights["norm.bias"] = torch.full((4,), -99.0)
    assert dead_units(export(net, X), weights, [X]).value == 1.0


def test_a_dead_layer_that_passes_its_biases_on_is_dead_behind_as_well():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    weights = {k: v.detach().clone() for k, v in net.state_dict().items()}
    weights["0.bias"] -= 99
    weights["2.bias"] = torch.tensor([0.3, 0.7, 1.1, 1.3])
    found = dead_units(export(net, X[:, 0, 0, :3]), weights, [X[:, 0, 0, :3]])
    assert found.layers == {"2": 1.0, "4": 1.0}


def test_one_layer_has_nothing_in_front():
    net, x = nn.Linear(2, 2), torch.randn(3, 2)
    assert dead_units(export(net, x), net.state_dict(), [x]).layers == {}


def test_logits_are_averaged_class_by_class():
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    x = torch.tensor([[1.0, 0.0], [-3.0, 5.0]])
    found = logit_profile(net, [x[:1], x[1:]])
    assert found.mean == pytest.approx((-1.0, 1.0)) and found.std == pytest.approx((2.0, 2.0))
    assert found.answers == (0.5, 0.5) and found.examples == 2
    spread, between, share, commonest = found.findings
    assert (spread.value, between.value, share.value) == pytest.approx((2.0, 1.0, 0.2))
    assert commonest.value == 0.5


def test_logits_of_no_rows_are_refused():
    with pytest.raises(DataError, match="no rows"):
        logit_profile(nn.Conv2d(1, 2, 1), [torch.randn(2, 1, 3, 3)])
