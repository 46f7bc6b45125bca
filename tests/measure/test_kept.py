"""What an alignment lets a merged network keep."""

import functools

import pytest
import torch
from torch import Tensor

import isthmus
from isthmus.align import align
from isthmus.maps import Permutation, Transport
from isthmus.measure import kept
from isthmus.symmetry.elements import random_orders
from isthmus.testing.subjects import drawn
from isthmus.zoo import MLP

WAYS = ("weight-matching", "activation-matching", "zipit", "cca", "transport", "matched-averaging")


@functools.cache
def build():
    model = MLP(d_in=6, widths=(8, 7), num_classes=3).double().eval()
    data = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    graph = isthmus.trace(model, data[:2])
    models = [drawn(model, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    orders = random_orders(graph, torch.Generator().manual_seed(3))
    copy = Transport(graph, {n: Permutation(o) for n, o in orders.items()}).apply(models[0])
    return graph, data, models, copy


def measured(way: str, models: list[dict[str, Tensor]], **options: object):
    graph, data, *_ = build()
    found = align(graph, models, way, data=[data], **options)
    return kept(found, models, [data[:32], data[32:]], weights=(0.3, 0.7))


@pytest.mark.parametrize("way", WAYS)
def test_of_a_reordered_copy_everything_is_kept(way: str):
    _, _, models, copy = build()
    information, bound, defect = measured(way, [models[0], copy])
    for name in ("layers.0", "layers.1"):
        assert information.layers[name] == pytest.approx(1, abs=1e-6)
        assert bound.layers[name] == pytest.approx(1, abs=1e-6)
        assert defect.layers[name] == pytest.approx(0, abs=1e-6)
    assert information.value == pytest.approx(1) and information.better == "higher"


@pytest.mark.parametrize("way", WAYS)
def test_of_strangers_no_method_keeps_more_than_pca(way: str):
    _, _, models, _ = build()
    options = {"beta": 1.0} if way == "zipit" else {}
    information, bound, defect = measured(way, models, **options)
    for name in ("layers.0", "layers.1"):
        assert information.layers[name] < bound.layers[name] < 1
        assert defect.layers[name] > 0.01


def test_a_network_that_grows_keeps_everything_without_a_defect():
    _, _, models, _ = build()
    information, bound, defect = measured("matched-averaging", models, gamma=1e12)
    assert information.value == pytest.approx(1) and bound.value == pytest.approx(1)
    assert defect.value == pytest.approx(0)


def test_the_figures_are_those_of_their_definition():
    graph, data, models, _ = build()
    found = align(graph, models, "zipit", data=[data])
    information, _, defect = kept(found, models, [data], weights=(0.3, 0.7))
    before = [data @ m["layers.0.weight"].mT + m["layers.0.bias"] for m in models]
    maps = [t.maps["layers.0"].matrices() for t in found.weighted((0.3, 0.7))]
    a = torch.cat([0.3 * maps[0][0], 0.7 * maps[1][0]], 1)
    b = torch.cat([maps[0][1], maps[1][1]])
    x = torch.cat(before, 1)
    after = x.relu() - x.relu().mean(0)
    lost = ((after - after @ a.mT @ b.mT) ** 2).sum() / (after**2).sum()
    assert information.layers["layers.0"] == pytest.approx(1 - lost.item())
    off = ((x @ a.mT).relu() - x.relu() @ a.mT).norm(dim=1).mean() / (x.relu() @ a.mT).norm(dim=1).mean()
    assert defect.layers["layers.0"] == pytest.approx(off.item())
