"""Models on another device are searched over there: the same numbers as here, and what is found lies there too."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from second_device import There, placed, second_device  # noqa: F401 - a fixture
from torch import Tensor

import isthmus
from isthmus.search import SEARCHES

pytestmark = pytest.mark.usefixtures("second_device")

#: Every search, so brief that all can be run.
BRIEFLY: dict[str, dict[str, object]] = {name: {} for name in SEARCHES.names()} | {
    "grid": {"over": {"density": [0.5, 1.0]}, "method": "ties"},
    "iterated": {"max_passes": 2},
    "learned": {"epochs": 1, "by": "layer"},
    "adamerging": {"iterations": 2, "density": 0.5},
    "optuna": {"trials": 2},
    "wise-ft": {"points": 3},
    "random": {"orders": 1},
}


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("kind", BRIEFLY)
def test_a_search_runs_where_the_models_are(kind: str, calibrated: bool, net, nets, data, tmp_path: Path):
    models = nets[:1] if kind == "wise-ft" else nets[:3]
    if kind == "optuna":
        pytest.importorskip("optuna")

    def searched(where: Callable[[dict[str, Tensor]], dict[str, Tensor]], folder: Path) -> isthmus.Searched:
        return isthmus.soup(
            [where(model) for model in models],
            kind=kind,
            model=net,
            data=data,
            base=where(nets[3]),
            calibration=data if calibrated else None,
            folder=folder,
            **BRIEFLY[kind],
        )

    here, there = searched(dict, tmp_path / "here"), searched(placed, tmp_path / "there")
    assert all(isinstance(tensor, There) for tensor in there.weights.values())
    assert [step.label for step in there.steps] == [step.label for step in here.steps]
    for key, tensor in here.weights.items():
        torch.testing.assert_close(there.weights[key].cpu(), tensor)
    # Asked again it goes on from its folder: nothing that was kept there depends on the device.
    again = searched(placed, tmp_path / "here")
    for key, tensor in here.weights.items():
        torch.testing.assert_close(again.weights[key].cpu(), tensor)


def test_angles_are_measured_where_the_models_are(nets):
    nets = [
        {key: value.clone() for key, value in model.items()} for model in nets
    ]  # what is tied counts once
    here = isthmus.angles(nets[:3], nets[3])
    there = isthmus.angles([placed(model) for model in nets[:3]], placed(nets[3]))
    for ours, theirs in zip(there.degrees, here.degrees, strict=True):
        assert ours == pytest.approx(theirs)
    # Files are read on the CPU: they are compared with models elsewhere.
    mixed = isthmus.angles([placed(nets[0]), nets[1]], placed(nets[3]))
    assert mixed.degrees[0][1] == pytest.approx(here.degrees[0][1])


def test_a_greedy_ensemble_asks_models_where_they_are(net, nets, data):
    here = isthmus.greedy_ensemble(nets[:3], net, data)
    there = isthmus.greedy_ensemble([placed(model) for model in nets[:3]], net, data)
    assert there.score == pytest.approx(here.score) and there.chosen == here.chosen
