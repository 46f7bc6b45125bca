"""Weight and activation matching: what was planted is found, merged copies are exact, options do what they say."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_nets import Weights, build

import isthmus
from isthmus.align import ALIGNMENTS, Alignment, align
from isthmus.combine import combine
from isthmus.errors import DataError, InputError, MismatchError
from isthmus.maps import Permutation, Transport
from isthmus.symmetry.elements import random_orders
from isthmus.zoo import MLP

METHODS = ("weight-matching", "activation-matching")


NETS = ("mlp", "conv", "conv-bn", "grouped", "resnet", "vit", "grouped queries")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# Reported: spaces of which a value shows two inner ones at once are compared unit by unit in their first order.
by_both = pytest.mark.parametrize("by", METHODS)


# What was planted is found.


@pytest.mark.parametrize("groups", ["permutation", "full"])
@pytest.mark.parametrize("name", ["mlp", "conv", "vit"])
def test_biases_that_outvote_the_weights_are_noted_and_may_follow_them(name: str, groups: str):
    net = build(name)
    model = net.drawn(1)
    other = net.planted(model, 2)
    biases = net.graph.program.biases
    assert biases and all(key.endswith("bias") for key in biases)
    draw = torch.Generator().manual_seed(3)
    loud = {k: torch.randn(v.shape, generator=draw) * 30 if k in biases else v for k, v in other.items()}
    voting, following = (
        net.align([model, loud], "weight-matching", groups=groups, biases=b) for b in ("vote", "follow")
    )
    if groups == "permutation":
        assert any("outvote" in note for note in voting.notes)
        assert not any("outvote" in note for note in following.notes)

    def found(by: Alignment) -> bool:
        moved = by.apply([model, loud])[1]
        return all(torch.allclose(moved[k], model[k], rtol=1e-4, atol=1e-6) for k in model if k not in biases)

    assert found(following) and not found(voting)


@pytest.mark.parametrize(
    ("name", "by"),
    [(name, by) for name in NETS for by in METHODS],
)
def test_a_planted_order_is_found_on_every_kind_of_net(name: str, by: str):
    net = build(name)
    model = net.drawn(1)
    other = net.planted(model, 2)
    assert not same(model, other)
    found = net.align([model, other], by)
    assert same(found.apply([model, other])[1], model)
    assert same(found.transports[1].inverse().apply(model), other)


def test_orders_inside_moved_heads_are_found_head_by_head():
    net = build("vit")
    model = net.drawn(3)
    inner = [s.name for s in net.graph.spaces.values() if s.within]
    orders = random_orders(net.graph, torch.Generator().manual_seed(0))
    assert len(inner) == 2
    for names in (inner, [net.graph.spaces[n].within[0] for n in inner]):
        maps = {n: Permutation(orders[n]) for n in names}
        other = Transport(net.graph, maps).apply(model)
        for by in METHODS:
            found = net.align([model, other], by)
            assert same(found.apply([model, other])[1], model)


@by_both
@pytest.mark.parametrize("name", ["mlp", "conv", "conv-bn"])
def test_dead_units_are_found_by_their_weights(name: str, by: str):
    net = build(name)
    model = net.drawn(1)
    dead = 0
    for space in net.graph.spaces.values():
        bias = [m.key for m in space.members if m.role == "writes" and m.key.endswith("bias")][-1]
        model[bias] = model[bias].clone()
        model[bias][[0, 2, 5]] = -50.0
        dead += 3
    other = net.planted(model, 2)
    found = net.align([model, other], by)
    assert same(found.apply([model, other])[1], model)
    if by == "activation-matching":
        assert any(f"{2 * dead} dead units" in note for note in found.notes)


@by_both
@pytest.mark.parametrize("name", ["mlp", "conv-bn", "vit"])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_a_model_merged_with_its_reordered_copy_is_the_model_at_every_alpha(name: str, by: str, alpha: float):
    net = build(name)
    model = net.drawn(1)
    models = [model, net.planted(model, 2)]
    direct = net.run(combine(models, weights=[1 - alpha, alpha]))
    merged = net.run(combine(net.align(models, by).apply(models), weights=[1 - alpha, alpha]))
    torch.testing.assert_close(merged, net.run(model), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(direct, merged, rtol=1e-3), "otherwise this says nothing"


@by_both
@pytest.mark.parametrize("name", ["grouped", "resnet", "grouped queries"])
def test_strangers_keep_their_functions(name: str, by: str):
    net = build(name)
    models = [net.drawn(seed) for seed in range(2)]
    found = net.align(models, by)
    moved = found.apply(models)
    assert same(moved[0], models[0])
    torch.testing.assert_close(net.run(moved[1]), net.run(models[1]), rtol=1e-9, atol=1e-9)
    assert found.status == "converged"


# More than two models; another reference.


@by_both
@pytest.mark.parametrize("reference", [0, 1, 2])
def test_three_models_go_to_any_reference(by: str, reference: int):
    net = build("conv-bn")
    model = net.drawn(1)
    models = [model, net.planted(model, 2), net.planted(model, 3)]
    found = net.align(models, by, reference=reference)
    assert found.reference == reference
    assert not found.transports[reference].maps
    assert {cost.model for cost in found.costs} == {0, 1, 2} - {reference}
    for moved in found.apply(models):
        assert same(moved, models[reference])
    merged = combine(found.apply(models), weights=[0.2, 0.3, 0.5])
    torch.testing.assert_close(net.run(merged), net.run(model), rtol=1e-9, atol=1e-9)


@by_both
def test_each_model_is_matched_on_its_own(by: str):
    net = build("mlp")
    a, b, c = (net.drawn(seed) for seed in range(3))
    three = net.align([a, b, c], by).apply([a, b, c])
    assert same(three[1], net.align([a, b], by).apply([a, b])[1])
    assert same(three[2], net.align([a, c], by).apply([a, c])[1])


@by_both
def test_copies_stay_where_they_are(by: str):
    net = build("vit")
    model = net.drawn(1)
    found = net.align([model, dict(model)], by)
    assert same(found.apply([model, model])[1], model)
    assert all(cost.before == pytest.approx(cost.after) for cost in found.costs)


@by_both
def test_the_models_are_left_alone(by: str):
    net = build("conv-bn")
    models = [net.drawn(seed) for seed in range(2)]
    before = [{k: v.clone() for k, v in m.items()} for m in models]
    net.align(models, by)
    assert all(same(m, b) for m, b in zip(models, before, strict=True))


@by_both
def test_modules_align_as_their_state_dicts_do(by: str):
    net = build("mlp")
    models = []
    for seed in range(2):
        model = MLP(d_in=6, widths=(8, 7), num_classes=3).double()
        model.load_state_dict(net.drawn(seed))
        models.append(model)
    states = [net.drawn(seed) for seed in range(2)]
    assert same(
        align(net.graph, models, by, data=[net.data]).apply(states)[1],
        align(net.graph, states, by, data=[net.data]).apply(states)[1],
    )


# What is reported.


@by_both
def test_every_space_has_a_cost_that_alignment_improves(by: str):
    net = build("conv")
    models = [net.drawn(seed) for seed in range(2)]
    found = net.align(models, by)
    assert [cost.space for cost in found.costs] == list(net.graph.spaces)
    assert sum(c.after for c in found.costs) > sum(c.before for c in found.costs)
    assert all(-1 - 1e-9 <= value <= 1 + 1e-9 for c in found.costs for value in (c.before, c.after))
    text = str(found)
    assert text.startswith(f"{by}, reference model 0, converged (mean ")
    assert all(name in text and "->" in text for name in net.graph.spaces)


@by_both
def test_a_perfect_match_has_cost_one(by: str):
    net = build("conv")
    model = net.drawn(1)
    found = net.align([model, net.planted(model, 2)], by)
    assert all(cost.after == pytest.approx(1) and cost.before < 0.9 for cost in found.costs)


@by_both
def test_an_alignment_is_saved_and_loaded(by: str, tmp_path: Path):
    net = build("vit")
    models = [net.drawn(seed) for seed in range(3)]
    found = net.align(models, by, reference=1)
    found.save(tmp_path / "new" / "maps.safetensors")
    again = Alignment.load(tmp_path / "new" / "maps.safetensors", net.graph)
    assert all(map(same, again.apply(models), found.apply(models)))
    assert (again.method, again.reference, again.costs, again.notes, again.status) == (
        found.method, found.reference, found.costs, found.notes, found.status,
    )  # fmt: skip
    assert str(again) == str(found)


def test_another_number_of_models_is_refused():
    net = build("mlp")
    found = net.align([net.drawn(0), net.drawn(1)], "weight-matching")
    with pytest.raises(InputError, match="3 models for an alignment of 2"):
        found.apply([net.drawn(0)] * 3)


# Weight matching.


def test_a_seed_gives_the_same_orders():
    net = build("vit")
    models = [net.drawn(seed) for seed in range(2)]
    once, again = (net.align(models, "weight-matching", seed=5) for _ in range(2))
    assert str(once) == str(again)
    assert same(once.apply(models)[1], again.apply(models)[1])
    assert once.settings["seed"] == 5


def objective(found: Alignment) -> float:
    (note,) = found.notes
    return float(note.rpartition("-> ")[2])


def test_restarts_keep_the_best_of_their_seeds():
    net = build("resnet")
    models = [net.drawn(seed) for seed in range(2)]
    singles = [objective(net.align(models, "weight-matching", seed=s)) for s in range(3)]
    assert objective(net.align(models, "weight-matching", seed=0, restarts=3)) == max(singles)
    assert len(set(singles)) > 1, "otherwise this says nothing"


def test_the_objective_is_the_inner_product_of_all_parameters():
    net = build("conv-bn")
    models = [net.drawn(seed) for seed in range(2)]
    found = net.align(models, "weight-matching")
    moved = found.apply(models)[1]
    names = dict(net.model.named_parameters())
    total = sum((models[0][key] * moved[key]).sum().item() for key in names)
    assert objective(found) == pytest.approx(total, rel=1e-5)


def test_running_statistics_do_not_vote():
    net = build("conv-bn")
    models = [net.drawn(seed) for seed in range(2)]
    shaken = {k: v.flip(0) * 1e3 if "running" in k else v for k, v in models[1].items()}
    plain, other = (net.align([models[0], m], "weight-matching") for m in (models[1], shaken))
    assert all(torch.equal(plain.transports[1].orders[n], o) for n, o in other.transports[1].orders.items())


def test_stopping_early_is_said():
    net = build("mlp")
    found = net.align([net.drawn(0), net.drawn(1)], "weight-matching", max_sweeps=1)
    assert found.status == "stopped after 1 sweeps"
    assert "stopped after 1 sweeps" in str(found)


def test_weights_in_half_precision_are_matched():
    net = build("conv")
    model = {k: v.bfloat16() for k, v in net.drawn(1).items()}
    other = net.planted(model, 2)
    moved = align(net.graph, [model, other], "weight-matching").apply([model, other])[1]
    assert same(moved, model)


# Activation matching.


@pytest.mark.parametrize("similarity", ["correlation", "moment"])
@pytest.mark.parametrize("at", ["post-activation", "post-norm", "pre-activation"])
@pytest.mark.parametrize("stream", ["last", "pooled"])
def test_every_way_to_look_finds_what_was_planted(similarity: str, at: str, stream: str):
    net = build("conv-bn")
    model = net.drawn(1)
    models = [model, net.planted(model, 2)]
    found = net.align(models, "activation-matching", similarity=similarity, at=at, stream=stream)
    assert same(found.apply(models)[1], model)
    recorded = {key: found.settings[key] for key in ("similarity", "at", "stream")}
    assert recorded == {"similarity": similarity, "at": at, "stream": stream}


@pytest.mark.parametrize(
    "at",
    [
        "post-activation",
        "post-norm",
        "pre-activation",
    ],
)
@pytest.mark.parametrize("stream", ["last", "pooled"])
def test_heads_are_found_wherever_they_are_seen(at: str, stream: str):
    net = build("vit")
    model = net.drawn(1)
    models = [model, net.planted(model, 2)]
    found = net.align(models, "activation-matching", at=at, stream=stream)
    assert same(found.apply(models)[1], model)


@pytest.mark.parametrize("size", [1, 5, 48])
def test_orders_do_not_depend_on_batching(size: int):
    net = build("resnet")
    models = [net.drawn(seed) for seed in range(2)]
    whole = align(net.graph, models, data=[net.data])
    split = align(net.graph, models, data=[(x, torch.zeros(len(x))) for x in net.data.split(size)])
    assert same(whole.apply(models)[1], split.apply(models)[1])
    for ours, theirs in zip(whole.costs, split.costs, strict=True):
        assert ours.after == pytest.approx(theirs.after, rel=1e-9)


def test_a_limit_uses_the_first_examples():
    net = build("conv")
    models = [net.drawn(seed) for seed in range(2)]
    limited = align(net.graph, models, data=list(net.data.split(16)), limit=20)
    first = align(net.graph, models, data=[net.data[:20]])
    assert limited.settings["examples"] == 20
    assert same(limited.apply(models)[1], first.apply(models)[1])


def test_correlation_does_not_see_scale_and_the_moment_does():
    net = build("mlp")
    a, b = net.drawn(0), net.drawn(1)
    space = next(iter(net.graph.spaces.values()))
    writers = [m.key for m in space.members if m.role == "writes"]
    factor = torch.logspace(-2, 2, space.size, dtype=torch.float64)
    louder = {k: v * factor.view(-1, *[1] * (v.ndim - 1)) if k in writers else v for k, v in b.items()}
    by_similarity = {
        similarity: [
            net.align([a, m], "activation-matching", similarity=similarity).transports[1].orders[space.name]
            for m in (b, louder)
        ]
        for similarity in ("correlation", "moment")
    }
    assert torch.equal(*by_similarity["correlation"])
    assert not torch.equal(*by_similarity["moment"])


# What is wrong says so.


@pytest.mark.parametrize(
    ("by", "options", "words"),
    [
        ("weight-matchin", {}, "did you mean 'weight-matching'"),
        ("weight_matching", {}, "did you mean 'weight-matching'"),
        ("weight-matching", {"at": "x"}, "hint: it takes seed, restarts, max_sweeps"),
        ({"method": "weight-matching", "speed": 1, "noise": 2}, {}, "no option 'speed', 'noise'"),
        ("weight-matching", {"restarts": 0}, "must be at least 1"),
        ("weight-matching", {"max_sweeps": 0}, "must be at least 1"),
        ("weight-matching", {"reference": 2}, "reference model 2 of 2"),
        ("weight-matching", {"reference": -1}, "models are counted from 0"),
        ("activation-matching", {}, "hint: pass data="),
        ({}, {}, "no alignment is called ''"),
    ],
)
def test_wrong_options_have_hints(by: object, options: dict[str, object], words: str):
    net = build("mlp")
    with pytest.raises(InputError) as raised:
        align(net.graph, [net.drawn(0), net.drawn(1)], by, **options)  # type: ignore[arg-type]
    assert words in str(raised.value)


def test_options_may_come_with_the_name():
    net = build("mlp")
    models = [net.drawn(0), net.drawn(1)]
    found = align(net.graph, models, {"method": "weight-matching", "restarts": 2, "seed": 3}, seed=4)
    settings = {"seed": 4, "restarts": 2, "max_sweeps": 100, "memory": 1.0}
    assert {name: found.settings[name] for name in settings} == settings


@pytest.mark.parametrize(
    "by",
    [
        "weight-matching",
        "activation-matching",
    ],
)
def test_weights_of_other_shapes_are_refused(by: str):
    net = build("mlp")
    wrong = {k: v[:, :-1] if v.ndim == 2 else v for k, v in net.drawn(1).items()}
    with pytest.raises(MismatchError):
        net.align([net.drawn(0), wrong], by)


@by_both
def test_missing_weights_are_refused(by: str):
    net = build("mlp")
    missing = dict(list(net.drawn(1).items())[1:])
    with pytest.raises(MismatchError):
        net.align([net.drawn(0), missing], by)


def test_data_that_does_not_fit_is_refused():
    net = build("mlp")
    models = [net.drawn(0), net.drawn(1)]
    with pytest.raises(DataError, match=r"empty|no "):
        align(net.graph, models, data=[])
    with pytest.raises(DataError):
        align(net.graph, models, data=[torch.zeros(3, 9, dtype=torch.float64)])


def test_both_methods_are_in_the_table():
    assert set(METHODS) <= set(ALIGNMENTS.names())
    assert {m.name: m.needs for m in ALIGNMENTS.rows() if m.name in METHODS} == {
        "weight-matching": (),
        "activation-matching": ("data",),
    }


def test_modules_alone_have_their_symmetries_read():
    models = [MLP(d_in=6, widths=(width, 5), num_classes=3).eval() for width in (8, 8, 12)]
    data = [torch.randn(20, 6, generator=torch.Generator().manual_seed(0))]
    by = {"method": "weight-matching", "seed": 3}
    graph = isthmus.trace(models[0], data[0])
    told = str(align(graph, models[:2], by))
    assert told == str(align(models[:2], by=by, data=data)) == str(align(models[:2], by=by, example=data[0]))
    wide = align(models, by="transport", data=data, reference=2)
    assert {name: space.size for name, space in wide.graph.spaces.items()}["layers.0"] == 12
    for given, line in (
        ((models[:2],), "read with inputs, and there are none"),
        (([m.state_dict() for m in models],), "neither symmetries nor modules"),
        ((graph,), "symmetries but no models"),
    ):
        with pytest.raises(InputError, match=line):
            align(*given, by=by)
