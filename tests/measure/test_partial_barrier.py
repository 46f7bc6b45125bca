"""Equation 24 and where to stop, against evaluations written out."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus import zoo
from isthmus.errors import InputError
from isthmus.measure import barrier, cka, partial_barrier, when_to_stop
from isthmus.paths import Segment
from isthmus.program import Program, export

Weights = dict[str, Tensor]


@functools.cache
def case(norm: str = "none") -> tuple[nn.Module, Program, Weights, Weights, list[tuple[Tensor, Tensor]]]:
    random = torch.Generator().manual_seed(3)
    x, y = torch.randn(40, 1, 8, 8, generator=random), torch.randint(0, 4, (40,), generator=random)
    nets = [
        zoo.init(zoo.vgg([1, "M", 1.0], base=4, norm=norm, in_channels=1, num_classes=4), s) for s in (1, 2)
    ]
    a, b = ({k: v.detach() for k, v in net.state_dict().items()} for net in nets)
    return nets[0].eval(), export(nets[0].eval(), x[:2]), a, b, [(x, y)]


def loss(net: nn.Module, weights: Weights, data: list[tuple[Tensor, Tensor]]) -> float:
    net = copy.deepcopy(net)
    net.load_state_dict(weights)
    with torch.no_grad():
        return float(F.cross_entropy(net(data[0][0]), data[0][1]))


def test_every_prefix_is_equation_24_written_out():
    net, program, a, b, data = case()
    found = partial_barrier(program, Segment(a, b), data, points=5)
    assert found.ranges == ((1, 1), (1, 2), (1, 3)) and found.points == 5
    assert found.labels[0] == "1..1 features.0" or found.labels[0] == "1 features.0"
    modules = ["features.0", "features.3", "classifier"]
    for i in range(3):
        rises = [0.0]
        for t in (0.25, 0.5, 0.75):

            def mixed(own: Weights, t: float = t, i: int = i) -> Weights:
                inside = tuple(modules[: i + 1])
                return {k: (1 - t) * a[k] + t * b[k] if k.startswith(inside) else own[k] for k in own}

            rises.append(
                (1 - t) * (loss(net, mixed(a), data) - loss(net, a, data))
                + t * (loss(net, mixed(b), data) - loss(net, b, data))
            )
        assert found.loss[i] == pytest.approx(max(rises), abs=1e-5)


def test_all_layers_is_the_barrier_of_equation_7():
    _, program, a, b, data = case()
    found = partial_barrier(program, Segment(a, b), data, points=5)
    whole = barrier(program, Segment(a, b), data, points=5)
    assert found.loss[-1] == pytest.approx(whole.height("loss"), abs=1e-6)
    assert found.accuracy[-1] == pytest.approx(whole.height("accuracy"), abs=1e-6)
    assert partial_barrier(program, Segment(a, b), data, ranges="last", points=5).loss[0] == found.loss[-1]


def test_copies_have_no_barrier_and_ranges_are_what_they_say():
    _, program, a, b, data = case()
    same = partial_barrier(program, Segment(a, a), data, ranges="single")
    assert same.ranges == ((1, 1), (2, 2), (3, 3)) and same.loss == pytest.approx((0, 0, 0), abs=1e-6)
    one = partial_barrier(program, Segment(a, b), data, ranges=[(2, 3)])
    assert one.labels == ("2..3 features.3 to classifier",)
    assert [f.name for f in one.findings] == ["partial accuracy barrier", "partial loss barrier"]


def test_batch_norms_are_reset_in_what_is_merged_partly():
    _, program, a, b, data = case("bn")
    with pytest.raises(InputError, match="calibration"):
        partial_barrier(program, Segment(a, b), data)
    calibration = [(data[0][0][:30], data[0][1][:30])]
    found = partial_barrier(program, Segment(a, b), data, calibration=calibration)
    whole = barrier(program, Segment(a, b), data, points=3, calibration=calibration)
    assert found.loss[-1] == pytest.approx(whole.height("loss"), abs=1e-6)


@pytest.mark.parametrize(("options", "words"), [
    ({"points": 4}, "odd"), ({"ranges": [(0, 2)]}, "0..2"), ({"ranges": [(2, 9)]}, "2..9"),
    ({"ranges": []}, "1..3"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(options: dict[str, object], words: str):
    _, program, a, b, data = case()
    with pytest.raises(InputError, match=words):
        partial_barrier(program, Segment(a, b), data, **options)  # type: ignore[arg-type]


def test_merging_stops_in_front_of_the_layer_that_cannot_be_merged():
    # B is A with the units of its second layer in another order: only what reads or writes them alone is broken.
    net, program, a, _, _ = case()
    x = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    net = copy.deepcopy(net)
    net.load_state_dict(a)
    with torch.no_grad():  # logits in the middle, so that every class is an answer
        a = a | {"classifier.bias": a["classifier.bias"] - net(x).mean(0)}
        net.load_state_dict(a)
        data = [(x, net(x).argmax(1))]
    order = torch.tensor([1, 2, 3, 0])
    b = a | {
        "features.3.weight": a["features.3.weight"][order],
        "features.3.bias": a["features.3.bias"][order],
        "classifier.weight": a["classifier.weight"][:, order],
    }
    found = when_to_stop(program, Segment(a, b), data, similarity={1: 1.0, 2: 0.1, 3: 0.5})
    assert found.stop == 1 and found.preserve_last == 2
    assert found.first.accuracy[0] == 0 and found.first.accuracy[1] > 0.01
    assert found.start == 4 and found.preserve_first == 3  # the classifier reads another order
    assert found.rank_correlation is not None and found.rank_correlation > 0.4
    assert found.single is not None and found.single.ranges == ((1, 1), (2, 2), (3, 3))
    assert [f.name for f in found.findings] == [
        "stop merging at depth", "start merging at depth", "similarity against barrier",
    ]  # fmt: skip
    same = when_to_stop(program, Segment(a, a), data)
    assert (same.stop, same.start, same.preserve_last, same.preserve_first) == (3, 1, 0, 0)
    assert len(same.findings) == 2 and same.single is None


def test_a_similarity_of_activations_is_beside_the_barriers():
    _, program, a, b, data = case()
    alike = cka(program, a, program, b, data, kernel="relu").by_depth
    assert set(alike) == {1, 2}  # depth 3 are the logits
    found = when_to_stop(program, Segment(a, b), data, similarity=alike)
    assert found.similarity == alike and found.findings[-1].layers == {str(d): v for d, v in alike.items()}


def test_similarities_are_of_layers_that_there_are():
    _, program, a, b, data = case()
    with pytest.raises(InputError, match="7"):
        when_to_stop(program, Segment(a, b), data, similarity={7: 0.5})
    with pytest.raises(InputError, match="negative"):
        when_to_stop(program, Segment(a, b), data, tolerance=-0.1)
