"""Which layers are repaired, what goals are, and what is said when something is wrong."""

import pytest
import torch
from torch import nn

from isthmus.errors import DataError, InputError, MismatchError
from isthmus.program import Cut, export, keep_apart
from isthmus.repair import Goal, goals, goals_of, moments, repair, repairable, rescale, reset


def own_goals(net):
    return goals(net.program, net.weights, [0.5, 0.5], [net.data])


# Which layers.


@pytest.mark.parametrize("net", ["vgg", "vit", "resnet-bn", "mlp"], indirect=True)
def test_all_layers_but_the_logits_are_repaired_by_default(net):
    layers = [n.name for n in net.program.graph.nodes if net.program.linear_weight(n) is not None]
    assert list(repairable(net.program)) == layers[:-1]
    result = rescale(net.program, net.average, [net.data], goals=own_goals(net))
    assert result.skipped == {layers[-1]: "it is an output of the model"}


def test_logits_are_recognised_through_views():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(4, 2)

        def forward(self, x):
            h = self.a(x)
            return {"one": self.b(h).view(-1, 2, 3).transpose(1, 2), "two": (self.c(h),), "inner": h * 2}

    program = export(Viewed(), torch.randn(2, 4))
    assert repairable(program) == ("linear",)
    assert repairable(program, ["linear_1", "c"]) == ("linear_1", "linear_2")  # asked for by name


def test_layers_are_names_or_globs_of_modules(get_net):
    net = get_net("resnet-ln")
    of = net.program.module_of
    inner = repairable(net.program, ["layer*.conv1", "layer*.conv2"])
    assert {of(value).split(".")[-1] for value in inner} == {"conv1", "conv2"}
    assert repairable(net.program, "layer1") == repairable(net.program, ["layer1.0.conv*"])
    assert repairable(net.program, ["conv2d_2", "stem"]) == ("conv2d", "conv2d_2")
    result = repair(net.program, net.average, [net.data], goals=own_goals(net), layers=(v for v in inner))
    assert tuple(result.changed) == inner
    with pytest.raises(InputError, match=r"(?s)2 names match no layer.*'layer9'.*'nothing'.*hint: .*'stem'"):
        repair(
            net.program, net.average, [net.data], goals=own_goals(net), layers=["stem", "layer9", "nothing"]
        )


def test_reset_takes_layers_too_and_the_other_norms_keep_their_statistics(get_net):
    net = get_net("vgg-bn")
    result = reset(net.program, net.average, [net.data], layers=["features.1"])
    assert [change.module for change in result.changed.values()] == ["features.1"]
    changed = {k for k in result.weights if not torch.equal(result.weights[k], net.average[k])}
    assert changed == {"features.1.running_mean", "features.1.running_var"}


def test_only_norms_behind_repaired_layers_are_refreshed(get_net):
    net = get_net("vgg-bn")
    last = repairable(net.program)[-1]
    result = rescale(net.program, net.average, [net.data], goals=own_goals(net), layers=[last])
    assert [change.kind for change in result.changed.values()] == ["scale", "statistics"]
    assert [change.module for change in result.changed.values()] == ["features.26", "features.27"]


def test_where_everything_is_kept_apart_there_is_nothing_to_do(get_net):
    net = get_net("vgg-bn")
    layers = net.program.layers
    program, _ = keep_apart(net.program, Cut(preserve_first=layers - 1), [0.5, 0.5])
    merged = {
        key: net.weights[int(key[6])][key[8:]] if key.startswith("branch") else net.average[key]
        for key in program.weights.values()
    }
    for result in (
        reset(program, merged, [net.data]),
        repair(program, merged, [net.data], goals=own_goals(net)),
    ):
        assert result.changed == {}
        assert result.weights == merged
        assert len(result.skipped) >= 2 * (layers - 1)


# Goals.


def test_goals_average_standard_deviations_not_variances(get_net):
    net = get_net("mlp")
    found = moments(net.program, net.weights, [net.data])
    for shares in ((0.5, 0.5), (0.2, 0.8), (1.0, 0.0)):
        by = goals_of(found, shares)
        for value, goal in by.items():
            stats = found[value]
            assert torch.allclose(goal.mean, shares[0] * stats.mean[0] + shares[1] * stats.mean[1])
            assert torch.allclose(goal.std, shares[0] * stats.std[0] + shares[1] * stats.std[1])
    with pytest.raises(InputError, match=r"shares \(0.5, 0.6\) do not weigh 2 models"):
        goals_of(found, (0.5, 0.6))
    with pytest.raises(InputError, match="do not weigh 2 models"):
        goals(net.program, net.weights, [1.0], [net.data])
    with pytest.raises(InputError, match=r"(?s)2 values are no outputs.*relu.*nowhere"):
        goals(net.program, net.weights, [0.5, 0.5], [net.data], ["linear", "relu", "nowhere"])


def test_any_number_of_models_has_goals(get_net):
    net = get_net("mlp")
    models = [*net.weights, net.average]
    found = goals(net.program, models, [0.2, 0.3, 0.5], [net.data])
    result = repair(net.program, net.average, [net.data], goals=found, mode="sequential")
    again = goals(net.program, [result.weights], [1.0], [net.data])
    assert all(torch.allclose(again[v].std, goal.std, rtol=1e-6) for v, goal in found.items())


def test_layers_without_a_goal_are_counted(get_net):
    net = get_net("mlp")
    only = goals(net.program, net.weights, [0.5, 0.5], [net.data], ["linear_1"])
    result = repair(net.program, net.average, [net.data], goals=only)
    assert result.skipped["linear"] == "no goal was given for it"
    assert list(result.changed) == ["linear_1"]


# What is said when something is wrong.


def test_goals_that_do_not_fit_are_all_named(get_net):
    net = get_net("mlp")
    one = torch.ones(8, dtype=torch.float64)
    wrong = {"linear": Goal(one[:5], one[:5]), "linear_1": Goal(one[:6], -one[:6])}
    with pytest.raises(
        MismatchError, match=r"(?s)2 goals.*linear: 8 channels, a goal for 5.*linear_1: .*negative"
    ):
        repair(net.program, net.average, [net.data], goals=wrong)
    wrong = {"linear": Goal(one, one * float("nan"))}
    with pytest.raises(MismatchError, match="not finite"):
        repair(net.program, net.average, [net.data], goals=wrong)
    with pytest.raises(InputError, match=r"(?s)no goals to repair to.*hint: isthmus.repair.goals"):
        repair(net.program, net.average, [net.data], goals={})


def test_a_model_without_batch_norms_cannot_be_reset(get_net):
    net = get_net("vgg-ln")
    with pytest.raises(InputError, match=r"(?s)no batch normalisation.*hint: 'rescale' and 'repair'"):
        reset(net.program, net.average, [net.data])


def test_options_out_of_range(get_net):
    net = get_net("mlp")
    to = own_goals(net)
    for wrong in ({"max_gain": 0.0}, {"eps": -1.0}):
        with pytest.raises(InputError, match="out of range"):
            repair(net.program, net.average, [net.data], goals=to, **wrong)


@pytest.mark.parametrize("mode", ["joint", "sequential"])
def test_data_that_cannot_be_used(get_net, mode):
    net = get_net("vgg-bn")
    to = own_goals(net)
    for run in (
        lambda data: reset(net.program, net.average, data, mode=mode),
        lambda data: repair(net.program, net.average, data, goals=to, mode=mode),
    ):
        with pytest.raises(DataError, match="empty"):
            run([])
        with pytest.raises(
            DataError, match=r"(?s)batch 1: input x is \(3, 3, 8, 8\).* traced with \(batch, 1, 8"
        ):
            run([net.data, torch.randn(3, 3, 8, 8)])
        with pytest.raises(DataError, match=r"(?s)activations are not finite\n  conv2d\n"):
            run([net.data, net.data * float("nan")])


def test_an_iterator_is_enough_where_one_pass_is(get_net):
    net = get_net("mlp")
    to = own_goals(net)
    for mode in ("joint", "sequential"):
        once = repair(net.program, net.average, iter(net.data.split(9)), goals=to, mode=mode)
        again = repair(net.program, net.average, net.data.split(9), goals=to, mode=mode)
        assert all(torch.equal(once.weights[k], again.weights[k]) for k in once.weights)


def test_a_joint_pass_needs_more_than_one_sample_in_every_batch(get_net):
    net = get_net("mlp")
    to = own_goals(net)
    with pytest.raises(DataError, match=r"(?s)linear: a batch of one sample.*hint: .*mode='sequential'"):
        repair(net.program, net.average, [net.data[:5], net.data[:1]], goals=to)
    assert repair(net.program, net.average, net.data.split(1), goals=to, mode="sequential").batch_size == 1


def test_weights_that_overflow_are_not_hidden(get_net):
    net = get_net("mlp")
    broken = {k: v.clone() for k, v in net.average.items()}
    broken["layers.1.weight"][0, 0] = float("inf")
    for mode in ("joint", "sequential"):
        with pytest.raises(
            DataError, match=r"(?s)not finite\n  linear_1\n.*hint: look at the merged weights"
        ):
            repair(net.program, broken, [net.data], goals=own_goals(net), mode=mode)


def test_limit_and_batch_size_are_recorded(get_net):
    net = get_net("vgg-bn")
    result = reset(net.program, net.average, net.data.split(10), limit=15)
    assert (result.examples, result.batch_size, result.mode) == (15, 10, "joint")
    first = reset(net.program, net.average, [net.data[:10], net.data[10:15]])
    assert all(torch.equal(result.weights[k], first.weights[k]) for k in first.weights)


def test_a_result_prints_what_was_done(get_net):
    net = get_net("vgg")
    text = str(repair(net.program, net.average, net.data.split(12), goals=own_goals(net)))
    assert text.startswith(
        "repair: 9 layers changed (0 by scale only), 1 left, 0 gains clamped\njoint pass over 24 ex"
    )
    assert "features.0   scale and shift, gain " in text
    assert "classifier: left, it is an output of the model" in text
