"""Every kind of checkpoint opens as the same mapping."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from isthmus import weights
from isthmus.errors import WeightsError

Tensors = dict[str, Tensor]


def shard(folder: Path, suffix: str = ".safetensors") -> Tensors:
    """Two shards and their index, as hubs serve them."""
    tensors = {f"layers.{i}.weight": torch.full((2,), float(i)) for i in range(4)}
    weight_map = {}
    for n in range(2):
        name = f"model-{n + 1:05}-of-00002{suffix}"
        part = dict(list(tensors.items())[2 * n : 2 * n + 2])
        weight_map |= dict.fromkeys(part, name)
        if suffix == ".bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name, {"format": "pt", "part": str(n)})
    index = {"metadata": {"total_size": 32}, "weight_map": weight_map}
    (folder / f"model{suffix}.index.json").write_text(json.dumps(index))
    return tensors


def assert_holds(found: Mapping[str, Tensor], expected: Tensors) -> None:
    assert list(found) == sorted(expected)
    assert len(found) == len(expected)
    assert weights.digest(found) == weights.digest(expected)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_save(suffix: str, zipped: bool, tensors: Tensors, tmp_path: Path):
    path = tmp_path / f"model{suffix}"
    if not zipped:
        tensors.pop("eight")  # older than float8
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    assert_holds(weights.open(path), tensors)
    assert not any(t.requires_grad for t in weights.load(path).values())
    assert weights.metadata(path) == {}


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_training_checkpoint_is_unwrapped(wrapper: str, tmp_path: Path):
    model = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, wrapper: model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    assert_holds(weights.open(path), model.state_dict())


@pytest.mark.parametrize(
    "rival",
    [{"ema": {"weight": torch.ones(1)}}, {"bias": torch.ones(1)}, {"model": {"weight": torch.ones(1)}}],
)
def test_two_sets_of_weights_are_not_chosen_between(rival: dict[str, object], tmp_path: Path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(1)}, **rival}, path)
    with pytest.raises(WeightsError, match="more than one set of weights") as caught:
        weights.open(path)
    assert caught.value.where == ("state_dict", *rival)


def test_values_that_are_no_tensors_are_named(tmp_path: Path):
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.ones(1), "steps": 3, "name": "best", 5: torch.ones(1)}, path)
    with pytest.raises(WeightsError, match="values that are no tensors") as caught:
        weights.open(path)
    assert caught.value.where == ("steps    int", "name    str", "5    Tensor")


def test_tensors_that_are_not_plain_numbers_are_named(tmp_path: Path):
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.ones(1), "sparse": torch.eye(2).to_sparse()}, path)
    with pytest.raises(WeightsError, match="not plain numbers") as caught:
        weights.open(path)
    assert caught.value.where == ("sparse    is sparse or quantized: make it dense first",)


@pytest.mark.parametrize("content", [torch.ones(2), [torch.ones(2)], 3])
def test_what_has_no_names_is_no_checkpoint(content: object, tmp_path: Path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="holds no named tensors"):
        weights.open(tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_by_index_or_folder(suffix: str, tmp_path: Path):
    tensors = shard(tmp_path, suffix)
    for path in (tmp_path, tmp_path / f"model{suffix}.index.json"):
        assert_holds(weights.open(path), tensors)
        assert_holds(weights.load(path), tensors)
    with pytest.raises(KeyError):
        weights.open(tmp_path)["nothing"]


def test_shards_tell_what_they_agree_on(tmp_path: Path):
    shard(tmp_path)
    assert weights.metadata(tmp_path) == {"format": "pt"}


def test_shards_may_be_links_as_in_the_hubs_cache(tmp_path: Path):
    (tmp_path / "snapshot").mkdir()
    tensors = shard(tmp_path / "snapshot")
    for file in (tmp_path / "snapshot").glob("*.safetensors"):
        blob = file.rename(tmp_path / f"blob-{file.name}")
        file.symlink_to(blob)
    assert_holds(weights.open(tmp_path / "snapshot"), tensors)


def test_a_folder_means_its_safetensors(tmp_path: Path):
    torch.save({"old": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    weights.save({"new": torch.ones(1)}, tmp_path / "model.safetensors")
    assert list(weights.open(tmp_path)) == ["new"]


def test_a_folder_with_two_checkpoints_means_neither(tmp_path: Path):
    for name in ("a", "b"):
        weights.save({"w": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError) as caught:
        weights.open(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds 2 checkpoints\n  a.safetensors\n  b.safetensors\n\nhint: name one of them"
    )


def test_opening_reads_no_tensor_and_the_file_cannot_be_changed_through_it(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    weights.save({"a": torch.zeros(4)}, path)
    lazy = weights.open(path)
    lazy["a"][0] = 1
    assert weights.open(path)["a"][0] == 0


def test_load_is_a_copy_of_its_own(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    weights.save({"a": torch.zeros(4)}, path)
    tensors = weights.load(path)
    path.write_bytes(b"\xff" * path.stat().st_size)  # in place: an open map would see this
    assert tensors["a"].tolist() == [0, 0, 0, 0]


def test_unknown_names_are_key_errors(tensors: Tensors, tmp_path: Path):
    weights.save(tensors, tmp_path / "a.safetensors")
    lazy = weights.open(tmp_path / "a.safetensors")
    assert "nothing" not in lazy
    with pytest.raises(KeyError, match="nothing"):
        lazy["nothing"]


def test_a_pickle_is_mapped_and_so_takes_no_memory(tmp_path: Path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(1000), "v": torch.ones(3)}, path)
    found = weights.open(path)
    content = bytearray(path.read_bytes())
    at = -(-content.index(bytes(4000)) // 64) * 64  # tensors begin at multiples of 64
    with path.open("r+b") as file:
        file.seek(at + 64)
        file.write(b"\x00\x00\x80\x3f")
    assert found["w"].sum() == 1, "what is changed in the file shows"
    found["v"][0] = 5
    assert weights.open(path)["v"][0] == 1, "what is changed in memory does not"


@pytest.mark.parametrize("name", ["x" * 5000, "org/" + "x" * 300, "a\0b"], ids=["long", "long name", "NUL"])
def test_a_path_that_no_disk_can_have(name: str):
    with pytest.raises(WeightsError):
        weights.open(name)
