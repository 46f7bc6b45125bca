import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from isthmus import zoo
from isthmus.errors import InputError


@pytest.fixture(scope="module")
def digits():
    return zoo.digits()


@pytest.fixture
def loader(digits):
    return digits.loader("train", batch_size=64, shuffle=True, limit=256)


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@torch.no_grad()
def accuracy(model, data, split="test"):
    hits = [(model(x).argmax(1) == y).float() for x, y in data.loader(split)]
    return torch.cat(hits).mean().item()


def test_strangers_on_digits(digits):
    """The demo's two networks, in a third of the demo's epochs."""
    recipe = {**zoo.DEMO_RECIPE, "epochs": 8}
    a, b = zoo.strangers(digits, zoo.demo_vgg, **recipe)
    assert accuracy(a.model, digits) >= 0.95
    assert accuracy(b.model, digits) >= 0.95
    halfway = copy.deepcopy(a.model)
    for p, q in zip(halfway.parameters(), b.model.parameters(), strict=True):
        p.data.lerp_(q.data, 0.5)
    assert accuracy(halfway, digits) < 0.35  # chance is 0.1
    assert [e.number for e in a.history] == list(range(1, 9))
    assert a.history[-1].loss < a.history[0].loss
    assert (a.seed, b.seed) == (1, 2)


def test_training_is_determined_by_its_seed(loader):
    model = zoo.demo_vgg(base=4, norm="bn")
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    first = zoo.train(model, loader, epochs=2, lr=0.05, seed=3)
    again = zoo.train(model, loader, epochs=2, lr=0.05, seed=3)
    other = zoo.train(model, loader, epochs=2, lr=0.05, seed=4)
    assert same(first.model, again.model)
    assert not same(first.model, other.model)
    assert same(model, before)
    assert model.training
    assert not first.model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.is_contiguous() for p in first.model.parameters())
    assert [(e.loss, e.accuracy) for e in first.history] == [(e.loss, e.accuracy) for e in again.history]


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.01},
        {"lr": 0.3, "schedule": "constant", "momentum": 0.0},
        {"lr": 0.05, "bf16": True, "label_smoothing": 0.1, "clip": 1.0, "warmup": 0.5},
    ],
)
def test_every_setting_learns(loader, recipe):
    result = zoo.train(zoo.init(zoo.mlp(64, (32,)), 0), loader, epochs=4, **recipe)
    assert result.history[-1].loss < 0.9 * result.history[0].loss
    assert result.history[-1].accuracy > 0.3
    assert all(p.dtype == torch.float32 for p in result.model.parameters())


def test_a_torch_loader_will_do(digits):
    x, y = next(iter(digits.loader("train", batch_size=128)))
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
    model = zoo.init(zoo.mlp(64, (16,)), 0)
    results = [zoo.train(model, loader, epochs=2, lr=0.05, seed=s) for s in (1, 1, 2)]
    assert same(results[0].model, results[1].model)
    assert not same(results[0].model, results[2].model)


def test_each_epoch_is_told(loader):
    told = []
    result = zoo.train(zoo.mlp(64, (8,)), loader, epochs=3, lr=0.01, on_epoch=told.append)
    assert tuple(told) == result.history
    assert told[0].seconds <= told[-1].seconds <= result.seconds


def test_settings_out_of_range_are_all_named(loader):
    with pytest.raises(
        InputError, match=r"epochs=0.*\n.*lr=-1.*\n.*optimizer='sdg'.*\n.*schedule='step'.*\n.*label_"
    ):
        zoo.train(zoo.mlp(), loader, epochs=0, lr=-1.0, optimizer="sdg", schedule="step", label_smoothing=1.0)
    with pytest.raises(InputError, match="loader with a length"):
        zoo.train(zoo.mlp(), iter(loader), epochs=1, lr=0.1)


def test_divergence_is_said(loader):
    with pytest.raises(
        InputError, match=r"training diverged in epoch 1: the loss is (nan|inf)\n\nhint: lower lr"
    ):
        zoo.train(zoo.mlp(64, (64, 64)), loader, epochs=2, lr=1e8, schedule="constant")


def test_strangers_need_different_seeds(digits):
    with pytest.raises(InputError, match=r"2 strangers need 2 different seeds, got \(1, 1\)"):
        zoo.strangers(digits, zoo.demo_vgg, seeds=(1, 1), epochs=1, lr=0.1)


def test_init_depends_on_the_seed_alone():
    for factory in (
        lambda: zoo.resnet20(base=4),
        lambda: zoo.vit(dim=12, depth=1),
        lambda: zoo.vgg11(4, "ln"),
    ):
        models = [zoo.init(factory(), seed) for seed in (0, 0, 1)]
        assert same(models[0], models[1])
        weights = [p for p in models[0].parameters() if p.ndim > 1]
        others = [p for p in models[2].parameters() if p.ndim > 1]
        assert not any(torch.equal(p, q) for p, q in zip(weights, others, strict=True))


def test_init_is_kaimings_by_fan_out():
    model = zoo.init(zoo.vgg11(), 0)
    conv = model.features[3]  # 64 -> 128 channels
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    assert not conv.bias.any()
    depthwise = zoo.init(zoo.mobilenet(), 0).blocks[4].dw
    assert depthwise.weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.1)


def test_init_forgets_statistics_and_leaves_the_model_alone():
    model = zoo.vgg11(base=4, norm="bn")
    model(torch.randn(8, 3, 32, 32))
    before = copy.deepcopy(model)
    assert not zoo.init(model, 0).features[1].running_mean.any()
    assert same(model, before)


def test_init_names_what_it_cannot_draw():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))

    with pytest.raises(InputError, match=r"no reset_parameters\(\)\n  1 \(Scale\)"):
        zoo.init(nn.Sequential(nn.Linear(3, 3), Scale()), 0)
