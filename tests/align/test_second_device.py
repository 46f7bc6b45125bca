"""Models on another device are aligned, repaired, pruned and measured there, and what comes out lies there too."""

from collections.abc import Callable

import pytest
import torch
from second_device import There, placed, second_device  # noqa: F401 - a fixture
from small_nets import BRIEFLY, build
from torch import nn

import isthmus
from isthmus import measure
from isthmus.prune import PRUNERS
from isthmus.repair import REPAIRS

WAYS = BRIEFLY | {
    "weight-matching, in full": {"method": "weight-matching", "groups": "full"},
    "activation-matching, in full": {"method": "activation-matching", "groups": "full"},
    "sinkhorn, by a task": {"method": "sinkhorn", "objective": "midpoint", "steps": 2},
    "transport, by weights": {"method": "transport", "by": "weights"},
}

pytestmark = pytest.mark.usefixtures("second_device")


def test_the_second_device_refuses_what_a_real_one_does():
    here = torch.ones(3)
    (there,) = placed({"x": here}).values()
    assert isinstance(there + there, There) and isinstance(here.to(there.device), There)
    assert torch.equal((2 * there).cpu(), 2 * here) and float(there.sum()) == 3
    with pytest.raises(RuntimeError, match="on two devices"):
        there + here
    with pytest.raises(TypeError, match="no array"):
        there.numpy()


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *(("mlp", way) for way in WAYS),
        ("vgg-bn", "matched-averaging"),
        *(("vit", way) for way in ("activation-matching, in full", "sinkhorn", "transport, by weights")),
    ],
)
def test_models_are_moved_where_they_are(name: str, way: str):
    net = build(name)
    models = [net.drawn(seed, positive=True) for seed in (1, 2)]
    data = net.labelled(models[0])
    there = [placed(model) for model in models]
    found = isthmus.align(net.graph, there, WAYS[way], data=data)
    moved = found.apply(there, (0.3, 0.7))
    assert all(isinstance(t, There) for state in moved for t in state.values())
    assert 0 <= measure.kept(found, there, data).defect.value < 10
    # The same numbers as here, so that nothing was computed from what is not there.
    if way in ("weight-matching", "activation-matching", "zipit", "cca", "matched-averaging"):
        same = isthmus.align(net.graph, models, WAYS[way], data=data).apply(models, (0.3, 0.7))
        for key, tensor in same[1].items():
            torch.testing.assert_close(moved[1][key].cpu(), tensor)


@pytest.mark.parametrize("repair", REPAIRS.names())
def test_merges_are_repaired_where_they_are(repair: str):
    net = build("vgg" if repair == "calibrate-bias" else "vgg-bn")
    models = [placed(net.drawn(seed, positive=True)) for seed in (1, 2)]
    data = net.labelled(net.drawn(1))
    merged = isthmus.merge(
        models, model=net.model, graph=net.graph, align="zipit" if repair == "least-squares" else None,
        repair=repair, data=data, verify=False,
    )  # fmt: skip
    assert all(isinstance(t, There) for t in merged.weights.values())


@pytest.mark.parametrize("pruner", PRUNERS.names())
def test_networks_are_pruned_where_they_are(pruner: str):
    net = build("mlp")
    weights = placed(net.drawn(1))
    pruned = isthmus.prune(
        net.graph.program, pruner, sparsity=0.5, data=net.labelled(net.drawn(1)), weights=weights
    )
    assert all(isinstance(t, There) for t in pruned.weights.values())


def _stitched(*sides: object) -> object:
    *four, data = sides
    return isthmus.stitch(*four, data, data, kinds=["affine", "relu", "rank 2"], epochs=1)  # type: ignore[arg-type]


BETWEEN: dict[str, Callable[..., object]] = {
    "cka": lambda *sides: isthmus.cka(*sides, kernel="relu"),
    "procrustes": isthmus.procrustes,
    "stitch": _stitched,
    "vanishing": lambda program, a, _, b, data: isthmus.vanishing(program, a, [b], data),
    "variance ratio": lambda program, a, _, b, data: isthmus.variance_ratio(program, a, [b], data),
    "logits": lambda program, a, _, __, data: measure.logit_profile(program, data, a),
    "dead units": lambda program, a, _, __, data: measure.dead_units(program, a, data),
    "calibration error": lambda program, a, _, __, data: isthmus.calibration_error(program, a, data),
    "partial barrier": lambda p, a, _, b, data: measure.partial_barrier(p, isthmus.Segment(a, b), data),
    "sign conflict": lambda _, a, __, b, ___: measure.sign_conflict([a, b]),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_networks_are_measured_where_they_are(name: str):
    net = build("mlp")
    a, b = (placed(net.drawn(seed)) for seed in (1, 2))
    program = net.graph.program
    assert BETWEEN[name](program, a, program, b, net.labelled(net.drawn(1)))


def test_linear_networks_are_split_where_they_are():
    line = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    x = torch.randn(5, 6)
    found = measure.linear_split(isthmus.export(line, x[:2]), placed(line.state_dict()), [x])
    assert len(found.features) == 2
