"""Indices that lead elsewhere, and shards that do not hold what the index says."""

import json
from pathlib import Path

import pytest
import torch

from isthmus import weights
from isthmus.errors import WeightsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint beside a file that an index must not reach."""
    weights.save({"secret": torch.ones(1)}, tmp_path / "secret.safetensors")
    weights.save({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "in" / "one.safetensors")
    weights.save({"c": torch.ones(1)}, tmp_path / "in" / "two.safetensors")
    return tmp_path / "in"


def index(folder: Path, content: object) -> Path:
    file = folder / "model.safetensors.index.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "..", ".", "", "sub/x.safetensors", "..\\secret.safetensors", "a\0b", 3, None],
)
def test_an_index_cannot_lead_out_of_its_folder(shard: object, folder: Path):
    file = index(folder, {"weight_map": {"a": "one.safetensors", "secret": shard}})
    with pytest.raises(WeightsError, match="names shards that are not files beside it") as caught:
        weights.open(file)
    assert caught.value.where == (f"secret    {shard!r}",)


def test_nor_by_an_absolute_path(folder: Path):
    file = index(folder, {"weight_map": {"secret": str(folder.parent / "secret.safetensors")}})
    with pytest.raises(WeightsError, match="not files beside it"):
        weights.open(file)


def test_every_disagreement_is_listed(folder: Path):
    file = index(
        folder, {"weight_map": {"a": "one.safetensors", "c": "one.safetensors", "d": "two.safetensors"}}
    )
    with pytest.raises(WeightsError, match="do not agree") as caught:
        weights.open(file)
    assert caught.value.where == (
        "c    listed in one.safetensors, not there",
        "d    listed in two.safetensors, not there",
        "b    in one.safetensors, not listed there",
        "c    in two.safetensors, not listed there",
    )


def test_a_shard_that_is_not_there(folder: Path):
    file = index(folder, {"weight_map": {"a": "three.safetensors"}})
    with pytest.raises(WeightsError, match=r"three\.safetensors does not exist"):
        weights.open(file)


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "{}", '{"weight_map": {}}', '{"weight_map": 3}', "[" * 100_000, "\ud800"]
)
def test_an_index_that_is_none(content: str, folder: Path):
    file = folder / "model.safetensors.index.json"
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(WeightsError, match=r"index\.json"):
        weights.open(file)


def test_an_empty_folder(tmp_path: Path):
    with pytest.raises(WeightsError, match="a folder without a checkpoint"):
        weights.open(tmp_path)
