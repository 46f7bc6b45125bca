"""Ensembles as modules."""

import pytest
import torch
from torch import nn

from isthmus import Cut, Ensemble, ensemble, evaluate, export
from isthmus.errors import InputError
from isthmus.measure import cost
from isthmus.program import Batch, keep_apart
from isthmus.zoo import VGG, ViT


def vgg() -> nn.Module:
    return VGG((1, "M", 1.5), base=4, norm="bn", in_channels=1, num_classes=3)


def vit() -> nn.Module:
    return ViT(
        image=4, patch=2, dim=8, depth=1, heads=2, mlp_ratio=1, pool="mean", in_channels=1, num_classes=3
    )


X = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
NETS = {"vgg": vgg, "vit": vit}


def trained(make, count=3):
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        net = make().eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
        made.append(net)
    return made


@pytest.fixture(params=sorted(NETS), scope="module")
def nets(request):
    return trained(NETS[request.param])


@pytest.fixture(scope="module")
def program(nets):
    return export(nets[0], X)


def states(nets):
    return [net.state_dict() for net in nets]


def test_logits_are_averaged_as_the_measure_does(nets):
    shares = (0.5, 0.3, 0.2)
    joined = Ensemble(nets[0], states(nets), example=X, shares=shares)
    with torch.no_grad():
        expected = sum(s * net(X) for s, net in zip(shares, nets, strict=True))
        torch.testing.assert_close(joined(X), expected)
    data = [(X, torch.arange(12) % 3)]
    measured = ensemble(nets[0], states(nets), data, shares=shares)
    assert evaluate(joined, data).loss == pytest.approx(measured.loss, rel=1e-5)


def test_probabilities_are_averaged_and_stay_logits(nets, program):
    joined = Ensemble(program, states(nets), of="probabilities")
    with torch.no_grad():
        expected = sum(net(X).softmax(-1) for net in nets) / 3
        torch.testing.assert_close(joined(X).softmax(-1), expected)


def test_features_with_the_mean_head_keep_everything_but_the_head_apart(nets, program):
    joined = Ensemble(program, states(nets), of="features")
    kept, _ = keep_apart(program, Cut(preserve_first=program.layers - 1), [1 / 3] * 3)
    weights = {}
    for key, (branch, original) in kept.sources.items():
        given = [state[original] for state in states(nets)]
        weights[key] = given[branch] if branch is not None else torch.stack(given).double().mean(0).float()
    with torch.no_grad():
        expected = kept.compile()(weights, Batch((X,), {}))
        torch.testing.assert_close(joined(X), expected, rtol=1e-4, atol=1e-5)


def test_with_one_head_for_all_features_are_logits(nets, program):
    """A head is affine, so the mean of features through it is the mean of its logits."""
    head = {k: v for k, v in states(nets)[0].items() if k.startswith(("classifier", "head"))}
    assert head
    shared = [{**state, **head} for state in states(nets)]
    with torch.no_grad():
        logits = Ensemble(program, shared)(X)
        for which in ("mean", 0, 2):
            features = Ensemble(program, shared, of="features", head=which)(X)
            torch.testing.assert_close(features, logits, rtol=1e-4, atol=1e-5)
        first = Ensemble(program, states(nets), of="features", head=0)(X)
        last = Ensemble(program, states(nets), of="features", head=2)(X)
    assert not torch.allclose(first, last)


@pytest.mark.parametrize("of", ["logits", "probabilities", "features"])
def test_an_ensemble_of_one_is_the_model(of, nets, program):
    joined = Ensemble(program, states(nets)[1:2], of=of)
    with torch.no_grad():
        torch.testing.assert_close(joined(X).softmax(-1), nets[1](X).softmax(-1))


@pytest.mark.parametrize("of", ["logits", "features"])
def test_an_ensemble_is_a_module_with_a_cost(of, nets, program):
    joined = Ensemble(program, states(nets), of=of)
    one, all_of_them = cost(program, X), cost(joined, X)
    assert all_of_them.parameters == 3 * one.parameters
    head = sum(p.numel() for n, p in nets[0].named_parameters() if n.endswith("weight") and p.shape[0] == 3)
    saved = 0 if of == "logits" else 2 * 2 * head
    assert all_of_them.flops == 3 * one.flops - saved
    copy = Ensemble(program, [{k: torch.zeros_like(v) for k, v in s.items()} for s in states(nets)], of=of)
    copy.load_state_dict(joined.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(copy(X), joined(X))
    assert "members.2." in next(reversed(joined.state_dict()))


def test_a_module_costs_what_its_program_does(nets, program):
    assert cost(nets[0], X) == cost(program, X)


def test_gradients_flow_to_every_member():
    nets = trained(vgg)
    joined = Ensemble(nets[0], states(nets), of="features", example=X)
    joined(X).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in joined.parameters())


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x):
        return self.one(x.flatten(1)) + self.two(x.flatten(1).relu())


class Beside(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.two(self.one(x.flatten(1)).relu()) + x.flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (vgg, {"weights": []}, "there is no model"),
        (vgg, {"shares": [0.5, 0.5, 0.5]}, "shares that sum to 1.5"),
        (vgg, {"of": "features", "head": 3}, "head = 3 is none of the 3 members"),
        (vgg, {"head": 0}, "an ensemble of logits has no head of its own"),
        (vgg, {"example": None}, "an example input is needed"),
        (vgg, {"of": "features", "at": "nothing"}, "nothing"),
        (TwoHeads, {"of": "features"}, "no single last linear operation"),
        (Beside, {"of": "features"}, "the output also depends on x past the features"),
    ],
)
def test_wrong_calls_are_said(make, options, words):
    nets = trained(make)
    given = {"weights": states(nets), "example": X, **options}
    with pytest.raises((InputError, KeyError), match=words):
        Ensemble(nets[0], given.pop("weights"), **given)
