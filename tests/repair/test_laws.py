"""What every repair promises, on every kind of network, in float64."""

import pytest
import torch
from torch import nn

from isthmus.features import Request, collect
from isthmus.program import Batch, Cut, keep_apart
from isthmus.repair import goals, repair, repairable, rescale, reset
from isthmus.repair import tape as tape_module
from isthmus.repair.writers import writer_of

PLAIN = ("mlp", "linear", "vgg", "vgg-ln", "resnet", "resnet-ln", "vit")
NORMED = ("vgg-bn", "resnet-bn", "mobilenet")
METHODS = (repair, rescale)

plain = pytest.mark.parametrize("net", PLAIN, indirect=True)
normed = pytest.mark.parametrize("net", NORMED, indirect=True)
every = pytest.mark.parametrize("net", PLAIN + NORMED, indirect=True)
both = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)


def close(a, b, tolerance=1e-9):
    assert a.shape == b.shape
    assert a.isfinite().all()
    assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-30)


def same_weights(a, b, tolerance=1e-9):
    assert a.keys() == b.keys()
    for key in a:
        if a[key].is_floating_point():
            close(a[key], b[key], tolerance)
        else:
            assert torch.equal(a[key], b[key])


def merged_goals(net, data=None):
    return goals(net.program, net.weights, [0.5, 0.5], [net.data] if data is None else data)


def statistics(program, weights, data, values):
    requests = [Request(v, writer_of(program, v).axis) for v in values]
    return collect(program, [weights], data, requests)


# Repair of a model that was not merged is the identity.


@every
@both
def test_an_unmerged_model_is_left_alone_by_a_joint_pass_over_one_batch(net, method):
    own = net.weights[0]
    to = goals(net.program, [own], [1.0], [net.data])
    result = method(net.program, own, [net.data], goals=to, norms="keep")
    assert len(result.changed) == len(repairable(net.program))
    same_weights(result.weights, own)


@every
@both
@pytest.mark.parametrize("size", [5, 1])
def test_an_unmerged_model_is_left_alone_by_a_sequential_pass_over_any_batches(net, method, size):
    own = net.weights[0]
    data = net.data[:9].split(size)
    to = goals(net.program, [own, own, own], [0.2, 0.5, 0.3], data)
    result = method(net.program, own, data, goals=to, norms="keep", mode="sequential")
    same_weights(result.weights, own)


@both
def test_an_unmerged_model_is_left_alone_in_float32_up_to_rounding(get_net, method):
    net = get_net("vgg-ln")
    own = {k: v.float() for k, v in net.weights[0].items()}
    data = net.data.float().split(7)
    to = goals(net.program, [own], [1.0], data)
    result = method(net.program, own, data, goals=to, mode="sequential")
    same_weights(result.weights, own, 2e-5)


# The goals are reached.


@plain
def test_a_sequential_repair_reaches_mean_and_std_of_every_layer_that_has_a_bias(net):
    to = merged_goals(net)
    result = repair(net.program, net.average, net.data.split(7), goals=to, mode="sequential")
    assert set(result.changed) == set(to)
    found = statistics(net.program, result.weights, [net.data], to)
    for value, goal in to.items():
        assert result.changed[value].kind == "scale and shift"
        close(found[value].mean[0], goal.mean, 1e-6)
        close(found[value].std[0], goal.std, 1e-6)


@plain
def test_a_sequential_rescale_reaches_the_std_and_multiplies_the_mean_along(net):
    to = merged_goals(net)
    result = rescale(net.program, net.average, net.data.split(7), goals=to, mode="sequential")
    found = statistics(net.program, result.weights, [net.data], to)
    for value, goal in to.items():
        close(found[value].std[0], goal.std, 1e-6)
    first = next(iter(to))
    before = statistics(net.program, net.average, [net.data], [first])[first]
    close(found[first].mean[0] / found[first].std[0], before.mean[0] / before.std[0], 1e-6)
    assert result.changed[first].kind == "scale"
    assert result.scale_only == ()  # it is not that a shift was missed


@plain
@both
def test_a_joint_pass_over_one_batch_is_the_sequential_one(net, method):
    to = merged_goals(net)
    joint = method(net.program, net.average, [net.data], goals=to)
    sequential = method(net.program, net.average, [net.data], goals=to, mode="sequential")
    same_weights(joint.weights, sequential.weights, 1e-6)  # they differ by eps, layer after layer


@pytest.mark.parametrize("net", ["mlp", "vgg-ln", "resnet-bn", "vit"], indirect=True)
def test_a_sequential_pass_does_not_depend_on_batching_or_on_what_is_held(net, monkeypatch):
    data = net.data[:9]
    to = merged_goals(net)
    whole = repair(net.program, net.average, [data], goals=to, mode="sequential")
    for hold, size in ((2**30, 1), (20_000, 4), (0, 5)):
        monkeypatch.setattr(tape_module, "HOLD", hold)
        split = repair(net.program, net.average, data.split(size), goals=to, mode="sequential")
        same_weights(split.weights, whole.weights)
        assert split.batch_size == size


def test_holding_activations_saves_running_from_the_start(get_net, monkeypatch):
    net = get_net("vgg-ln")
    to = merged_goals(net)
    reads = []

    class Counted:
        def __iter__(self):
            reads.append(1)
            return iter(net.data.split(8))

    repair(net.program, net.average, Counted(), goals=to, mode="sequential")
    assert len(reads) == 1
    monkeypatch.setattr(tape_module, "HOLD", 0)
    repair(net.program, net.average, Counted(), goals=to, mode="sequential")
    assert len(reads) == 1 + len(to)


# RESET.


class Recorder:
    """What torch itself estimates in train mode with momentum=None, and what its norms saw."""

    def __init__(self, net, weights, data):
        import copy

        model = copy.deepcopy(net.model)
        model.load_state_dict(weights)
        norms = {k: m for k, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        self.seen = {name: [] for name in norms}
        for name, norm in norms.items():
            norm.reset_running_stats()
            norm.momentum = None
            norm.register_forward_hook(
                lambda m, args, out, name=name: self.seen[name].append(args[0].detach())
            )
        with torch.no_grad():
            for batch in data:
                model.train()(batch)
        self.estimates = {k: v for k, v in model.state_dict().items() if "running" in k}


@normed
def test_reset_on_one_batch_is_torchs_own_re_estimation(net):
    result = reset(net.program, net.average, [net.data])
    torchs = Recorder(net, net.average, [net.data]).estimates
    for key, value in result.weights.items():
        if "running" in key:
            close(value, torchs[key])
        else:
            assert value is net.average[key] or torch.equal(value, net.average[key])


@normed
def test_reset_on_several_batches_pools_all_samples_where_torch_averages_batches(net):
    data = net.data.split(6)
    result = reset(net.program, net.average, data)
    torchs = Recorder(net, net.average, data)
    assert (result.examples, result.batch_size) == (24, 6)
    for name, seen in torchs.seen.items():
        mean, variance = result.weights[f"{name}.running_mean"], result.weights[f"{name}.running_var"]
        # Batches of one size: the means agree. The variance has, besides that within the batches, which
        # is what torch averages, the one between their means.
        close(mean, torchs.estimates[f"{name}.running_mean"])
        samples = torch.cat(seen).movedim(1, 0).flatten(1)
        close(variance, samples.var(1))
        batch = seen[0].movedim(1, 0).flatten(1)[0].numel()
        means = torch.stack([x.movedim(1, 0).flatten(1).mean(1) for x in seen])
        within = torchs.estimates[f"{name}.running_var"] * (batch - 1)
        between = batch * means.var(0, correction=0)
        close(variance, (within + between) * len(seen) / (batch * len(seen) - 1))


@normed
def test_a_sequential_reset_makes_every_statistic_the_true_one(net):
    result = reset(net.program, net.average, net.data.split(7), mode="sequential")
    norms = [n for n in net.program.graph.nodes if str(n.target) == "aten.batch_norm.default"]
    found = collect(net.program, [result.weights], [net.data], [Request(n.args[0].name, 1) for n in norms])
    for node in norms:
        stats = found[node.args[0].name]
        keys = [net.program.weights[node.args[i].name] for i in (3, 4)]
        close(result.weights[keys[0]], stats.mean[0])
        close(result.weights[keys[1]], stats.variance[0] * stats.samples / (stats.samples - 1))


@normed
def test_reset_of_reset_changes_nothing(net):
    once = reset(net.program, net.average, [net.data])
    same_weights(reset(net.program, once.weights, [net.data]).weights, once.weights)


def test_a_norm_that_is_called_twice_pools_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x, y):
            return self.norm(x), self.norm(y)

    from isthmus.program import export

    x, y = torch.randn(2, 8, 3)
    program = export(Twice(), (x, y))
    for mode in ("joint", "sequential"):
        result = reset(program, Twice().state_dict(), [((x, y), None)], mode=mode)
        close(result.weights["norm.running_mean"], torch.cat([x, y]).mean(0), 1e-5)
        close(result.weights["norm.running_var"], torch.cat([x, y]).var(0), 1e-5)
        assert len(result.changed) == 1


# Batch norms behind repaired layers.


@pytest.mark.parametrize("net", ["vgg-bn", "resnet-bn"], indirect=True)
@both
@pytest.mark.parametrize("mode", ["joint", "sequential"])
def test_on_a_net_with_batch_norms_throughout_a_repair_is_a_reset(net, method, mode):
    """A gain in front of a norm with fresh statistics is divided out again (up to the norm's eps)."""
    repaired = method(net.program, net.average, net.data.split(12), goals=merged_goals(net), mode=mode)
    only = reset(net.program, net.average, net.data.split(12), mode=mode)
    # eps = 1e-5 is not scaled along; nothing else differs.
    close(net.run(repaired.weights), net.run(only.weights), 1e-2)
    assert {c.kind for c in repaired.changed.values()} >= {"statistics"}


@normed
def test_kept_norms_take_the_shift_of_a_convolution_without_bias(net):
    to = merged_goals(net)
    result = repair(net.program, net.average, [net.data], goals=to, norms="keep", mode="sequential")
    assert result.scale_only == ()
    for value, change in result.changed.items():
        assert any("running_mean" in key for key in change.into)
        assert not any("running_var" in key for key in change.into)
        node = net.program.nodes[value]
        (norm,) = node.users
        # Where the convolution's own output may not be shifted, the norm reads it as if it were.
        key = net.program.weights[norm.args[3].name]
        moved = net.average[key] - result.weights[key]
        mean = statistics(net.program, result.weights, [net.data], [value])[value].mean[0]
        close(mean + moved, to[value].mean, 1e-6)


# Parts kept apart.


@pytest.mark.parametrize("net", ["vgg", "vgg-bn", "resnet-ln", "vit"], indirect=True)
@pytest.mark.parametrize("variant", ["junction", "paper"])
def test_kept_apart_branches_are_not_touched(net, variant):
    if variant == "paper" and not net.name.startswith("vgg"):
        pytest.skip("the paper's variant is for plain networks here")
    program, _ = keep_apart(net.program, Cut(preserve_first=2, variant=variant), [0.5, 0.5])
    merged = {}
    for key in program.weights.values():
        branch, _, rest = key.partition(".")
        merged[key] = net.weights[int(branch[-1])][rest] if branch.startswith("branch") else net.average[key]
    to = merged_goals(net)
    methods = [repair, rescale] + [reset] * (net.name == "vgg-bn")
    for method in methods:
        arguments = {} if method is reset else {"goals": to}
        result = method(program, merged, net.data.split(8), **arguments)
        assert {v for v, why in result.skipped.items() if "kept apart" in why} == {
            name
            for name, node in program.nodes.items()
            if name.startswith("branch")
            and ("norm.default" in str(node.target) if method is reset else writer_of(program, name))
            and "layer_norm" not in str(node.target)
        }
        changed = {key for key in merged if not torch.equal(merged[key], result.weights[key])}
        assert changed
        assert not any(key.startswith("branch") for key in changed)
        assert net.run(result.weights, program).isfinite().all()
    if net.name != "vgg-bn":
        result = repair(program, merged, net.data.split(8), goals=to, mode="sequential")
        values = repairable(program)
        found = statistics(program, result.weights, [net.data], values)
        for value in values:
            close(found[value].mean[0], to[value].mean, 1e-6)
            close(found[value].std[0], to[value].std, 1e-6)


# Never silently wrong.


@every
@pytest.mark.parametrize("mode", ["joint", "sequential"])
def test_dead_channels_and_constant_inputs_give_finite_weights(net, mode):
    dead = [{k: v.clone() for k, v in w.items()} for w in (*net.weights, net.average)]
    for index, weights in enumerate(dead):
        for value in repairable(net.program):
            weight = weights[net.program.weights[writer_of(net.program, value).weight]]
            weight[index] = 0  # another channel is dead in each model, and in the merged one
            weight[-1] = 0
    for data in ([net.data], [torch.zeros_like(net.data)], [net.data[:1].expand(4, *net.data.shape[1:])]):
        to = goals(net.program, dead[:2], [0.5, 0.5], data)
        for method in METHODS:
            result = method(net.program, dead[2], data, goals=to, mode=mode)
            assert all(v.isfinite().all() for v in result.weights.values())
            assert net.run(result.weights).isfinite().all()
    assert result.clamped >= 0


def test_clamped_gains_are_counted(get_net):
    net = get_net("mlp")
    weak = {k: v * 1e-3 for k, v in net.average.items()}
    to = merged_goals(net)
    result = rescale(net.program, weak, [net.data], goals=to)
    assert result.clamped == 14
    assert all(change.gain == (100.0, 100.0, 100.0) for change in result.changed.values())
    assert rescale(net.program, weak, [net.data], goals=to, max_gain=1e6).clamped == 0
    assert "14 gains clamped" in str(result)


@pytest.mark.parametrize("method", [repair, rescale])
@pytest.mark.parametrize("mode", ["joint", "sequential"])
def test_a_constant_channel_keeps_its_scale(get_net, method, mode):
    net = get_net("mlp")
    dead = dict(net.average)
    dead["layers.0.weight"] = torch.cat(
        [torch.zeros_like(dead["layers.0.weight"][:1]), dead["layers.0.weight"][1:]]
    )
    dead["layers.0.bias"] = torch.cat([dead["layers.0.bias"].new_full((1,), 0.5), dead["layers.0.bias"][1:]])
    goal = merged_goals(net)
    result = method(net.program, dead, [net.data], goals=goal, mode=mode)
    offset = goal["linear"].mean[0] if method is repair else 0.5
    assert result.weights["layers.0.bias"][0] == pytest.approx(float(offset)) and result.clamped >= 1


def test_the_models_are_left_alone_and_what_did_not_change_is_the_same_tensor(get_net):
    net = get_net("vgg-bn")
    given = {**net.average, "something.else": torch.ones(2)}
    before = {k: v.clone() for k, v in given.items()}
    for result in (
        reset(net.program, given, [net.data]),
        repair(net.program, given, [net.data], goals=merged_goals(net)),
    ):
        assert list(result.weights) == list(given)
        assert all(torch.equal(before[k], given[k]) for k in given)
        assert result.weights["something.else"] is given["something.else"]
        assert result.weights["classifier.weight"] is given["classifier.weight"]
        assert all(result.weights[k] is v for k, v in given.items() if "num_batches_tracked" in k)
        net.model.load_state_dict({k: v for k, v in result.weights.items() if k != "something.else"})


def test_weights_keep_their_dtype(get_net):
    net = get_net("mlp")
    narrow = {k: v.bfloat16() for k, v in net.average.items()}
    result = repair(net.program, narrow, [net.data], goals=merged_goals(net), mode="sequential")
    assert all(v.dtype == torch.bfloat16 for v in result.weights.values())


def test_the_program_runs_what_was_repaired(get_net):
    net = get_net("vit")
    result = repair(net.program, net.average, [net.data], goals=merged_goals(net))
    close(result.module()(net.data), net.run(result.weights))
    out = net.program.compile()(result.weights, Batch((net.data,), {}))
    close(out, net.run(result.weights))
