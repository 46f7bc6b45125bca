"""Scales of batch norms under groups of units: the weights of models stand in the rows of A, so they must be linear."""

import pytest
import torch
from small_nets import build

import isthmus
from isthmus.align import Alignment
from isthmus.maps import Membership, Transport


@pytest.mark.parametrize("name", ["conv-bn", "resnet", "densenet", "depthwise"])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.8)])
def test_units_that_are_all_kept_make_the_average_of_both_networks(name: str, weights: tuple[float, float]):
    net = build(name)
    models = [net.drawn(1), net.drawn(2)]
    merged = net.merge(models, align={"method": "matched-averaging", "gamma": 1e9}, weights=weights)
    assert merged.model is not None
    with torch.no_grad():
        found = merged.model(net.data)
    wanted = sum(w * net.run(model) for w, model in zip(weights, models, strict=True))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_equal_units_of_one_model_are_one_unit():
    net = build("conv-bn")
    model = net.drawn(1)
    space, size = next((name, s.size) for name, s in net.graph.spaces.items())
    for member in net.graph.spaces[space].members:
        if member.role != "reads":  # the second half of the units are the first again
            own = model[member.key].movedim(member.axis, 0)
            own[size // 2 :] = own[: size // 2].clone()
    pairs, half = torch.arange(size) % (size // 2), torch.full((size,), 0.5, dtype=torch.float64)
    maps = [Membership(pairs + shift, half, size) for shift in (0, size // 2)]
    alignment = Alignment("pairs", net.graph, tuple(Transport(net.graph, {space: m}) for m in maps))
    for weights in ((0.5, 0.5), (0.3, 0.7)):
        merged = isthmus.combine(alignment.apply([model, model], weights), weights=weights)
        torch.testing.assert_close(net.run(merged), net.run(model), rtol=1e-7, atol=1e-9)
