"""A whole number is a number: in Python and on the command line, for an option of any method."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import ARCH, run
from safetensors.torch import save_file
from small_nets import build

import isthmus
from isthmus import zoo
from isthmus.combine.slerp import slerp
from isthmus.registry import hints_of, kinds, numbers

PAIR = [{"w": torch.zeros(3)}, {"w": torch.ones(3)}]
BASE = {"w": torch.full((3,), 0.5)}


def test_every_option_of_floats_is_given_one():
    seen = 0
    for row in isthmus.methods():
        hints = hints_of(row.function)
        assert set(row.options) <= set(hints), row.name
        for name in row.options:
            given = numbers(row.function, {name: 1})[name]
            asked = kinds(hints[name])
            assert type(given) is (float if float in asked and int not in asked else int)
            seen += type(given) is float
    assert seen > 50


def aligned(**options: object) -> object:
    net = build("mlp")
    models = [net.drawn(1), net.drawn(2)]
    return net.align(models, {"method": "zipit", **options}).settings["alpha"]


DOORS: dict[str, Callable[[float], object]] = {
    "align": lambda number: aligned(alpha=number),
    "merge": lambda number: isthmus.merge(PAIR, base=BASE, method="ties", density=number).weights["w"].tolist(),
    "merge, a list": lambda n: isthmus.merge(PAIR, base=BASE, method="ties", density=[n, 0.5]).weights["w"].tolist(),
    "a rule": lambda number: slerp([PAIR[0]["w"], PAIR[1]["w"]], t=number).tolist(),
    "soup": lambda number: isthmus.soup(
        PAIR, lambda w: -float(w["w"].sum()), "grid", base=BASE, method="task-arithmetic", over={"lam": [0, number]}
    ).weights["w"].tolist(),
    "prune": lambda number: isthmus.prune(
        build("mlp").model, "woodfisher", sparsity=0.5, data=build("mlp").labelled(build("mlp").drawn(1)),
        gradients=4, damping=number,
    ).sparsity,
    "repair": lambda number: isthmus.merge(
        [build("mlp").drawn(1), build("mlp").drawn(2)], model=build("mlp").model,
        example=build("mlp").data, repair={"method": "rescale-parameters", "max_gain": number},
    ).settings["repair.max_gain"],
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_a_whole_number_is_taken_as_a_float_is(door: str):
    assert DOORS[door](1) == DOORS[door](1.0)


def test_a_learned_soup_takes_a_whole_rate():
    net = build("mlp")
    models = [net.drawn(1), net.drawn(2)]
    data = net.labelled(models[0])
    given = {"model": net.model, "data": data, "epochs": 1}
    ours, theirs = (isthmus.soup(models, kind="learned", lr=rate, **given) for rate in (1, 1.0))
    assert ours.score == theirs.score and ours.settings["lr"] == 1.0


def test_on_the_command_line_too(tmp_path: Path):
    for seed in (1, 2):
        save_file(zoo.init(zoo.demo_vgg(base=4), seed).state_dict(), tmp_path / f"{seed}.safetensors")
    data = ["--data", "digits", "--calibration", "50", "--kept", "0"]
    shown = run(
        "merge",
        "1.safetensors",
        "2.safetensors",
        *ARCH,
        *data,
        "--align",
        "zipit alpha=1 beta=0",
        cwd=tmp_path,
    )
    assert shown.returncode == 0, shown.stderr
    assert "align.alpha" in shown.stdout and "1.0" in shown.stdout
