"""c2m3, straight-through, sinkhorn, annealing, relu-scaling: what was planted is found, options do what they say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import Net, Weights, build
from torch import nn

import isthmus
from isthmus.align import Alignment, align, references
from isthmus.combine import combine
from isthmus.errors import DataError, InputError, MismatchError
from isthmus.symmetry import Element

METHODS = ("c2m3", "straight-through", "sinkhorn", "annealing", "relu-scaling")
BY_WEIGHTS = ("c2m3", "sinkhorn")


NETS = ("mlp", "conv-bn", "grouped", "resnet", "vit")


def same(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(torch.allclose(ours[k], theirs[k]) for k in ours)


# What was planted is found.


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("by", METHODS)
def test_planted_orders_are_found_on_every_kind_of_net(name: str, by: str):
    net = build(name)
    model = net.drawn(1, positive=True)
    models = [model, net.planted(model, 2), net.planted(model, 3)]
    assert not same(models[1], model)
    for count in (2, 3) if name == "mlp" else (3,):
        found = net.align(models[:count], by)
        moved = found.apply(models[:count])
        assert all(same(each, model) for each in moved)
        for alpha in (0.1, 0.5, 0.9):
            shares = [1 - alpha, *[alpha / (count - 1)] * (count - 1)]
            torch.testing.assert_close(net.run(combine(moved, weights=shares)), net.run(model))


@pytest.mark.parametrize("name", ["resnet", "vit"])
@pytest.mark.parametrize("by", METHODS)
def test_strangers_keep_their_functions_and_agree_more(name: str, by: str):
    net = build(name)
    models = [net.drawn(seed, positive=True) for seed in range(2)]
    options = {"steps": 10} if by in ("sinkhorn", "annealing") else {}
    found = net.align(models, by, **options)
    moved = found.apply(models)
    torch.testing.assert_close(net.run(moved[1]), net.run(models[1]))
    assert {cost.space for cost in found.costs} == set(net.graph.spaces)
    if by != "annealing":
        assert sum(c.after for c in found.costs) > sum(c.before for c in found.costs)


@pytest.mark.parametrize("by", METHODS)
def test_a_reference_in_the_middle(by: str):
    net = build("mlp")
    model = net.drawn(1, positive=True)
    models = [net.planted(model, 2), net.planted(model, 3), model]
    found = net.align(models, by, reference=1)
    assert found.reference == 1
    assert not found.transports[1].maps
    assert all(same(moved, models[1]) for moved in found.apply(models))


# C2M3: one universe.


def test_cycles_of_maps_come_back_to_the_identity():
    net = build("vit")
    models = [net.drawn(seed, positive=True) for seed in range(3)]
    transports = net.align(models, "c2m3").transports
    around = transports[0]
    for start, end in ((0, 1), (1, 2), (2, 0)):
        # From one model's own coordinates to the next one's, by way of the universe.
        step = transports[start].then(transports[end].inverse())
        around = step if start == 0 else around.then(step)
    identity = [torch.arange(order.shape[-1]).expand_as(order) for order in around.orders.values()]
    assert all(map(torch.equal, around.orders.values(), identity))


def test_what_the_universe_reports_is_the_inner_product_of_all_pairs():
    net = build("mlp")
    models = [net.drawn(seed, positive=True) for seed in range(3)]
    found = net.align(models, "c2m3")
    moved = found.apply(models)
    pairs = [(0, 1), (0, 2), (1, 2)]
    inner = sum(
        float((moved[a][k] * moved[b][k]).sum()) for a, b in pairs for k in moved[0] if "2.bias" not in k
    )
    assert f"{inner:.6g} as orders" in found.notes[0]


def test_stopping_early_is_said():
    net = build("mlp")
    models = [net.drawn(seed, positive=True) for seed in range(2)]
    found = net.align(models, "c2m3", max_rounds=1)
    assert found.status == "stopped after 1 rounds"
    assert "not converged" in found.notes[-1]
    found = net.align(models, "sinkhorn", steps=2)
    assert found.status == found.notes[-1] == "1 models were still getting closer after 2 steps"
    found = net.align(models, "straight-through", max_sweeps=1, epochs=1)
    assert found.notes[-1].endswith("matchings stopped after 1 sweeps")


def test_what_diverges_says_so_and_keeps_what_it_had():
    net = build("mlp")
    models = [net.drawn(seed, positive=True) for seed in range(2)]
    for by in ("straight-through", "sinkhorn"):
        found = net.align(models, by, learning_rate=1e200)
        assert "1 searches diverged" in found.notes[-1]
        torch.testing.assert_close(net.run(found.apply(models)[1]), net.run(models[1]))


def test_labels_that_are_no_classes_are_refused():
    net = build("mlp")
    models = [net.drawn(seed) for seed in range(2)]
    x, labels = net.labelled(models[0])[0]
    with pytest.raises(DataError, match="targets run from 10"):
        isthmus.align(net.graph, models, "straight-through", data=[(x, labels + 1000)])


# Straight-through.


@pytest.mark.parametrize("parametrisation", ["endpoint", "midpoint"])
@pytest.mark.parametrize("projection", ["inner-product", "l2"])
def test_straight_through_meets_better_orders(parametrisation: str, projection: str):
    net = build("mlp")
    models = [net.drawn(3, positive=True), net.drawn(4, positive=True)]
    options = {"parametrisation": parametrisation, "projection": projection}
    found = net.align(models, "straight-through", learning_rate=0.5, epochs=6, **options)
    first, lowest = (
        float(word) for word in found.notes[0].split("midpoint ")[1].split(" by weight matching -> ")
    )
    assert lowest < first
    assert "1 orders met" not in found.notes[0]
    assert found.settings["examples_held_out"] == 10
    recorded = {name: found.settings[name] for name in options}
    assert recorded == options


def test_an_endpoint_is_projected_the_same_way_either_way():
    net = build("mlp")
    models = [net.drawn(3, positive=True), net.drawn(4, positive=True)]
    runs = [
        net.align(models, "straight-through", learning_rate=0.5, projection=p)
        for p in ("inner-product", "l2")
    ]
    assert same(*(run.apply(models)[1] for run in runs))
    assert runs[0].notes == runs[1].notes


def test_a_loss_of_ones_own_needs_no_targets():
    net = build("mlp")
    models = [net.drawn(3, positive=True), net.drawn(4, positive=True)]
    data = list(net.data.split(16))
    found = align(
        net.graph, models, "straight-through", data=data, loss=lambda output, _: output.square().mean()
    )
    assert found.settings["loss"] == "given"


# Sinkhorn.


@pytest.mark.parametrize("objective", ["l1", "midpoint", "random-point"])
def test_every_objective_is_lowered(objective: str):
    net = build("conv-bn")
    models = [net.drawn(3, positive=True), net.drawn(4, positive=True)]
    found = net.align(models, "sinkhorn", objective=objective, steps=15)
    first, lowest = (
        float(word) for word in found.notes[0].split(f"{objective} ")[1].split(",")[0].split(" -> ")
    )
    assert lowest < first
    assert found.settings["objective"] == objective


def test_what_weight_matching_found_is_where_sinkhorn_may_begin():
    net = build("mlp")
    models = [net.drawn(3, positive=True), net.drawn(4, positive=True)]
    matched = net.align(models, "weight-matching").apply(models)[1]
    found = net.align(models, "sinkhorn", start="weight-matching", steps=1).apply(models)[1]
    assert same(found, matched)


# Annealing.


@pytest.mark.parametrize(("energy", "over"), [("loss", "average"), ("loss", "pairs"), ("accuracy", "pairs")])
def test_annealing_lowers_its_energy(energy: str, over: str):
    net = build("mlp")
    model = net.drawn(3, positive=True)
    models = [model, net.planted(model, 4), net.planted(model, 5)]
    options: dict[str, Any] = {"over": over, "energy": energy, "steps": 60, "held_out": 0.0}
    found = net.align(models, "annealing", start="identity", **options)
    first = float(found.notes[0].split(" at the start")[0].rpartition(" ")[2])
    lowest = float(found.notes[0].split("start, ")[1].split(" ")[0])
    assert lowest < first
    assert {name: found.settings[name] for name in options} == options


def test_the_published_schedule_moves_every_unit_at_random():
    net = build("mlp")
    model = net.drawn(3, positive=True)
    models = [model, net.planted(model, 1)]
    found = net.align(models, "annealing", variant="entezari", steps=20)
    assert int(found.notes[0].split("; ")[1].split(" ")[0]) > 15
    chosen = {name: found.settings[name] for name in ("energy", "over", "start")}
    assert chosen == {"energy": "accuracy", "over": "pairs", "start": "identity"}
    assert not found.transports[0].maps
    torch.testing.assert_close(net.run(found.apply(models)[1]), net.run(model))


# ReLU scaling.


def scaled(net: Net, weights: Weights, seed: int) -> Weights:
    """A copy in another order and at other positive scales, which a norm may take back."""
    element = net.graph.random_element(seed)
    values = {n: v for n, v in element.values.items() if net.graph.gauges[n].kind == "positive"}
    assert values
    return Element(element.orders, values).apply(net.graph, weights)


@pytest.mark.parametrize(
    ("name", "fit"),
    [("mlp", "sinkhorn"), ("mlp", "norms"), ("conv-bn", "least-squares"), ("resnet", "norms")],
)
def test_planted_scales_are_found(name: str, fit: str):
    net = build(name)
    model = net.drawn(1, positive=True)
    copy = scaled(net, model, 3)
    torch.testing.assert_close(net.run(copy), net.run(model))
    found = net.align([model, copy], "relu-scaling", fit=fit, steps=100)
    assert same(found.apply([model, copy])[1], model), str(found)
    assert same(found.transports[1].inverse().apply(model), copy)


def test_least_squares_is_the_better_fit_and_norms_keep_loudness():
    net = build("mlp")
    models = [net.drawn(0, positive=True), net.drawn(1, positive=True)]
    layer = next(iter(net.graph.spaces))
    ours, theirs = {}, {}
    for fit in ("norms", "least-squares"):
        moved = net.align(models, "relu-scaling", fit=fit).apply(models)
        hidden = [torch.relu(net.data @ m[f"{layer}.weight"].T + m[f"{layer}.bias"]) for m in moved]
        ours[fit] = (hidden[0] - hidden[1]).square().sum()
        theirs[fit] = hidden[1].square().sum() / hidden[0].square().sum()
    assert ours["least-squares"] < ours["norms"]
    assert theirs["norms"] == pytest.approx(1)
    assert theirs["least-squares"] < 1


def test_a_network_without_scales_is_only_reordered():
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).double().eval()
    x = torch.randn(32, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = isthmus.trace(model, x[:2])
    states = [dict(model.state_dict()), {k: v.flip(0) for k, v in model.state_dict().items()}]
    found = align(graph, states, "relu-scaling", data=[x])
    assert not found.transports[1].values
    assert "only orders were matched" in found.notes[0]


# Whose coordinates.


@pytest.mark.parametrize("reference", ["first", "best", "medoid", "universe"])
@pytest.mark.parametrize("by", ["weight-matching", "activation-matching"])
def test_a_reference_may_be_chosen(reference: str, by: str):
    net = build("conv-bn")
    model = net.drawn(1, positive=True)
    models = [net.planted(model, 2), net.planted(model, 3), model]
    found = net.align(models, by, reference=reference, score=lambda weights: -float(weights is not models[1]))
    assert found.reference == {"first": 0, "best": 1}.get(reference, found.reference)
    assert all(same(moved, models[found.reference]) for moved in found.apply(models))


def test_the_medoid_is_what_the_others_agree_with():
    net = build("mlp")
    model = net.drawn(1, positive=True)
    noisy = [{k: v + s * net.drawn(9, positive=True)[k] for k, v in model.items()} for s in (1.0, 0.0, -1.0)]
    found = net.align(noisy, "weight-matching", reference="medoid")
    assert found.reference == 1
    assert found.notes[-1].startswith("reference 1: the medoid, agreements ")


def test_models_visit_the_universe_in_an_order_of_the_methods_seed(monkeypatch: pytest.MonkeyPatch):
    net, seeds = build("mlp"), []
    universe = references.universe

    def noted(run: Any, models: Any, seed: int = 0) -> Alignment:
        seeds.append(seed)
        return universe(run, models, seed)

    monkeypatch.setattr(references, "universe", noted)
    models = [net.drawn(seed) for seed in range(3)]
    for by in ({"method": "weight-matching", "seed": 7}, "activation-matching"):
        net.align(models, by, reference="universe")
    assert seeds == [7, 0]


def test_the_universe_brings_strangers_closer_than_a_reference():
    net = build("resnet")
    models = [net.drawn(seed, positive=True) for seed in range(4)]

    def spread(found: Alignment) -> float:
        moved = found.apply(models)
        keys = [key for key, _ in net.model.named_parameters()]
        means = {key: torch.stack([m[key] for m in moved]).mean(0) for key in keys}
        return sum(float((m[key] - means[key]).square().sum()) for m in moved for key in keys)

    chosen = net.align(models, "weight-matching", reference="universe")
    assert spread(chosen) < spread(net.align(models, "weight-matching"))
    assert chosen.status == "converged"
    assert chosen.settings["reference"] == "universe"
    assert not chosen.transports[0].maps


def test_a_universe_that_moves_nothing_says_so():
    net = build("mlp")
    found = net.align([net.drawn(1), net.drawn(1)], "relu-scaling", reference="universe")
    assert not any(transport.maps for transport in found.transports)
    assert "none was moved" in str(found)


def test_matching_begins_at_an_alignment_made_before(tmp_path: Path):
    net = build("resnet")
    models = [net.drawn(seed, positive=True) for seed in range(3)]
    before = net.align(models, "weight-matching", seed=3)
    file = tmp_path / "maps.safetensors"
    before.save(file)
    for start in (before, file):
        again = net.align(models, "weight-matching", start=start)
        assert all("1 sweeps" in note for note in again.notes)
        assert all(map(same, again.apply(models), before.apply(models)))
    # Seen from another model it is the same alignment.
    turned = net.align(models, "weight-matching", start=before, reference=2, max_sweeps=1)
    assert turned.reference == 2
    assert not turned.transports[2].maps
    with pytest.raises(InputError, match="2 models cannot begin at an alignment of 3"):
        net.align(models[:2], "weight-matching", start=before)


# What is wrong says so.


@pytest.mark.parametrize("by", METHODS)
def test_models_of_other_depths_are_refused(by: str):
    net = build("mlp")
    deeper = {**net.drawn(1, positive=True), "layers.9.weight": torch.zeros(3, 3, dtype=torch.float64)}
    with pytest.raises(MismatchError, match=r"layers\.9\.weight"):
        net.align([net.drawn(0, positive=True), deeper], by)


@pytest.mark.parametrize("by", ["straight-through", "annealing"])
def test_data_and_targets_are_needed(by: str):
    net = build("mlp")
    models = [net.drawn(0, positive=True), net.drawn(1, positive=True)]
    with pytest.raises(InputError, match="needs calibration data"):
        align(net.graph, models, by)
    with pytest.raises(DataError, match=r"has no targets[\s\S]*hint: yield \(inputs, targets\)"):
        align(net.graph, models, by, data=[net.data])
    with pytest.raises(DataError, match="empty"):
        align(net.graph, models, by, data=[])


def test_data_is_needed_where_the_objective_is_a_task():
    net = build("mlp")
    models = [net.drawn(0, positive=True), net.drawn(1, positive=True)]
    with pytest.raises(InputError, match="the objective 'midpoint' needs labelled data"):
        align(net.graph, models, "sinkhorn", objective="midpoint")
    with pytest.raises(InputError, match="relu-scaling needs calibration data"):
        align(net.graph, models, "relu-scaling")


@pytest.mark.parametrize(
    ("by", "options", "words"),
    [
        ("c2m3", {"max_rounds": 0}, "must be positive"),
        ("straight-through", {"held_out": 1.0}, "no share of the data"),
        ("straight-through", {"epochs": 0}, "must be positive"),
        ("straight-through", {"loss": lambda output, _: output}, "not one number"),
        ("sinkhorn", {"temperature": 0.0}, "must be positive"),
        ("annealing", {"steps": 0}, "must be at least 1"),
        ("annealing", {"limit": -1}, "limit=-1 leaves no example"),
        ("weight-matching", {"restarts": "two"}, "restarts is 'two', not a whole number"),
        ("straight-through", {"learning_rate": float("nan")}, "learning_rate is nan, which is not finite"),
        ("sinkhorn", {"steps": 2.5, "noise": "some"}, "noise is 'some', not a number"),
        ("relu-scaling", {"steps": 0}, "must be positive"),
        ("weight-matching", {"reference": "last"}, "hint: an index, or 'first', 'best'"),
        ("weight-matching", {"reference": "best"}, "hint: pass score="),
    ],
)
def test_wrong_options_have_hints(by: str, options: dict[str, Any], words: str):
    net = build("mlp")
    with pytest.raises(InputError) as raised:
        net.align([net.drawn(0, positive=True), net.drawn(1, positive=True)], by, **options)
    assert words in str(raised.value)


def test_numbers_of_numpy_are_numbers():
    net = build("mlp")
    models = [net.drawn(0), net.drawn(1)]
    given = net.align(models, "sinkhorn", steps=np.int64(3), noise=np.float32(0.5)).settings
    assert given["steps"] == 3 and given["noise"] == 0.5
    assert type(given["steps"]) is int


def test_annealing_keeps_its_start_where_that_is_better_on_held_out_examples():
    net = build("mlp")
    model = net.drawn(3, positive=True)
    models = [model, net.planted(model, 4)]
    answers, averaged = net.run(model), net.run(combine(models, weights=[0.5, 0.5]))
    # What is held out says that the models are best averaged as they are.
    data = [(net.data[:24], answers[:24]), (net.data[24:], averaged[24:])]
    found = align(
        net.graph,
        models,
        "annealing",
        data=data,
        loss=lambda output, target: (output - target).square().mean(),
        held_out=0.5,
        start="identity",
        steps=40,
    )
    assert found.notes[-1] == "on held-out examples the start merges better: it is kept"
    assert same(found.apply(models)[1], models[1])
    with pytest.raises(InputError, match="no share of the data"):
        align(net.graph, models, "annealing", data=data, held_out=1.5)
