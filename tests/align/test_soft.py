"""Methods that mix units: ZipIt!, CCA, optimal transport, matched averaging; on every kind of net."""

import copy
import math
from pathlib import Path

import pytest
import torch
from small_nets import Weights, build
from torch import Tensor, nn

import isthmus
from isthmus.align import Alignment, align
from isthmus.align.methods.matched_averaging import Process
from isthmus.align.mixed.coupling import couple
from isthmus.align.mixed.joint import joint, mixable
from isthmus.align.mixed.zipping import zipped
from isthmus.errors import DataError, InputError, MismatchError
from isthmus.maps import Dense, Membership, Permutation, Transport
from isthmus.zoo import MLP, VGG

NETS = ("mlp", "vgg", "vgg-bn", "resnet", "densenet", "depthwise", "vit")

#: Every way of mixing.
WAYS: dict[str, dict[str, object]] = {
    "zipit": {"method": "zipit"},
    "cca": {"method": "cca"},
    "transport by activations": {"method": "transport", "at": "post-activation"},
    "transport by weights": {"method": "transport", "by": "weights"},
    "matched-averaging": {"method": "matched-averaging"},
}


def output(merged: isthmus.Merged, data: Tensor) -> Tensor:
    assert merged.model is not None
    with torch.no_grad():
        return merged.model(data)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETS)
def test_a_network_merged_with_its_reordered_copies_is_the_network_at_any_weights(name: str, way: str):
    net = build(name)
    model = net.drawn(1)
    copies = [model, net.planted(model, 2), net.planted(model, 3)]
    for count, mixtures in ((2, ((0.9, 0.1), (0.5, 0.5), (0.1, 0.9))), (3, ((0.2, 0.3, 0.5),))):
        alignment = net.align(copies[:count], WAYS[way])
        for weights in mixtures:
            merged = isthmus.combine(alignment.apply(copies[:count], weights), weights=weights)
            torch.testing.assert_close(net.run(merged), net.run(model), rtol=1e-7, atol=1e-7)


class Again(nn.Module):
    """A layer that reads what it has written."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.again(torch.relu(self.again(torch.relu(self.first(x)))))))


class Fused(nn.Module):
    """One matrix that makes a value with its gate, and something else."""

    def __init__(self):
        super().__init__()
        self.all, self.gated, self.plain = nn.Linear(5, 18), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        value, gate, other = self.all(x).chunk(3, -1)
        return self.gated(value * torch.sigmoid(gate)) + self.plain(torch.relu(other))


class Recurrent(nn.Module):
    """What no linear operation writes: seen where it is read."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.unflatten(-1, (-1, 5)))[0][:, -1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [Again, Fused, Recurrent])
def test_units_are_told_apart_by_what_is_in_order(make: type[nn.Module], way: str):
    torch.manual_seed(0)
    net, data = make().double().eval(), torch.randn(64, 5 if make is not Recurrent else 20).double()
    graph = isthmus.trace(net, data[:2])
    model = dict(net.state_dict())
    models = [model, graph.random_element(3).only(graph.spaces).apply(graph, model)]
    how = {
        k: v for k, v in WAYS[way].items() if k != "at"
    }  # transport looks in front of activations by default
    merged = isthmus.merge(
        models, model=net, graph=graph, align=how, data=[data], weights=(0.3, 0.7), verify=False
    )
    torch.testing.assert_close(output(merged, data), net(data), rtol=1e-6, atol=1e-7)


class Tied(nn.Module):
    """A table of words that is the head as well, as in GPT-2 and BERT."""

    def __init__(self):
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        return self.head(self.norm(h + self.down(torch.relu(self.up(h)))))


@pytest.mark.parametrize("way", [*WAYS, "kept apart"])
def test_what_is_written_and_read_by_one_weight_is_only_reordered(way: str):
    torch.manual_seed(0)
    net = Tied().double().eval()
    data = torch.randint(0, 11, (40, 5))
    graph = isthmus.trace(net, data[:2])
    assert mixable(graph) == ("up",)
    model = dict(net.state_dict())
    models = [model, graph.random_element(1).only(graph.spaces).apply(graph, model)]
    # A unit that is added to its sum with itself where the weight is read would be twice as large.
    how = WAYS.get(way, {"method": "matched-averaging", "gamma": 1e9})
    merged = isthmus.merge(
        models, model=net, graph=graph, align=how, data=[data], weights=(0.3, 0.7), verify=False
    )
    torch.testing.assert_close(output(merged, data), net(data), rtol=1e-7, atol=1e-7)
    assert merged.alignment is not None and isinstance(
        merged.alignment.transports[1].maps["down"], Permutation
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["resnet", "densenet", "depthwise"])
def test_strangers_give_finite_weights_whose_variances_are_not_negative(name: str, way: str):
    net = build(name)
    models = [net.drawn(seed) for seed in (1, 2, 3)]
    how = {**WAYS[way], **({"gamma": 1e-3} if way == "matched-averaging" else {})}
    alignment = net.align(models, how)
    moved = alignment.apply(models, (0.2, 0.3, 0.5))
    for state in moved:
        assert all(bool(t.isfinite().all()) for t in state.values())
        assert all(bool((t >= 0).all()) for k, t in state.items() if k.endswith("running_var"))
    if all(t.shape == models[0][k].shape for k, t in moved[0].items()):
        assert net.run(isthmus.combine(moved, weights=(0.2, 0.3, 0.5))).isfinite().all()


@pytest.mark.parametrize("way", ["zipit", "cca", "transport by weights"])
def test_maps_are_saved_and_loaded(way: str, tmp_path: Path):
    net = build("vgg-bn")
    models = [net.drawn(1), net.drawn(2)]
    found = net.align(models, WAYS[way], **({"affine": True} if way == "cca" else {}))
    found.save(tmp_path / "m.safetensors")
    again = Alignment.load(tmp_path / "m.safetensors", net.graph)
    for ours, theirs in zip(again.apply(models, (0.3, 0.7)), found.apply(models, (0.3, 0.7)), strict=True):
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


# Groups of units.


def rows_of_a(alignment: Alignment, weights: tuple[float, ...], name: str) -> Tensor:
    maps = [t.maps[name] for t in alignment.weighted(weights)]
    return sum((w * m.matrices()[0].sum(1) for w, m in zip(weights, maps, strict=True)), torch.zeros(()))


def test_the_rows_of_a_sum_to_one_at_every_alpha_also_of_groups_of_one_models_units():
    net = build("mlp")
    models = [net.drawn(1), net.drawn(2)]
    alignment = net.align(models, by="zipit", beta=1.0, alpha=1.0)
    groups = [
        m.group for m in (alignment.transports[0].maps["layers.0"], alignment.transports[1].maps["layers.0"])
    ]  # type: ignore[union-attr]
    assert any(set(a.tolist()) - set(b.tolist()) for a, b in (groups, groups[::-1])), "no group of one model"
    for weights in ((0.5, 0.5), (0.1, 0.9), (0.9, 0.1)):
        for name in alignment.transports[0].maps:
            torch.testing.assert_close(
                rows_of_a(alignment, weights, name),
                torch.ones(()).double().expand(net.graph.spaces[name].size),
            )
    assert all(t.isfinite().all() for m in alignment.apply(models, (1.0, 0.0)) for t in m.values())


def counts(groups: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Group by model: how many units."""
    found = torch.zeros(int(groups.max()) + 1, len(sizes))
    for model, part in enumerate(groups.split(list(sizes))):
        found[:, model].index_add_(0, part, torch.ones(len(part)))
    return found[found.sum(1) > 0]


def correlations(sizes: tuple[int, ...], seed: int) -> Tensor:
    features = torch.randn(sum(sizes), 12, generator=torch.Generator().manual_seed(seed)).double()
    return torch.corrcoef(features)


@pytest.mark.parametrize("sizes", [(9, 9), (8, 8, 8), (6, 6, 6, 6, 6)])
@pytest.mark.parametrize("seed", range(5))
def test_without_a_budget_zipping_is_one_to_one(sizes: tuple[int, ...], seed: int):
    found = counts(zipped(correlations(sizes, seed), sizes, sizes[0], alpha=0.3, beta=0.0), sizes)
    assert len(found) == sizes[0] and (found == 1).all()


@pytest.mark.parametrize("sizes", [(12, 12), (10, 10, 10), (16, 8), (8, 16), (8, 16, 12)])
@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_as_many_groups_as_asked_for_within_the_budget(sizes: tuple[int, ...], beta: float):
    target = sizes[0]
    for seed in range(4):
        found = counts(zipped(correlations(sizes, seed), sizes, target, alpha=0.7, beta=beta), sizes)
        assert len(found) == target and found.sum(0).tolist() == list(sizes)
        within = (found - 1).clamp(min=0).sum(0)
        for model, size in enumerate(sizes):
            budget = max(0, size - target) + int(beta * (sum(sizes) - target) / len(sizes))
            assert beta == 1 or within[model] <= budget


def test_a_budget_is_used_where_units_of_one_model_are_most_alike():
    features = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).double()
    features[1] = features[0] + 0.01 * torch.randn(50).double()
    found = zipped(torch.corrcoef(features), (3, 3), 3, alpha=1.0, beta=1.0)
    assert found[0] == found[1]
    apart = zipped(torch.corrcoef(features), (3, 3), 3, alpha=1.0, beta=0.0)
    assert apart[0] != apart[1]


def test_a_low_alpha_keeps_groups_small():
    similarity = correlations((20, 20), 0).abs()
    largest = [
        int(counts(zipped(similarity.clone(), (20, 20), 20, alpha=a, beta=1.0), (20, 20)).sum(1).max())
        for a in (0.0, 1.0)
    ]
    assert largest[0] == 2 <= largest[1]


def test_the_optimal_pairing_is_at_least_as_good_as_the_greedy_one():
    net = build("mlp")
    models = [net.drawn(1), net.drawn(2)]
    spaces = mixable(net.graph)
    statistics = joint([net.graph] * 2, models, [net.data], spaces)[0]
    totals = {}
    for pairing, options in (("optimal", {}), ("greedy", {"beta": 0.0})):
        found = net.align(models, by="zipit", pairing=pairing, **options)
        totals[pairing] = 0.0
        for name in spaces:
            groups = torch.cat([t.maps[name].group for t in found.transports])  # type: ignore[union-attr]
            same = (groups[:, None] == groups[None]).double().fill_diagonal_(0)
            assert (same.sum(1) == 1).all(), "pairs"
            totals[pairing] += (same * statistics[name].correlation).sum().item()
    assert totals["optimal"] >= totals["greedy"] - 1e-9
    with pytest.raises(InputError, match="two models of equal widths"):
        net.align([*models, net.drawn(3)], by="zipit", pairing="optimal")


def test_groups_meet_by_average_alone():
    net = build("mlp")
    with pytest.raises(InputError, match="zipit groups units, so the models meet by weighted average"):
        net.merge([net.drawn(1), net.drawn(2)], align="zipit", combine={"method": "slerp"})


# Kept apart.


@pytest.mark.parametrize("way", ["zipit", "cca"])
@pytest.mark.parametrize("variant", ["junction", "paper"])
@pytest.mark.parametrize("name", ["vgg-bn", "resnet"])
def test_everything_kept_apart_is_the_ensemble_and_copies_stay_exact(name: str, variant: str, way: str):
    net = build(name)
    models = [net.drawn(1), net.drawn(2)]
    layers = net.graph.program.layers
    whole = net.merge(models, align=WAYS[way], preserve_first=layers, weights=(0.3, 0.7))
    ensemble = 0.3 * net.run(models[0]) + 0.7 * net.run(models[1])
    torch.testing.assert_close(output(whole, net.data), ensemble)
    copies = [models[0], net.planted(models[0], 1)]
    alignment = net.align(copies, WAYS[way])
    for cut in ({"preserve_first": 2}, {"preserve_last": 2}):
        merged = net.merge(copies, align=alignment, variant=variant, weights=(0.3, 0.7), **cut)
        torch.testing.assert_close(output(merged, net.data), net.run(models[0]), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("way", ["zipit", "cca"])
def test_branches_keep_their_own_coordinates_and_meet_through_a(way: str):
    net = build("mlp")
    models = [net.drawn(1), net.drawn(2)]
    merged = net.merge(models, align=WAYS[way], preserve_first=1, weights=(0.3, 0.7))
    alignment = merged.alignment
    assert alignment is not None
    maps = [t.maps["layers.0"].matrices()[0] for t in alignment.weighted((0.3, 0.7))]
    seen = [torch.relu(net.data @ m["layers.0.weight"].mT + m["layers.0.bias"]) for m in models]
    met = sum(w * x @ a.mT for w, x, a in zip((0.3, 0.7), seen, maps, strict=True))
    hidden = torch.relu(met @ merged.weights["layers.1.weight"].mT + merged.weights["layers.1.bias"])
    logits = hidden @ merged.weights["layers.2.weight"].mT + merged.weights["layers.2.bias"]
    torch.testing.assert_close(output(merged, net.data), logits)
    for branch, model in enumerate(models):
        assert torch.equal(merged.weights[f"branch{branch}.layers.0.weight"], model["layers.0.weight"])


def test_models_of_different_tasks_keep_their_heads(tmp_path: Path):
    torch.manual_seed(0)
    nets = [VGG((1, "M", 2), base=4, in_channels=1, num_classes=n).double().eval() for n in (3, 5)]
    nets[1].features.load_state_dict(nets[0].features.state_dict())
    data = build("vgg").data
    merged = isthmus.merge(nets, align="zipit", data=[data], preserve_last=1, outputs="each")
    answers = output(merged, data)
    assert isinstance(answers, tuple) and [a.shape[1] for a in answers] == [3, 5]
    for own, answer in zip(nets, answers, strict=True):
        torch.testing.assert_close(answer, own(data))
    merged.save(tmp_path / "tasks.safetensors")
    for ours, theirs in zip(
        isthmus.load(tmp_path / "tasks.safetensors", nets[0])(data), answers, strict=True
    ):
        assert torch.equal(ours, theirs)
    with pytest.raises(MismatchError):
        isthmus.merge(nets, align="activation-matching", data=[data], preserve_last=1, outputs="each")


def test_merged_models_are_merged_again():
    net = build("vgg")
    models = [net.drawn(seed) for seed in (1, 2, 3)]
    twice = [
        net.merge(models[:2], align="zipit", preserve_last=1),
        net.merge(models[1:], align="zipit", preserve_last=1),
    ]
    parts = [m.model for m in twice]
    assert all(p is not None for p in parts)
    again = isthmus.merge(parts, align="zipit", data=[net.data], preserve_last=1)
    assert output(again, net.data).shape == (48, 3) and bool(output(again, net.data).isfinite().all())
    one = isthmus.merge([parts[0], copy.deepcopy(parts[0])], align="zipit", data=[net.data])
    torch.testing.assert_close(output(one, net.data), output(twice[0], net.data))


# CCA.


def test_m_gives_the_model_the_covariance_of_the_reference_and_u_takes_it_back():
    net = build("vgg")
    models = [net.drawn(1), net.drawn(2)]
    found = net.align(models, by="cca", gamma=0.0, at="pre-activation")
    seen = joint([net.graph] * 2, models, [net.data], ["features.3"], at="pre-activation")[0]["features.3"]
    forward, backward = found.transports[1].maps["features.3"].matrices()
    torch.testing.assert_close(forward @ seen.block(1, 1) @ forward.mT, seen.block(0, 0))
    torch.testing.assert_close(backward @ forward, torch.eye(8).double())


@pytest.mark.parametrize("relative", [True, False])
def test_a_large_gamma_is_orthogonal_procrustes(relative: bool):
    net = build("vgg")
    models = [net.drawn(1), net.drawn(2)]
    found = net.align(models, by="cca", gamma=1e9, relative=relative)
    cross = joint([net.graph] * 2, models, list(net.data.split(16)), ["features.0"])[0]["features.0"].block(
        0, 1
    )
    left, _, right = torch.linalg.svd(cross)
    item = found.transports[1].maps["features.0"]
    assert isinstance(item, Dense)
    scale = item.forward.norm() / math.sqrt(4)
    torch.testing.assert_close(item.forward / scale, left @ right, rtol=1e-3, atol=1e-3)


def test_means_are_matched_where_asked():
    net = build("mlp")
    models = [net.drawn(1), net.drawn(2)]
    found = net.align(models, by="cca", affine=True, at="pre-activation")
    moved = found.apply(models)[1]
    ours, theirs = (net.data @ m["layers.0.weight"].mT + m["layers.0.bias"] for m in (models[0], moved))
    torch.testing.assert_close(theirs.mean(0), ours.mean(0))
    # Read back, the second layer is given what it was: M and U, t and u undo each other.
    before = net.data @ models[1]["layers.0.weight"].mT + models[1]["layers.0.bias"]
    there = found.transports[1].maps["layers.1"].matrices()[0]
    wanted = (before @ models[1]["layers.1.weight"].mT + models[1]["layers.1.bias"]) @ there.mT
    got = theirs @ moved["layers.1.weight"].mT + moved["layers.1.bias"]
    shift = found.transports[1].shifts["layers.1"].written
    torch.testing.assert_close(got, wanted + shift)
    with pytest.raises(InputError, match="cannot be shifted"):
        net.merge(models, align={"method": "cca", "affine": True}, preserve_first=1)


def test_a_singular_covariance_is_refused_with_its_samples_and_a_ridge_helps():
    net = build("mlp")
    models = [net.drawn(1), net.drawn(2)]
    few = [net.data[:5]]
    with pytest.raises(
        DataError, match=r"covariances are singular[\s\S]*directions do not vary \(5 samples\)"
    ):
        align(net.graph, models, "cca", data=few, gamma=0.0)
    found = align(net.graph, models, "cca", data=few, gamma=0.1)
    assert "layers.0: 5 samples of 8 units are few" in found.notes


def test_dead_units_are_counted_and_do_not_come_to_life():
    net = build("mlp")
    models = [net.drawn(1), net.drawn(2)]
    for model, unit in zip(models, (2, 5), strict=True):
        model["layers.0.weight"][unit] = 0
        model["layers.0.bias"][unit] = -1
    found = net.align(models, by="cca")
    assert any("1 dead units (no variance) in the reference, 1 in model 1" in note for note in found.notes)
    forward = found.transports[1].maps["layers.0"].matrices()[0]
    assert forward[2].argmax() == 5 and forward[2].abs().sum() < 1.01 * forward[2, 5]
    zipit = net.align(models, by="zipit")
    assert any("model 1: 1 dead units" in note or "dead units (no variance)" in note for note in zipit.notes)


# Optimal transport.


def test_exact_couplings_are_assignments_of_pot_and_of_scipy():
    cost = torch.rand(7, 7, generator=torch.Generator().manual_seed(0)).double()
    found = couple(cost)
    ones = torch.ones(7)
    assert isinstance(found.map(), Permutation)
    assert found.cost == pytest.approx(couple(cost, ones, ones).cost)
    soft = couple(cost, solver="sinkhorn", regularization=0.2)
    sharp = couple(cost, solver="sinkhorn", regularization=0.01, iterations=20000)
    assert found.cost <= sharp.cost + 1e-9 <= soft.cost + 2e-9 and sharp.error < 1e-6
    assert sharp.cost == pytest.approx(found.cost, rel=0.05)


@pytest.mark.parametrize("shape", [(6, 4), (4, 8), (5, 5)])
@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
def test_columns_of_a_and_rows_of_b_are_averages(shape: tuple[int, int], solver: str):
    generator = torch.Generator().manual_seed(1)
    cost = torch.rand(*shape, generator=generator).double()
    masses = [0.5 + torch.rand(n, generator=generator).double() for n in shape]
    found = couple(cost, *masses, solver=solver)
    torch.testing.assert_close(found.plan.sum(1), masses[0] / masses[0].sum())
    torch.testing.assert_close(found.plan.sum(0), masses[1] / masses[1].sum())
    item = found.map()
    forward, backward = item.matrices()
    torch.testing.assert_close(forward.sum(1), torch.ones(shape[1]).double())
    torch.testing.assert_close(backward.sum(1), torch.ones(shape[0]).double())


def test_biases_do_not_tell_units_apart_by_weights():
    model = MLP(d_in=6, widths=(8, 8), num_classes=3)
    graph = isthmus.trace(model, torch.randn(2, 6))
    element = graph.random_element(1).only(graph.spaces)
    other = element.apply(graph, model.state_dict())
    for key in ("layers.0.bias", "layers.1.bias"):
        other[key] = 100 * torch.randn(8)
    found = align(graph, [model, other], {"method": "transport", "by": "weights"}).transports[1]
    back = element.inverse(graph)
    assert all(torch.equal(found.orders[name], order) for name, order in back.orders.items())


def test_unbalanced_transport_leaves_the_expensive_behind():
    cost = torch.ones(3, 3).double() - torch.eye(3)
    cost[2] += 5
    bound = couple(cost, solver="sinkhorn", regularization=0.02)
    free = couple(cost, solver="sinkhorn", regularization=0.02, unbalanced=0.1)
    assert bound.plan[2].sum() == pytest.approx(1 / 3) and free.plan[2].sum() < 0.01
    with pytest.raises(InputError, match="unbalanced"):
        couple(cost, unbalanced=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "sinkhorn", "regularization": 0.0}, "is not positive"),
    ],
)
def test_bad_options_of_a_coupling(options: dict[str, object], words: str):
    with pytest.raises(InputError, match=words):
        couple(torch.rand(3, 3), **options)  # type: ignore[arg-type]


def doubled(model: MLP, wide: MLP) -> Weights:
    """The weights of a network of twice the width that computes the same: every unit twice, in another order."""
    state = model.state_dict()
    result = {}
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    for key, value in wide.state_dict().items():
        given = state[key]
        if value.shape[0] == 2 * given.shape[0]:
            given = given.repeat(2, *[1] * (given.ndim - 1))[order]
        if given.ndim == 2 and value.shape[1] == 2 * given.shape[1]:
            given = given.repeat(1, 2)[:, order] / 2
        result[key] = given
    return result


@pytest.mark.parametrize(
    "way",
    [
        {"method": "transport", "by": "weights"},
        {"method": "transport", "by": "activations"},
        {"method": "zipit"},
    ],
    ids=lambda way: " ".join(way.values()),
)
@pytest.mark.parametrize("reference", [0, 1])
def test_a_network_of_twice_the_units_becomes_the_narrow_one_and_back(way: dict[str, str], reference: int):
    torch.manual_seed(0)
    narrow, wide = (MLP(d_in=6, widths=(w, w), num_classes=3).double().eval() for w in (4, 8))
    wide.load_state_dict(doubled(narrow, wide))
    data = torch.randn(60, 6).double()
    torch.testing.assert_close(narrow(data), wide(data))
    merged = isthmus.merge([narrow, wide], align=way, data=[data], reference=reference, weights=(0.3, 0.7))
    assert merged.weights["layers.0.weight"].shape == ([narrow, wide][reference].layers[0].weight.shape)
    torch.testing.assert_close(output(merged, data), narrow(data))


class Heads(nn.Module):
    """Attention on a residual stream, and hidden units of any number behind it."""

    def __init__(self, hidden: int):
        super().__init__()
        self.stem, self.qkv, self.out = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down, self.norm = nn.Linear(8, hidden), nn.Linear(hidden, 8), nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(self.norm(x.transpose(1, 2)).mean(2))


@pytest.mark.parametrize("way", ["transport", "zipit", "matched-averaging"])
@pytest.mark.parametrize("reference", [0, 1])
def test_heads_and_groups_are_matched_beside_other_widths(way: str, reference: int):
    torch.manual_seed(0)
    narrow, wide = (Heads(hidden).double().eval() for hidden in (6, 12))
    state = {key: value.clone() for key, value in narrow.state_dict().items()}
    state |= {key: state[key].repeat(2, *[1] * (state[key].ndim - 1)) for key in ("up.weight", "up.bias")}
    state["down.weight"] = state["down.weight"].repeat(1, 2) / 2
    data = torch.randn(60, 7, 5).double()
    graph = isthmus.trace(wide, data[:2])
    drawn = torch.Generator().manual_seed(1)
    maps = {
        name: Permutation(
            torch.rand(*[graph.spaces[n].size for n in s.within], s.size, generator=drawn).argsort(-1)
        )
        for name, s in graph.spaces.items()
    }
    wide.load_state_dict(Transport(graph, maps).apply(state))
    torch.testing.assert_close(narrow(data), wide(data))
    models = [narrow, wide]
    merged = isthmus.merge(models, align=way, data=[data], reference=reference, weights=(0.3, 0.7))
    torch.testing.assert_close(output(merged, data), narrow(data))


def test_methods_of_equal_widths_say_so_and_structures_must_be_the_same():
    narrow, wide, deep = (
        MLP(d_in=6, widths=w, num_classes=3).double().eval() for w in ((4, 4), (8, 8), (4,))
    )
    data = build("mlp").data
    graphs = [isthmus.trace(m, data[:2]) for m in (narrow, wide, deep)]
    with pytest.raises(InputError, match=r"equal widths[\s\S]*transport"):
        align(graphs[:2], [narrow, wide], "activation-matching", data=[data])
    with pytest.raises(MismatchError, match="not of one structure"):
        align([graphs[0], graphs[2]], [narrow, deep], "transport", data=[data])
    with pytest.raises(MismatchError):
        isthmus.merge([narrow, wide], align="weight-matching", example=data[:2])
    with pytest.raises(InputError, match="nothing can be kept apart"):
        isthmus.merge([narrow, wide], align="transport", data=[data], preserve_first=1)


@pytest.mark.parametrize("mass", ["l1", "l2"])
def test_importance_and_sinkhorn_give_soft_maps_that_reset_can_use(mass: str):
    net = build("vgg-bn")
    models = [net.drawn(1), net.drawn(2)]
    merged = net.merge(
        models, align={"method": "transport", "mass": mass, "solver": "sinkhorn"}, repair="reset"
    )
    assert isinstance(merged.alignment.transports[1].maps["features.0"], Dense)
    assert output(merged, net.data).isfinite().all()


# Matched averaging.


def matched(clients: list[Tensor], gamma: float, sweeps: int = 3) -> list[Tensor]:
    return Process(gamma=gamma).match(clients, sweeps, torch.Generator().manual_seed(0))[0]


def test_one_client_is_itself_and_identical_clients_do_not_grow():
    units = 2 * torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).double()
    assert matched([units], 1e-3)[0].sort().values.tolist() == list(range(6))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    first, second = matched([units, units[order]], 1e-3)
    assert torch.equal(first[order], second)


def test_a_huge_gamma_keeps_every_unit_apart_and_the_network_is_the_average_of_both():
    net = build("vgg")
    models = [net.drawn(1), net.drawn(2)]
    merged = net.merge(models, align={"method": "matched-averaging", "gamma": 1e12}, weights=(0.3, 0.7))
    assert merged.weights["features.0.weight"].shape[0] == 8
    torch.testing.assert_close(output(merged, net.data), 0.3 * net.run(models[0]) + 0.7 * net.run(models[1]))


def test_a_grown_network_is_saved_and_loaded(tmp_path: Path):
    net = build("resnet")
    merged = net.merge([net.drawn(1), net.drawn(2)], align={"method": "matched-averaging", "gamma": 1e12})
    merged.save(tmp_path / "grown.safetensors")
    again = isthmus.load(tmp_path / "grown.safetensors", net.model)
    torch.testing.assert_close(again(net.data), output(merged, net.data))


def test_averages_by_count_mode_and_paper_differ_by_the_mass_of_what_few_hold():
    net = build("mlp")
    models = [net.drawn(1), net.drawn(2)]
    mass = {}
    for average in ("count", "map", "paper"):
        found = net.align(models, by="matched-averaging", gamma=1e12, average=average)
        item = found.transports[0].maps["layers.0"]
        assert isinstance(item, Membership)
        mass[average] = rows_of_a(found, (0.5, 0.5), "layers.0")[0].item()
    assert mass == {"count": 1.0, "map": pytest.approx(0.5), "paper": pytest.approx(0.5)}


@pytest.mark.parametrize(
    "how",
    [
        {"method": "matched-averaging", "gamma": 0.0},
        {"method": "zipit", "alpha": 2.0},
        {"method": "cca", "gamma": -1.0},
        {"method": "transport", "by": "weights", "metric": "correlation"},
        {"method": "transport", "sweeps": 0},
    ],
    ids=str,
)
def test_bad_options_are_refused(how: dict[str, object]):
    net = build("mlp")
    with pytest.raises(InputError):
        net.align([net.drawn(1), net.drawn(2)], how)
