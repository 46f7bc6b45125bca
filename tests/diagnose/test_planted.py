"""Every rule on models that are built to trigger it, and none on a pair that merges well."""

import functools

import pytest
import torch
from torch import Tensor, nn

from isthmus import zoo
from isthmus.diagnose import CAUSES, RELATIONS, Cause, gather, holding
from isthmus.diagnose.subsets import take
from isthmus.measure import Finding
from isthmus.symmetry import SymmetryGraph, trace, verified

State = dict[str, Tensor]
Data = list[object]

RECIPE = {"lr": 0.15, "weight_decay": 1e-3, "clip": 1.0, "threads": 1}


@functools.cache
def data() -> tuple[Data, Data]:
    digits = zoo.digits().split(seed=0)
    return take(digits.loader("train"), 500), take(digits.loader("validation"), 400)


def net(kind: str) -> nn.Module:
    if kind == "bn":
        return zoo.vgg([1, "M", 1, "M", 2], base=8, norm="bn", in_channels=1)
    return zoo.mlp(d_in=64, widths=[24] * {"shallow": 2, "deep": 4}[kind])


@functools.cache
def trained(kind: str, seed: int, epochs: int | None = None) -> State:
    epochs = epochs or {"shallow": 8, "bn": 3, "deep": 15}[kind]
    return state(zoo.train(zoo.init(net(kind), seed), loader(), epochs=epochs, seed=seed, **RECIPE).model)


@functools.cache
def tuned(kind: str, seed: int) -> State:
    """A sibling: trained on from the first model, gently."""
    start = net(kind)
    start.load_state_dict(trained(kind, 1))
    return state(zoo.train(start, loader(), epochs=1, seed=seed, **{**RECIPE, "lr": 0.06}).model)


def loader() -> zoo.Loader:
    return zoo.digits().split(seed=0).loader("train", batch_size=64, shuffle=True)


def state(model: nn.Module) -> State:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


@functools.cache
def graph(kind: str) -> SymmetryGraph:
    example = data()[0][0][0]  # type: ignore[index]
    return verified(trace(net(kind).eval(), example), example)[0]


def seen(
    kind: str, a: State, b: State, calibration: Data | None = None, validation: Data | None = None
) -> tuple[str, dict[str, Cause], dict[str, Finding]]:
    """The relation, the causes by name, and the findings."""
    own = data()
    given = calibration or own[0], validation or own[1]
    found = gather(graph(kind), [a, b], ["a", "b"], *given).findings
    return holding(RELATIONS, found)[0].rule, {c.rule: c for c in holding(CAUSES, found)}, found


@functools.cache
def strangers(kind: str) -> tuple[str, dict[str, Cause], dict[str, Finding]]:
    return seen(kind, trained(kind, 1), trained(kind, 2))


@pytest.mark.parametrize("kind", ["shallow", "bn"])
def test_nothing_is_wrong_with_siblings(kind: str):
    relation, causes, found = seen(kind, tuned(kind, 2), tuned(kind, 3))
    assert relation == "siblings" and not causes
    assert found["weight cosine"].value > 0.9


def test_a_model_and_itself_are_copies():
    relation, causes, _ = seen("shallow", trained("shallow", 1), trained("shallow", 1))
    assert relation == "copies" and not causes


def test_independent_trainings_are_strangers_in_another_order():
    relation, causes, found = strangers("shallow")
    assert relation == "strangers" and "other-order" in causes
    assert "Align first" in causes["other-order"].advice
    assert abs(found["weight cosine"].value) < 0.2


def test_a_reordered_copy_is_known():
    a = trained("shallow", 1)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    b = a | {
        "layers.0.weight": a["layers.0.weight"][order],
        "layers.0.bias": a["layers.0.bias"][order],
        "layers.1.weight": a["layers.1.weight"][:, order],
    }
    relation, causes, found = seen("shallow", a, b)
    assert relation == "reordered copies"
    assert found["weight distance"].value > 0.5 and found["weight distance, reordered"].value < 1e-3
    assert set(causes) <= {"other-order"}


def test_a_rescaled_copy_is_known():
    a = trained("shallow", 1)
    scale = torch.linspace(0.25, 4, 24)
    b = a | {
        "layers.0.weight": scale[:, None] * a["layers.0.weight"],
        "layers.0.bias": scale * a["layers.0.bias"],
        "layers.1.weight": a["layers.1.weight"] / scale,
    }
    relation, _, found = seen("shallow", a, b)
    assert relation == "rescaled copies"
    assert found["weight distance, reordered"].value > 0.1 > 1e-3 > found["weight distance, rescaled"].value


def test_features_that_vanish_are_named():
    # No bias in either: nothing but fading features is left to name.
    a, b = ({k: v if k.endswith("weight") else 0 * v for k, v in trained("deep", s).items()} for s in (1, 2))
    _, causes, found = seen("deep", a, b)
    assert (
        "vanished-features" in causes and "bias-dominated" not in causes and "variance-collapse" not in causes
    )
    assert f"{found['vanishing features'].value:.2f}" in causes["vanished-features"].found


def test_biases_that_dominate_are_named():
    # Untrained and without biases but for the last: as large as what the input makes in either model.
    nets = [zoo.init(net("deep"), seed).eval() for seed in (1, 2)]
    with torch.no_grad():
        size = float(nets[0](data()[0][0][0][0]).square().mean().sqrt())  # type: ignore[index]
    push = 1.2 * size * torch.tensor([1.0, -1.0] * 5)
    a, b = (state(own) | {"layers.4.bias": push} for own in nets)
    _, causes, found = seen("deep", a, b)
    assert "bias-dominated" in causes and found["bias dominance"].value > 2
    assert found["bias dominance over the parents'"].value == pytest.approx(
        1 / found["vanishing features"].value, rel=0.2
    )


def test_stale_statistics_are_named():
    a, b = tuned("bn", 2), tuned("bn", 3)
    key = "features.1.running_"
    stale = b | {f"{key}mean": b[f"{key}mean"] + 2 * b[f"{key}var"].sqrt(), f"{key}var": 9 * b[f"{key}var"]}
    relation, causes, _ = seen("bn", a, stale)
    assert relation == "siblings" and "stale-statistics" in causes
    assert " b gains" in causes["stale-statistics"].found and "merged-statistics" not in causes


def test_units_that_stale_statistics_shut_are_not_said_to_be_dead():
    b = tuned("bn", 3)
    far = {key: value + 50 for key, value in b.items() if key.endswith("running_mean")}
    _, causes, found = seen("bn", tuned("bn", 2), b | far)
    assert "stale-statistics" in causes and found["dead units"].value > 0.95
    assert "dead-layer" not in causes


def test_statistics_of_a_merge_are_named():
    relation, causes, found = strangers("bn")
    assert relation == "strangers" and "merged-statistics" in causes and "stale-statistics" not in causes
    assert found["merged running mean gap"].value > 0.2


def test_a_dead_layer_is_named():
    a = tuned("shallow", 2)
    b = tuned("shallow", 3) | {"layers.0.bias": tuned("shallow", 3)["layers.0.bias"] - 1000}
    _, causes, _ = seen("shallow", a, b)
    assert "dead-layer" in causes and "layers.1 of b" in causes["dead-layer"].found
    assert "vanished-features" not in causes and "uneven-parents" not in causes


def test_data_that_is_normalised_wrongly_is_named():
    def wrong(items: Data) -> Data:
        return [((5 + 3 * x[0],), y) for x, y in items]  # type: ignore[misc]

    calibration, validation = data()
    relation, causes, _ = seen(
        "shallow", tuned("shallow", 2), tuned("shallow", 3), wrong(calibration), wrong(validation)
    )
    assert relation == "siblings" and list(causes) == ["wrong-normalisation"]
    assert "they have mean 5" in causes["wrong-normalisation"].found


def test_classes_under_other_numbers_are_named():
    a, b = tuned("shallow", 2), tuned("shallow", 3)
    order = torch.tensor([0, 1, 2, 5, 4, 3, 6, 7, 8, 9])
    b = b | {key: b[key][order] for key in ("layers.2.weight", "layers.2.bias")}
    _, causes, found = seen("shallow", a, b)
    assert "class-order" in causes and "uneven-parents" not in causes
    assert "b: its 3 is 5, 5 is 3" in found["accuracy gained by renaming classes"].note
    assert "(b: its 3 is 5, 5 is 3)" in causes["class-order"].found


def test_a_parent_that_is_behind_is_named():
    _, causes, _ = seen("shallow", trained("shallow", 1), trained("shallow", 2, 1))
    assert "uneven-parents" in causes


def test_collapsed_variance_is_named_where_features_have_not_vanished():
    # A far offset of the input that every model passes on keeps f(x) - f(0) large.
    calibration, validation = ([((20 + x[0],), y) for x, y in items] for items in data())  # type: ignore[misc]
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)) / 8
    shared = torch.ones(24, 64) / 64

    def model(sign: float) -> State:
        own = state(zoo.init(net("shallow"), 0))
        return own | {"layers.0.weight": shared + sign * weight, "layers.0.bias": torch.zeros(24)}

    _, causes, _ = seen("shallow", model(1), model(-1), calibration, validation)
    assert "variance-collapse" in causes


def test_every_rule_names_findings_that_there_are():
    _, _, plain = strangers("shallow")
    _, _, normed = strangers("bn")
    added = {"accuracy lost by the best merge of one size", "weight distance, rescaled"}
    known = set(plain) | set(normed) | added
    for rule in (*RELATIONS, *CAUSES):
        assert {bound.finding for bound in rule.when} <= known, rule.name
        values = {**dict.fromkeys(known, 1.0), "where": "somewhere", "note": "something"}
        for text in (rule.found, rule.means, rule.advice):
            assert text.format_map(values)
        assert rule.also.format_map(values) or not rule.also
        assert rule.source
    names = [rule.name for rule in CAUSES]
    assert all(other in names[: names.index(rule.name)] for rule in CAUSES for other in rule.unless)
