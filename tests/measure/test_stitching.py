"""Stitching: penalties of networks whose likeness is known."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isthmus.errors import DataError, InputError
from isthmus.measure.places import places
from isthmus.measure.stitches import Sums
from isthmus.measure.stitching import stitch
from isthmus.program import Program, export
from isthmus.repair import reset
from isthmus.zoo import MLP, VGG, ResNet

ALL = ("affine", "relu", "rank 4", "rank 2", "rank 1")


def answers(net: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Data whose targets are what the network says."""
    with torch.no_grad():
        return [(part, net.eval()(part).argmax(1)) for part in x.split(64)]


@pytest.fixture(scope="module")
def mlp() -> tuple[Program, dict[str, Tensor], list]:
    torch.manual_seed(0)
    net = MLP(d_in=6, widths=(12, 10), num_classes=4).double()
    for parameter in net.parameters():  # as drawn, it has the same answer to everything
        nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1)
    x = torch.randn(256, 6, dtype=torch.float64)
    return export(net, x[:2]), net.state_dict(), answers(net, x)


def moved(weights: dict[str, Tensor], seed: int = 3) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A copy whose first hidden units are in another order and scaled."""
    generator = torch.Generator().manual_seed(seed)
    keys = list(weights)
    first, bias, second = keys[0], keys[1], keys[2]
    order = torch.randperm(weights[first].shape[0], generator=generator)
    scale = torch.rand(len(order), generator=generator, dtype=torch.float64) * 3 + 0.2
    return (
        {
            **weights,
            first: (weights[first] * scale.unsqueeze(1))[order],
            bias: (weights[bias] * scale)[order],
            second: (weights[second] / scale)[:, order],
        },
        order,
        scale,
    )


def test_a_network_goes_on_with_itself_at_no_penalty(mlp):
    program, weights, data = mlp
    for found in stitch(program, weights, program, weights, data, data, kinds=["identity", "affine", "relu"]):
        assert set(found.penalties.values()) == {0.0}
        assert found.accuracies == (1.0, 1.0)
        assert found.findings[0].unit == "%" and found.findings[0].better == "lower"


def test_a_planted_order_with_scales_is_found(mlp):
    program, weights, data = mlp
    copy, order, scale = moved(weights)
    (found,) = stitch(program, weights, program, copy, data, data, kinds=["relu"], at=[1], bias=False)
    (stitched,) = found.stitches
    assert stitched.accuracy == 1.0
    expected = torch.zeros(12, 12, dtype=torch.float64)
    expected[order, torch.arange(12)] = 1 / scale[order]
    alive = expected.sum(1) > 0
    torch.testing.assert_close(stitched.matrix[alive], expected[alive], atol=1e-8, rtol=1e-8)
    (plain,) = stitch(program, weights, program, copy, data, data, kinds=["identity"], at=[1])
    assert plain.findings[0].value > 10


def test_fewer_ranks_cost_more(mlp):
    program, weights, data = mlp
    found = {f.kind: f for f in stitch(program, weights, program, weights, data, data, kinds=ALL, at=[1])}
    kept = {kind: f.stitches[0].accuracy for kind, f in found.items()}
    assert kept["affine"] == kept["relu"] == 1.0
    assert kept["affine"] > kept["rank 4"] > kept["rank 1"]
    assert found["rank 1"].findings[0].value > 10
    for kind, rank in (("rank 4", 4), ("rank 1", 1)):
        assert int(torch.linalg.matrix_rank(found[kind].stitches[0].matrix)) == rank
    torch.manual_seed(1)
    stranger = MLP(d_in=6, widths=(12, 10), num_classes=4).double().state_dict()
    (other,) = stitch(program, weights, program, stranger, data, data, kinds=["relu"], at=[1])
    relu = other.stitches[0].matrix
    assert ((relu > 0).sum(0) == 1).all() and ((relu > 0).sum(1) == 1).all() and (relu >= 0).all()


def test_a_map_of_reduced_rank_is_the_best_of_its_rank():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(5, 6, generator=generator, dtype=torch.float64) + 0.3
    y += 0.1 * torch.randn(400, 6, generator=generator, dtype=torch.float64)
    sums = Sums()
    sums.add(x[:100], y[:100])
    sums.add(x[100:], y[100:])

    def left(matrix: Tensor, shift: Tensor) -> float:
        return float((x @ matrix.T + shift - y).square().sum())

    full = sums.fitted("affine", None, bias=True, ridge=0.0, where="here")
    design = torch.cat([x, torch.ones(400, 1, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(full[0], expected[:5].T)
    torch.testing.assert_close(full[1], expected[5])
    best = sums.fitted("rank 2", 2, bias=True, ridge=0.0, where="here")
    fitted = (x - x.mean(0)) @ full[0].T
    expected_left = left(*full) + float(torch.linalg.svdvals(fitted)[2:].square().sum())
    assert left(*best) == pytest.approx(expected_left, rel=1e-9)
    bare = sums.fitted("affine", None, bias=False, ridge=0.0, where="here")
    torch.testing.assert_close(bare[0], torch.linalg.lstsq(x, y).solution.T)
    assert not bare[1].any()


def test_training_lowers_the_penalty_and_stays_in_the_kind(mlp):
    program, weights, data = mlp
    torch.manual_seed(1)
    stranger = MLP(d_in=6, widths=(12, 10), num_classes=4).state_dict()
    single = [(x.float(), y) for x, y in data]
    own = {k: v.float() for k, v in weights.items()}
    options = {"kinds": ["rank 1", "relu"], "at": [1], "learning_rate": 0.03}
    before, after = (
        stitch(program, own, program, stranger, single, single, epochs=epochs, **options)
        for epochs in (0, 15)
    )
    for first, trained in zip(before, after, strict=True):
        assert trained.findings[0].value < first.findings[0].value
        assert "15 epochs" in trained.findings[0].note
    assert int(torch.linalg.matrix_rank(after[0].stitches[0].matrix, rtol=1e-5)) == 1
    relu = after[1].stitches[0].matrix
    assert torch.equal(relu > 0, before[1].stitches[0].matrix > 0) and (relu >= 0).all()
    with pytest.raises(DataError, match="trained on targets"):
        stitch(program, weights, program, weights, [x for x, _ in data], data, at=[1], epochs=1)


def test_a_residual_network_is_cut_between_blocks_only():
    torch.manual_seed(0)
    net = ResNet(8, base=3, norm="bn")
    data = answers(net, torch.randn(32, 3, 8, 8))
    program = export(net, data[0][0][:2])
    own = net.state_dict()
    (found,) = stitch(program, own, program, own, data, data, kinds=["identity"], norms="keep")
    inside = {place.label for place in places(program)} - set(found.penalties)
    assert set(found.left_out) == inside and set(found.left_out.values()) == {"other paths lead past it"}
    assert len(inside) == 3 and len(found.penalties) == 4
    assert set(found.penalties.values()) == {0.0}
    with pytest.raises(InputError, match="no place to cut"):
        stitch(program, own, program, own, data, data, at=[2])


def test_a_convolution_is_stitched_to_one_of_another_size_and_width():
    torch.manual_seed(0)
    a = VGG((1, "M", 2, 2), base=4, in_channels=1, num_classes=3)
    b = VGG((2, 2, "M", 2), base=3, in_channels=1, num_classes=3)
    data = answers(a, torch.randn(64, 1, 8, 8))
    programs = [export(net, data[0][0][:2]) for net in (a, b)]
    (found,) = stitch(
        programs[0], a.state_dict(), programs[1], b.state_dict(), data, data, kinds=["affine"], at=[2]
    )
    assert found.stitches[0].matrix.shape == (8, 6)
    with pytest.raises(InputError, match=r"6 channels cannot be stitched to 8 by 'relu'[\s\S]*'affine' can"):
        stitch(programs[0], a.state_dict(), programs[1], b.state_dict(), data, data, kinds=["relu"], at=[2])


class TimeFirst(nn.Module):
    """Layers that see (time, examples, channels), as recurrent networks and older transformers do."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.second(torch.relu(self.first(x.transpose(0, 1)))))
        return self.head(h.mean(0))


def test_examples_need_not_be_the_first_dimension():
    torch.manual_seed(0)
    net = TimeFirst()
    data = answers(net, torch.randn(64, 7, 4))
    program, weights = export(net, data[0][0][:2]), net.state_dict()
    for found in stitch(program, weights, program, weights, data, data, kinds=["identity", "relu"]):
        assert len(found.penalties) == 2 and set(found.penalties.values()) == {0.0}


@pytest.mark.parametrize("epochs", [0, 1])
def test_batch_norms_behind_the_seam_are_taken_anew(epochs: int):
    torch.manual_seed(0)
    net = VGG((2, 3, 3), base=3, norm="bn", in_channels=1, num_classes=3)
    x = torch.randn(64, 1, 8, 8)
    program = export(net, x[:2])
    weights = reset(program, net.state_dict(), [x]).weights
    net.load_state_dict(weights)
    data = answers(net, x)
    drifted = {key: value + 3 if "running" in key else value for key, value in weights.items()}
    options: dict[str, Any] = {"kinds": ["identity"], "epochs": epochs, "at": [1]}
    (fresh,) = stitch(program, drifted, program, weights, data, data, **options)
    (stale,) = stitch(program, drifted, program, weights, data, data, norms="keep", **options)
    assert fresh.stitches[0].accuracy == 1 and stale.stitches[0].accuracy < 0.8
    assert "taken anew" in fresh.note and "as they were" in stale.note
    assert drifted.keys() == weights.keys() and not any(
        torch.equal(drifted[key], value) for key, value in weights.items() if "running" in key
    ), "the caller's weights stay"


def test_options_out_of_range_are_refused(mlp):
    program, weights, data = mlp
    for kind in ("rank 0", "rank", "full"):
        with pytest.raises(InputError, match="is none of affine"):
            stitch(program, weights, program, weights, data, data, kinds=[kind])
    with pytest.raises(InputError, match=r"ridge=-1[\s\S]*epochs=-2"):
        stitch(program, weights, program, weights, data, data, ridge=-1.0, epochs=-2)
    with pytest.raises(DataError, match="not finite"):
        stitch(program, weights, program, weights, [torch.full((4, 6), torch.inf).double()], data)
