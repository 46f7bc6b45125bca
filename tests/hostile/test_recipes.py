"""Broken and lying models behind a recipe: an error of ours by the plan or by the run, and never an output."""

import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import isthmus
from isthmus import weights
from isthmus.errors import IsthmusError, UnsafeFileError, WeightsError

from .test_safetensors import LIES

RECIPE = "models: [{model: sound}, {model: hostile}]\nmerge_method: linear\nparameters: {weight: 1}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    weights.save({"a": torch.ones(2)}, tmp_path / "sound" / "model.safetensors")
    (tmp_path / "hostile").mkdir()
    (tmp_path / "recipe.yml").write_text(RECIPE)
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(IsthmusError) as caught:
        isthmus.plan("recipe.yml").run("out")
    assert {p.name for p in folder.iterdir()} <= {"sound", "hostile", "recipe.yml", "secret.safetensors"}
    return caught.value.render()


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_a_lying_file(content: bytes, folder: Path):
    (folder / "hostile" / "model.safetensors").write_bytes(content)
    assert "hostile" in refused(folder)


def _nan(file: Path) -> None:
    weights.save({"a": torch.tensor([1.0, float("nan")])}, file)


def _infinite(file: Path) -> None:
    weights.save({"a": torch.tensor([1.0, float("-inf")])}, file)


def _longer(file: Path) -> None:
    weights.save({"a": torch.ones(3)}, file)


def _integers(file: Path) -> None:
    weights.save({"a": torch.ones(2, dtype=torch.int64)}, file)


def _another(file: Path) -> None:
    weights.save({"b": torch.ones(2)}, file)


def _scalar(file: Path) -> None:
    weights.save({"a": torch.tensor(1.0)}, file)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_nan, "not finite"),
        (_infinite, "not finite"),
        (_longer, "shapes differ"),
        (_integers, "integers in one model are weights in another"),
        (_another, "missing in"),
        (_scalar, "shapes differ"),
    ],
)
def test_a_tensor_that_does_not_fit(make: Callable[[Path], None], words: str, folder: Path):
    make(folder / "hostile" / "model.safetensors")
    assert words in refused(folder)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "..\\secret.safetensors", "", "."])
def test_an_index_leads_nowhere_else(shard: str, folder: Path):
    weights.save({"a": torch.ones(2)}, folder / "secret.safetensors")
    index = {"weight_map": {"a": shard}}
    (folder / "hostile" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "not files beside it" in refused(folder)


def test_a_pickle_runs_nothing(folder: Path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(folder / "it ran"),)

    (folder / "hostile" / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb()}))
    with pytest.raises((UnsafeFileError, WeightsError, IsthmusError)):
        isthmus.plan("recipe.yml").run("out")
    assert not (folder / "it ran").exists() and not (folder / "out").exists()


def test_a_file_that_is_cut_off_between_plan_and_run(folder: Path):
    file = folder / "hostile" / "model.safetensors"
    weights.save({"a": torch.ones(2)}, file)
    plan = isthmus.plan("recipe.yml")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="hostile"):
        plan.run("out")
    assert not (folder / "out").exists()


def test_names_from_other_scripts_empty_and_scalar_tensors_are_merged(folder: Path):
    for name, value in (("sound", 1.0), ("hostile", 3.0)):
        held = {"ß.层.\u202e": torch.full((2,), value), "none": torch.empty(0, 3), "one": torch.tensor(value)}
        weights.save(held, folder / name / "model.safetensors")
    plan = isthmus.plan("recipe.yml")
    assert len(plan.table().splitlines()) == 5
    found = weights.load(plan.run("out").folder)
    assert found["ß.层.\u202e"].tolist() == [2, 2]
    assert found["none"].shape == (0, 3)
    assert found["one"].item() == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"\xff"), ("config.json", b"[]"), ("config.json", b'{"a":' * 100_000),
        ("config.json", b'{"num_hidden_layers": "x", "vocab_size": -1, "text_config": 3}'),
        ("README.md", b"---\n&a [*a]\n---\n"), ("README.md", b"---\nlicense: !!python/object:os.system x\n---\n"),
        ("tokenizer.json", b"{"), ("model.safetensors.index.json", b"{}"),
    ],
)  # fmt: skip
def test_what_lies_beside_a_model(name: str, content: bytes, folder: Path):
    weights.save({"a": torch.ones(2)}, folder / "hostile" / "model.safetensors")
    (folder / "hostile" / name).write_bytes(content)
    with suppress(IsthmusError):
        isthmus.plan("recipe.yml").run("out")
    if (folder / "out").exists():
        assert weights.load("out")["a"].tolist() == [1, 1]
        assert "os.system" not in (folder / "out" / "README.md").read_text()
