import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isthmus.errors import DataError, InputError
from isthmus.measure import Barrier, barrier, evaluate
from isthmus.paths import Segment
from isthmus.program import export

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(30) % 3
DATA = [(X[:16], Y[:16]), (X[16:], Y[16:])]
CALIBRATION = [torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)]


def net(seed: int = 0, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 6), *([nn.BatchNorm1d(6)] if norm else []), nn.ReLU(), nn.Linear(6, 3)]
    return nn.Sequential(*layers).double()


def line(seed_a: int = 0, seed_b: int = 1, norm: bool = False) -> Segment:
    return Segment(net(seed_a, norm).state_dict(), net(seed_b, norm).state_dict())


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), points=st.sampled_from([3, 5]))
def test_no_barrier_between_a_model_and_itself(seed: int, points: int) -> None:
    found = barrier(net(), line(seed, seed), DATA, points=points)
    assert all(finding.value == 0 for finding in found.findings)


def test_the_curve_is_the_evaluation_of_each_point() -> None:
    path = line()
    found = barrier(net(7), path, DATA, points=5, split="validation")
    assert found.t == (0, 0.25, 0.5, 0.75, 1)
    for t, loss, accuracy in zip(found.t, found.loss, found.accuracy, strict=True):
        want = evaluate(net(), DATA, path.at(t))
        assert (loss, accuracy) == (want.loss, want.accuracy)
    assert found.norms == "none"
    for finding in found.findings:
        assert "validation: 30 examples, chance 33.33%, 5 points" in finding.note
        assert finding.better == "lower"


def test_a_program_has_the_barrier_of_its_module() -> None:
    module, program = barrier(net(), line(), DATA), barrier(export(net(), X), line(), DATA)
    assert program.loss == pytest.approx(module.loss, rel=1e-12)
    assert program.accuracy == module.accuracy


class Parabola(nn.Module):
    """Two logits whose cross-entropy with target 0 is known in closed form along a line."""

    def __init__(self, w: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([-(self.w**2) * x, self.w**2 * x], 1)


def test_a_barrier_in_closed_form() -> None:
    # L(w) = log(1 + exp(2 w^2)) grows with |w|: from w = -1 to w = 1 the line runs through the minimum,
    # and every definition says so: nothing above the ends, and the midpoint better by L(1) - log 2.
    data = [(torch.ones(4, dtype=torch.float64), torch.zeros(4).long())]
    ends = math.log(1 + math.exp(2))
    found = barrier(Parabola(0.0), Segment(Parabola(-1.0).state_dict(), Parabola(1.0).state_dict()), data)
    assert found.height("loss") == pytest.approx(0, abs=1e-12)
    assert found.height("loss", "mean") == pytest.approx(0, abs=1e-12)
    assert found.height("loss", "midpoint") == pytest.approx(math.log(2) - ends, rel=1e-12)
    # With the other target it is the maximum.
    other = [(data[0][0], torch.ones(4).long())]
    up = barrier(Parabola(0.0), Segment(Parabola(-1.0).state_dict(), Parabola(1.0).state_dict()), other)
    height = math.log(2) - math.log(1 + math.exp(-2))
    for against in ("interpolation", "mean", "midpoint"):
        assert up.height("loss", against) == pytest.approx(height, rel=1e-12)


@given(
    curve=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 10)), min_size=3, max_size=9).filter(
        lambda c: len(c) % 2
    )
)
def test_the_definitions_agree_where_they_must(curve: list[tuple[float, float]]) -> None:
    accuracy, loss = (tuple(values) for values in zip(*curve, strict=True))
    places = tuple(i / (len(curve) - 1) for i in range(len(curve)))
    found = Barrier(places, loss, accuracy, 10, 0.1, "none")
    for of in ("loss", "accuracy"):
        interpolation, mean, midpoint = (found.height(of, a) for a in ("interpolation", "mean", "midpoint"))
        assert interpolation >= 0
        assert mean >= 0
        assert midpoint <= min(interpolation, mean) + 1e-12
    level = Barrier(places, (1.0, *loss[1:-1], 1.0), accuracy, 10, 0.1, "none")
    assert level.height("loss") == pytest.approx(level.height("loss", "mean"), abs=1e-12)
    back = Barrier(places, loss[::-1], accuracy[::-1], 10, 0.1, "none")
    assert back.height("loss") == pytest.approx(found.height("loss"), abs=1e-9)


def test_accuracy_barriers_are_told_in_points() -> None:
    found = Barrier((0.0, 0.5, 1.0), (1.0, 3.0, 2.0), (0.9, 0.4, 0.8), 10, 0.1, "none")
    values = {finding.name: (finding.value, finding.unit) for finding in found.findings}
    assert values["accuracy barrier"] == (pytest.approx(45), "%")
    assert values["loss barrier"] == (pytest.approx(1.5), "nats")
    assert values["loss barrier over the mean"] == (pytest.approx(1.5), "nats")
    assert values["accuracy midpoint barrier"] == (pytest.approx(45), "%")


@pytest.mark.parametrize("points", [1, 2, 10])
def test_points_without_a_midpoint_are_refused(points: int) -> None:
    with pytest.raises(InputError, match="do not hold both ends and the midpoint"):
        barrier(net(), line(), DATA, points=points)


def test_data_that_is_gone_after_one_pass_is_refused() -> None:
    with pytest.raises(DataError, match="only once"):
        barrier(net(), line(), iter(DATA))


@pytest.mark.parametrize("exported", [False, True])
def test_statistics_need_calibration_data_that_is_not_the_evaluation_split(exported: bool) -> None:
    model = export(net(norm=True), X) if exported else net(norm=True)
    with pytest.raises(InputError, match="no calibration data") as caught:
        barrier(model, line(norm=True), DATA)
    assert 'norms="keep"' in str(caught.value)
    with pytest.raises(InputError, match="is the evaluation split"):
        barrier(model, line(norm=True), DATA, calibration=DATA)
    kept = barrier(model, line(norm=True), DATA, norms="keep", points=3)
    assert kept.norms == "keep"
    assert kept.loss[1] == pytest.approx(
        evaluate(net(norm=True), DATA, line(norm=True).at(0.5)).loss, rel=1e-9
    )


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize(("norms", "reset_points"), [("reset", 3), ("reset-inside", 1)])
def test_statistics_are_those_of_the_calibration_data_at_each_point(
    exported: bool, norms: str, reset_points: int
) -> None:
    path = line(norm=True)
    model = export(net(norm=True), X) if exported else net(norm=True)
    found = barrier(model, path, DATA, norms=norms, points=3, calibration=CALIBRATION)
    assert found.norms == norms
    different = 0
    for t, loss in zip(found.t, found.loss, strict=True):
        weights = path.at(t)
        kept = evaluate(net(norm=True), DATA, weights).loss
        before = nn.functional.linear(CALIBRATION[0], weights["0.weight"], weights["0.bias"])
        weights["1.running_mean"], weights["1.running_var"] = before.mean(0), before.var(0)
        reset = evaluate(net(norm=True), DATA, weights).loss
        assert kept != pytest.approx(reset, rel=1e-4)
        # Whether the variance is over n or n - 1 of the 50 examples is for `reset` to say.
        assert loss == pytest.approx(reset, rel=5e-3) or loss == pytest.approx(kept, rel=1e-9)
        different += loss != pytest.approx(kept, rel=1e-4)
    assert different == reset_points


def test_no_barrier_between_a_model_with_statistics_and_itself() -> None:
    found = barrier(net(norm=True), line(1, 1, norm=True), DATA, points=5, calibration=CALIBRATION)
    assert all(finding.value == 0 for finding in found.findings)
