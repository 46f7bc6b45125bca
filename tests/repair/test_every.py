"""What every registered repair promises, whatever it does."""

import pytest
import torch

from isthmus.errors import DataError, InputError
from isthmus.repair import REPAIRS
from isthmus.repair.by_name import apply, needs_of

EVERY = REPAIRS.names()
every = pytest.mark.parametrize("name", EVERY)


def subject(get_net, name):
    return get_net("vgg-bn" if name == "reset" else "vgg")


def repaired(net, name, data=None, weights=None, parents=None, **options):
    asked = {"method": name, **options}
    own = net.average if weights is None else weights
    models = net.weights if parents is None else parents
    return apply(net.program, net.program, own, models, [0.5, 0.5], asked, data or [net.data])[0]


@every
def test_the_given_weights_stay_and_what_did_not_change_is_the_same_tensor(name, get_net):
    net = subject(get_net, name)
    given = {**net.average, "something.else": torch.ones(2)}
    before = {k: v.clone() for k, v in given.items()}
    result = repaired(net, name, weights=given)
    assert result.method == name
    assert list(result.weights) == list(given)
    assert all(torch.equal(before[k], given[k]) for k in given)
    written = {key for change in result.changed.values() for key in change.into}
    assert written, "it did nothing"
    assert all(result.weights[k] is v for k, v in given.items() if k not in written)
    assert str(result).startswith(f"{name}: {len(result.changed)} layers changed")


@every
def test_what_comes_out_loads_in_the_models_class_and_computes_what_the_program_says(name, get_net):
    net = subject(get_net, name)
    result = repaired(net, name)
    assert not result.new_parameters
    net.model.load_state_dict(result.weights)
    with torch.no_grad():
        ours = net.model(net.data)
    theirs = net.run(result.weights)
    assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()
    assert not torch.allclose(theirs, net.run(net.average))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_device_are_kept(name, dtype, get_net):
    net = subject(get_net, name)
    narrow = [
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in w.items()}
        for w in (net.average, *net.weights)
    ]
    result = repaired(net, name, [net.data.float()], narrow[0], narrow[1:])
    for key, value in result.weights.items():
        assert (value.dtype, value.device) == (narrow[0][key].dtype, narrow[0][key].device)
        assert value.isfinite().all()


@every
def test_dead_channels_constant_inputs_and_few_samples_give_finite_weights(name, get_net):
    net = subject(get_net, name)
    dead = [{k: v.clone() for k, v in w.items()} for w in (*net.weights, net.average)]
    for index, weights in enumerate(dead):
        for key, value in weights.items():
            if value.ndim > 1 and "classifier" not in key:
                value[index] = 0
                value[-1] = 0
    few = [net.data[:2], torch.zeros_like(net.data[:3]), net.data[:1].expand(4, *net.data.shape[1:])]
    for batch in few:
        result = repaired(net, name, [batch], dead[2], dead[:2])
        assert all(v.isfinite().all() for v in result.weights.values())
        assert net.run(result.weights).isfinite().all()


@pytest.mark.parametrize("name", [n for n in EVERY if "data" in REPAIRS.get(n).needs])
def test_empty_data_and_activations_that_are_not_finite_are_refused(name, get_net):
    net = subject(get_net, name)
    with pytest.raises(DataError, match="empty"):
        repaired(net, name, [[]][0] or iter([]))
    with pytest.raises(DataError, match="not finite"):
        repaired(net, name, [net.data, net.data * float("nan")])


@every
def test_options_that_it_does_not_have_and_values_that_they_do_not_take(name):
    with pytest.raises(InputError, match=rf"{name} has no option 'speed'"):
        needs_of({"method": name, "speed": 1})
    for option, default in REPAIRS.get(name).options.items():
        if isinstance(default, float | bool):
            with pytest.raises(
                InputError, match=rf"(?s)options of {name} take other values.*{option} is 'x'"
            ):
                needs_of({"method": name, option: "x"})
