"""What averaging must do whatever the models are: invariants from the papers, on one network of each kind.

The others of that list stand where their subject does: closed forms of Fisher information in `tests/statistics`,
planted transformations in `tests/laws` and `tests/align`, barriers in `tests/measure`, task vectors in `test_rules.py`,
soups in `tests/search`.
"""

import pytest
import torch
from torch import Tensor, nn

from isthmus.combine import COMBINATIONS, combine, terms_of
from isthmus.measure import magnified, not_finite
from isthmus.zoo import MLP, demo_vgg, resnet, vit

Weights = dict[str, Tensor]

#: Rules of weights that claim nothing about copies alone, but are averages once they know the base.
ANCHORED = {
    "task-arithmetic": {"normalize": True},
    "slerp": {},
    "model-stock": {},
    "ties": {"density": 1.0},
    "mag-max": {},
    "breadcrumbs": {"convention": "mergekit", "density": 1.0},
    "iso-c": None,
    "tsv-merge": None,
}


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    found = {
        "perceptron": MLP(d_in=6, widths=(8, 8), num_classes=3),
        "convolutions with batch norm": demo_vgg(base=2, norm="bn"),
        "residual": resnet(depth=8, base=2),
        "attention": vit(image=8, patch=4, dim=8, depth=1, heads=2, in_channels=1),
    }
    return {name: net.double().eval() for name, net in found.items()}


NETS = networks()


def state(net: nn.Module, seed: int = 0, size: float = 0.1) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {
        k: v + size * torch.rand(v.shape, generator=generator, dtype=v.dtype)
        if v.is_floating_point()
        else v.clone()
        for k, v in net.state_dict().items()
    }


def known(weights: Weights, kind: str, seed: int) -> Weights:
    """Statistics that a rule may be given."""
    generator = torch.Generator().manual_seed(seed)
    found: Weights = {}
    for key, value in weights.items():
        if kind == "elements" and value.is_floating_point():
            found[key] = torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.1
        elif kind == "whole" and value.ndim > 1:
            width = value[0].numel()
            rows = torch.randn(2 * width, width, generator=generator, dtype=torch.float64)
            found[key] = rows.T @ rows / len(rows)
    return found


def same(found: Weights, expected: Weights, tolerance: float = 1e-9) -> None:
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(
            found[key], value, rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}"
        )


AVERAGING = [row.name for row in COMBINATIONS.rows() if "copies-give-the-model" in row.claims]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", AVERAGING)
def test_copies_of_a_network_are_merged_to_it(name: str, net: str):
    model = state(NETS[net])
    terms = terms_of(name)
    count = 3 if terms.most is None else terms.most
    statistics = None
    if terms.statistics != "no":
        kind = "elements" if name == "fisher" else "whole"
        statistics = [known(model, kind, seed) for seed in range(count)]
    base = state(NETS[net], 5) if terms.base == "needed" else None
    same(combine([model] * count, name, statistics=statistics, base=base), model)


@pytest.mark.parametrize("name", [n for n, o in ANCHORED.items() if o is not None])
def test_copies_are_merged_to_their_network_from_any_base(name: str):
    net = NETS["residual"]
    base, model = state(net, 1), state(net, 2)
    options = {"lam": 1.0, **(ANCHORED[name] or {})} if name not in ("slerp", "model-stock") else {}
    count = 2 if name == "slerp" else 3
    weights = {"breadcrumbs": [1 / 3] * 3}.get(name)
    same(combine([model] * count, name, base=base, weights=weights, options=options), model)


@pytest.mark.parametrize("lam", [0.3, 1.0])
@pytest.mark.parametrize("net", NETS)
def test_copies_add_up_under_task_arithmetic(net: str, lam: float):
    base, model = state(NETS[net], 1), state(NETS[net], 2)
    found = combine([model] * 4, "task-arithmetic", base=base, options={"lam": lam})
    expected = {
        k: base[k] + lam * 4 * (v - base[k]) if v.is_floating_point() else v for k, v in model.items()
    }
    same(found, expected)


@pytest.mark.parametrize("net", NETS)
def test_one_model_with_nothing_trimmed_or_dropped_is_base_plus_lam_tau(net: str):
    base, model = state(NETS[net], 1), state(NETS[net], 2)
    expected = {k: base[k] + 0.7 * (v - base[k]) if v.is_floating_point() else v for k, v in model.items()}
    for name in ("ties", "dare-linear", "dare-ties"):
        same(combine([model], name, base=base, options={"density": 1.0, "lam": 0.7}, seed=3), expected)


# Fisher


@pytest.mark.parametrize("normalize", [True, False])
def test_information_counts_by_its_ratios_only(normalize: bool):
    net = NETS["convolutions with batch norm"]
    models = [state(net, seed) for seed in range(3)]
    statistics = [known(m, "elements", seed) for seed, m in enumerate(models)]
    larger = [{k: 1e4 * v for k, v in s.items()} for s in statistics]
    options = {"floor": 0.0, "normalize": normalize}
    first, second = (combine(models, "fisher", statistics=s, options=options) for s in (statistics, larger))
    same(second, first)


def test_equal_information_is_the_isotropic_average():
    models = [state(NETS["attention"], seed) for seed in range(3)]
    ones = [{k: torch.ones_like(v) for k, v in m.items() if v.is_floating_point()} for m in models]
    shares = [0.5, 0.2, 0.3]
    same(
        combine(models, "fisher", statistics=ones, weights=shares),
        combine(models, "isotropic", weights=shares),
    )


def test_a_model_that_knows_everything_decides():
    a, b = (state(NETS["perceptron"], seed) for seed in (1, 2))
    certain = {k: torch.ones_like(v) for k, v in a.items()}
    none = {k: torch.zeros_like(v) for k, v in a.items()}
    same(combine([a, b], "fisher", statistics=[none, certain], options={"floor": 0.0}), b)


# Magnitudes


def plain(depth: int, seed: int) -> tuple[nn.Sequential, Tensor]:
    """A ReLU network without biases, and inputs."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(12, 12, bias=False), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(12, 5, bias=False)).double()
    for weight in net.parameters():  # each layer keeps the length of what it reads
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
    return net, torch.randn(64, 12).double()


@pytest.mark.parametrize("factor", [1e-3, 0.5, 10.0, 90.0, 100.0])
def test_without_biases_no_factor_changes_an_answer_in_float64(factor: float):
    net, x = plain(18, 0)
    larger = magnified(net.state_dict(), factor)
    answers = torch.func.functional_call(net, larger, x)
    assert torch.equal(answers.argmax(1), net(x).argmax(1))
    assert not_finite(answers) == 0.0


def test_nineteen_layers_times_a_hundred_leave_single_precision_and_nothing_else():
    net, x = plain(18, 0)
    shares = {}
    for factor in (50.0, 150.0):
        larger = magnified(net.state_dict(), factor)
        single = {k: v.float() for k, v in larger.items()}
        shares[factor] = not_finite(torch.func.functional_call(net, single, x.float()))
    assert shares[50.0] == 0.0 and shares[150.0] > 0.9  # 150^19 = 2e41, the largest float32 is 3e38


@pytest.mark.parametrize("method", ["average", "isotropic", "linear"])
@pytest.mark.parametrize("net", NETS)
def test_a_soup_of_larger_models_is_the_larger_soup(net: str, method: str):
    models = [state(NETS[net], seed) for seed in range(3)]
    for scope in ("parameters", "weights"):
        larger = [magnified(m, 90.0, scope) for m in models]
        same(combine(larger, method), magnified(combine(models, method), 90.0, scope), 1e-12)
