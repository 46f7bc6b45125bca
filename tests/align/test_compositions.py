"""Every method with a part kept apart: Preserve-First and partial zipping, on every family of networks."""

import functools

import pytest
import torch
from small_nets import BRIEFLY, Weights, build
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.program import Batch, export

#: What is kept apart, and of how many models.
CUTS: dict[str, tuple[int, dict[str, object]]] = {
    "preserve-first, junction": (2, {"preserve_first": 2, "variant": "junction"}),
    "preserve-first, paper": (3, {"preserve_first": 1, "variant": "paper"}),
    "partial zipping": (3, {"preserve_last": 1}),
}
SHARES = {2: (0.3, 0.7), 3: (0.2, 0.5, 0.3)}

on_every_net = pytest.mark.parametrize("name", ["vgg-bn", "resnet", "densenet", "vit"])
each_method = pytest.mark.parametrize("method", BRIEFLY)


@functools.cache
def copies(name: str) -> list[Weights]:
    net = build(name)
    model = net.drawn(1, positive=True)
    return [model, net.planted(model, 2), net.planted(model, 3)]


@functools.cache
def strangers(name: str) -> list[Weights]:
    return [build(name).drawn(seed) for seed in (1, 2)]


def output(model: nn.Module | None, data: Tensor) -> Tensor:
    assert isinstance(model, nn.Module)
    with torch.no_grad():
        return model(data)


@on_every_net
@each_method
def test_a_network_and_its_copies_are_the_network_wherever_they_are_cut(name: str, method: str):
    net, models = build(name), copies(name)
    found = {count: net.align(models[:count], BRIEFLY[method]) for count in SHARES}
    for count, cut in CUTS.values():
        merged = net.merge(models[:count], align=found[count], weights=SHARES[count], **cut)
        assert merged.own_program
        torch.testing.assert_close(output(merged.model, net.data), net.run(models[0]), rtol=1e-6, atol=1e-6)


@each_method
def test_five_models_meet_at_any_weights(method: str):
    net = build("mlp")
    model = net.drawn(1, positive=True)
    models = [net.planted(model, 2), model, *(net.planted(model, seed) for seed in (3, 4, 5))]
    found = net.align(models, BRIEFLY[method], reference=1)
    merged = net.merge(models, align=found, weights=(0.1, 0.3, 0.2, 0.15, 0.25))
    torch.testing.assert_close(net.run(dict(merged.weights)), net.run(model), rtol=1e-6, atol=1e-6)


@on_every_net
@each_method
def test_strangers_give_a_finite_module_that_exports_again(name: str, method: str):
    net, models = build(name), strangers(name)
    found = net.align(models, BRIEFLY[method])
    merged = net.merge(models, align=found, weights=(0.3, 0.7), preserve_first=2)
    assert all(bool(t.isfinite().all()) for t in merged.weights.values())
    once = output(merged.model, net.data)
    assert merged.model is not None and bool(once.isfinite().all())
    again = export(merged.model, net.data[:2])
    twice = again.compile()(merged.model.state_dict(), Batch((net.data,), {}))
    torch.testing.assert_close(twice, once)


def test_what_grew_cannot_be_kept_apart():
    models = strangers("vgg-bn")
    with pytest.raises(InputError, match="of models of different widths nothing can be kept apart"):
        build("vgg-bn").merge(models, align={"method": "matched-averaging", "gamma": 1e9}, preserve_first=1)


def test_what_is_kept_apart_and_shifted_cannot_be():
    models = strangers("vgg-bn")
    with pytest.raises(InputError, match="maps cannot be shifted"):
        build("vgg-bn").merge(models, align={"method": "cca", "affine": True}, preserve_first=1)
