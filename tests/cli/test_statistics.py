"""`isthmus statistics`, and `isthmus merge` with what it wrote."""

import json
from pathlib import Path

import pytest
import torch
from command_line import ARCH, run
from safetensors.torch import load_file, save_file

from isthmus import fisher_information, merge, zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("statistics")
    for seed in (1, 2):
        save_file(zoo.init(zoo.demo_vgg(base=4), seed).state_dict(), made / f"{'ab'[seed - 1]}.safetensors")
    return made


SOME = ["--data", "digits", "--calibration", "40"]


def test_files_of_statistics_are_what_python_gathers_and_merge_reads_them(folder: Path):
    for name in "ab":
        shown = run(
            "statistics", f"{name}.safetensors", *ARCH, *SOME, "--out", f"f{name}.safetensors", "--json", cwd=folder
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)["settings"]["examples"] == 40
    files = [word for name in "ab" for word in ("--statistics", f"f{name}.safetensors")]
    shown = run("merge", "a.safetensors", "b.safetensors", "--method", "fisher", *files, cwd=folder)
    assert shown.returncode == 0, shown.stderr
    models = [load_file(folder / f"{name}.safetensors") for name in "ab"]
    loader = zoo.open_data("digits").split(seed=0).loader("train", batch_size=250, limit=40)
    known = [fisher_information(zoo.demo_vgg(base=4), loader, weights=m) for m in models]
    for found, name in zip(known, "ab", strict=True):
        written = load_file(folder / f"f{name}.safetensors")
        assert all(torch.equal(written[key], found[key]) for key in found)
    merged = load_file(folder / "merged.safetensors")
    expected = merge(models, combine="fisher", statistics=known).weights
    assert all(torch.equal(merged[key], value) for key, value in expected.items())


def test_merge_gathers_from_data_and_keeps_what_is_skipped(folder: Path):
    for method in ("fisher", "reg-mean"):
        shown = run(
            "merge", "a.safetensors", "b.safetensors", *ARCH, *SOME, "--method", method,
            "--skip", "classifier.*", "--out", "own.safetensors", "--json", cwd=folder,
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)["settings"]["statistics.examples"] == 40
        first, merged = load_file(folder / "a.safetensors"), load_file(folder / "own.safetensors")
        assert torch.equal(merged["classifier.weight"], first["classifier.weight"])
        assert not torch.equal(merged["features.0.weight"], first["features.0.weight"])


def test_gram_matrices_are_written(folder: Path):
    shown = run(
        "statistics", "a.safetensors", *ARCH, *SOME, "--kind", "gram", "--out", "g.safetensors", cwd=folder
    )
    assert shown.returncode == 0, shown.stderr
    assert load_file(folder / "g.safetensors")["features.2.weight"].shape == (36, 36)


def test_everything_that_is_wrong_is_said_at_once(folder: Path):
    shown = run("statistics", "a.safetensors", "b.safetensors", "--kind", "odd", "--out", "x.bin", cwd=folder)
    assert shown.returncode == 2
    for words in ("one checkpoint is needed, not 2", "--kind odd", "x.bin: statistics are written"):
        assert words in shown.stderr
    shown = run("statistics", "a.safetensors", "--kind", "gram", "--draws", "3", cwd=folder)
    assert "--draws is for --kind fisher" in shown.stderr
