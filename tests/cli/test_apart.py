"""`isthmus merge` with parts kept apart: ranges of layers, and heads of different tasks."""

import json
from pathlib import Path

import pytest
import torch
from command_line import ARCH, run
from safetensors.torch import load_file, save_file

import isthmus
from isthmus import zoo

DATA = ["--data", "digits", "--calibration", "100"]
HEADS = ["--arch", "isthmus.zoo:demo_vgg", "--arch", "isthmus.zoo:demo_vgg num_classes=4", "base=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("apart")
    for name, seed, classes in (("a", 1, 10), ("b", 5, 10), ("four", 3, 4)):
        net = zoo.init(zoo.demo_vgg(base=4, num_classes=classes), seed)
        save_file(net.state_dict(), made / f"{name}.safetensors")
    return made


def loaded(folder: Path, name: str, classes: int = 10) -> torch.nn.Module:
    net = zoo.demo_vgg(base=4, num_classes=classes).eval()
    net.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return net


def test_ranges_of_layers_are_kept_as_python_keeps_them(folder: Path):
    shown = run(
        "merge", "a.safetensors", "b.safetensors", *ARCH, "--shape", "2,1,8,8", "--depths", "2-3",
        "--depths", "5", "--out", "ranges.safetensors", cwd=folder,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "depths" in shown.stdout and "2, 3" in shown.stdout
    models = [loaded(folder, name) for name in "ab"]
    asked = isthmus.merge(models, example=torch.randn(2, 1, 8, 8), depths=[(2, 3), (5, 5)])
    written = load_file(folder / "ranges.safetensors")
    assert written.keys() == asked.weights.keys() and any(key.startswith("branch1.") for key in written)
    assert all(torch.equal(written[key], value) for key, value in asked.weights.items())


def test_heads_of_different_tasks_are_kept_and_each_is_evaluated(folder: Path):
    shown = run(
        "merge", "a.safetensors", "four.safetensors", *HEADS, *DATA, "--align", "zipit", "--preserve-last", "1",
        "--outputs", "each", "--out", "tasks.safetensors", "--json", cwd=folder,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    # The digits have ten classes, so only one of the heads can be asked for them.
    assert set(json.loads(shown.stdout)["test accuracy"]) == {"a", "merged, for a"}
    assert "four is not evaluated: targets run from 0 to 9, the model has 4 classes" in shown.stderr
    model = isthmus.load(folder / "tasks.safetensors", lambda: zoo.demo_vgg(base=4))
    assert [answer.shape for answer in model(torch.randn(3, 1, 8, 8))] == [(3, 10), (3, 4)]


def test_each_head_is_evaluated_by_its_own_answers(folder: Path):
    shown = run(
        "merge", "a.safetensors", "b.safetensors", *ARCH, *DATA, "--preserve-first", "99", "--outputs", "each",
        cwd=folder,
    )  # fmt: skip
    assert shown.returncode == 2 and "preserve_first = 99" in shown.stderr
    layers = isthmus.export(zoo.demo_vgg(base=4), torch.randn(2, 1, 8, 8)).layers
    shown = run(
        "merge", "a.safetensors", "b.safetensors", *ARCH, *DATA, "--preserve-last", str(layers),
        "--outputs", "each", "--out", "both.safetensors", "--json", cwd=folder,
    )  # fmt: skip
    scores = json.loads(shown.stdout)["test accuracy"]
    assert list(scores) == ["a", "b", "merged, for a", "merged, for b"]
    # All is kept apart: each output is a parent's.
    assert scores["merged, for a"] == scores["a"] != scores["b"] == scores["merged, for b"], scores


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--depths", "2..3", "--depths", "x"], ["--depths takes ranges", "2..3", "x", "--depths 3-5"]),
        (["--depths", "3-2"], ["depths 3..2", "layers 1.."]),
        (["--depths", "0-99"], ["depths 0..99"]),
        (["--preserve-last", "1", "--outputs", "all"], ["--outputs all is neither average nor each"]),
        (["--outputs", "each"], ["nothing is kept apart", "--preserve-last 1"]),
        (["--outputs", "each", "--preserve-first", "1"], ["no output is kept apart", "--preserve-last 1"]),
        (
            ["--outputs", "each", "--preserve-last", "1", "--repair", "best", *DATA],
            ["cannot be chosen by accuracy"],
        ),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(arguments: list[str], words: list[str], folder: Path):
    given = [*ARCH, "--shape", "2,1,8,8", *arguments, "--out", "wrong.safetensors"]
    shown = run("merge", "a.safetensors", "b.safetensors", *given, cwd=folder)
    assert shown.returncode == 2 and all(word in shown.stderr for word in words), shown.stderr
    assert not list(folder.glob("wrong*"))
