"""`isthmus prune`."""

import json
from pathlib import Path

import pytest
import torch
from command_line import ARCH, run
from safetensors.torch import load_file, save_file

from isthmus import prune, zoo
from isthmus.report import Results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("prune")
    loader = zoo.open_data("digits").split(seed=0).loader("train", batch_size=32, shuffle=True)
    model = zoo.train(zoo.init(zoo.demo_vgg(base=4), 1), loader, epochs=8, lr=0.03, clip=1.0, threads=1).model
    save_file(model.state_dict(), made / "a.safetensors")
    return made


SOME = ["--data", "digits", "--calibration", "64"]


def test_files_are_what_python_makes_and_a_mask_is_put_on_again(folder: Path):
    shown = run(
        "prune", "a.safetensors", *ARCH, *SOME, "--method", "wanda", "--sparsity", ".5", "--option", "scope=layer",
        "--skip", "classifier.*", "--repair", "rescale", "--out", "p.safetensors", "--mask-out", "m.safetensors",
        "--json", cwd=folder,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    said = json.loads(shown.stdout)
    assert said["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert said["settings"]["scope"] == "layer" and said["left"]["classifier.weight"] == "left out (skip)"
    assert set(said["test accuracy"]) == {"as it was", "pruned", "repaired"}
    assert [words.split()[0] for words in said["settings"]["repairs tried"]] == ["unrepaired", "rescale"]
    loader = zoo.open_data("digits").split(seed=0).loader("train", batch_size=250, limit=64)
    made = prune(
        zoo.demo_vgg(base=4),
        "wanda",
        sparsity=0.5,
        scope="layer",
        data=loader,
        weights=load_file(folder / "a.safetensors"),
        skip=["classifier.*"],
        repair="rescale",
    )
    written = load_file(folder / "p.safetensors")
    assert all(torch.equal(written[key], value) for key, value in made.weights.items())
    shown = run(
        "prune", "a.safetensors", *ARCH, *SOME, "--mask", "m.safetensors", "--repair", "rescale", "--out",
        "again.safetensors", "--report", "page", cwd=folder,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "pruned by a given mask: 50% of" in shown.stdout
    assert "rescale: " in shown.stdout
    assert "repaired" in shown.stdout
    assert "page/report.html" in shown.stderr
    results = Results.read(folder / "page" / "results.json")
    assert [row.accuracy for row in results.rows] == list(said["test accuracy"].values())
    assert [profile.name for profile in results.profiles][:2] == ["Sparsity", "Vanishing features"]
    assert "pruned by a mask" in (folder / "page" / "report.html").read_text()
    again = load_file(folder / "again.safetensors")
    assert all(torch.equal(again[key], value) for key, value in written.items())


def test_a_repair_that_does_not_help_is_not_written(folder: Path):
    shown = run(
        "prune", "a.safetensors", *ARCH, *SOME, "--sparsity", "0", "--repair", "remove-bias", "--repair", "reshift",
        "--out", "whole.safetensors", "--report", "whole", cwd=folder,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "accuracy on validation: unrepaired 0." in shown.stdout
    assert "none is better, so that nothing was repaired" in shown.stdout
    written, given = (load_file(folder / name) for name in ("whole.safetensors", "a.safetensors"))
    assert all(torch.equal(written[key], value) for key, value in given.items())
    assert "repairs tried" in (folder / "whole" / "report.html").read_text()


def test_everything_that_is_wrong_is_said_at_once(folder: Path):
    shown = run("prune", "a.safetensors", "b.safetensors", *ARCH, "--out", "x.bin", cwd=folder)
    assert shown.returncode == 2
    for words in ("one checkpoint is needed, not 2", "--out x.bin", "--data is needed"):
        assert words in shown.stderr
    shown = run("prune", "a.safetensors", *ARCH, *SOME, "--method", "wand", cwd=folder)
    assert shown.returncode == 2 and "did you mean 'wanda'" in shown.stderr
    shown = run("prune", "a.safetensors", *ARCH, *SOME, cwd=folder)
    assert "sparsity=, or mask=" in shown.stderr
    for page, words in (("a.safetensors", "File exists"), ("page.html", "hint: --report page")):
        half = ["--sparsity", ".5", "--report", page]
        shown = run("prune", "a.safetensors", *ARCH, *SOME, *half, cwd=folder)
        assert shown.returncode == 2 and f"--report {page}" in shown.stderr and words in shown.stderr
