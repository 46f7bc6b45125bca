"""Checkpoints behind URLs, on the hub, in GGUF; what is told of one from its headers alone."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from isthmus import weights
from isthmus.errors import WeightsError
from isthmus.weights.bytes import LocalBytes, Url
from isthmus.weights.hub import is_hub_id

fsspec = pytest.importorskip("fsspec")
Tensors = dict[str, Tensor]


@pytest.fixture
def remote(tmp_path: Path) -> str:
    """A sharded checkpoint in fsspec's memory."""
    shards = {
        "one": {"a": torch.arange(6.0).view(2, 3)},
        "two": {"b": torch.ones(2).bfloat16(), "none": torch.empty(0)},
    }
    memory = fsspec.filesystem("memory")
    memory.rm("/models", recursive=True) if memory.exists("/models") else None
    for name, tensors in shards.items():
        weights.save(tensors, tmp_path / f"{name}.safetensors")
        memory.pipe(f"/models/org/{name}.safetensors", (tmp_path / f"{name}.safetensors").read_bytes())
    index = {"weight_map": {t: f"{n}.safetensors" for n, tensors in shards.items() for t in tensors}}
    memory.pipe("/models/org/model.safetensors.index.json", json.dumps(index).encode())
    return "memory://models/org"


@pytest.mark.parametrize("end", ["", "/model.safetensors.index.json"])
def test_a_url_is_read_where_it_is(remote: str, end: str):
    found = weights.open(remote + end)
    assert list(found) == ["a", "b", "none"]
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert weights.stored(found, "a").elements(2, 5).tolist() == [2, 3, 4]
    assert weights.headers(remote + end)["b"] == weights.Entry(
        torch.bfloat16, (2,), *[getattr(weights.headers(remote)["b"], k) for k in ("start", "stop")]
    )
    assert weights.metadata(remote) == {"format": "pt"}
    assert [Path(i.file).name for i in weights.identify(remote)] == ["one.safetensors", "two.safetensors"]


def test_a_url_that_is_not_there_or_of_another_kind(remote: str):
    with pytest.raises(WeightsError, match="does not exist"):
        weights.open("memory://models/nothing.safetensors")
    with pytest.raises(WeightsError, match="nothing here understands"):
        weights.open("nowhere://a/b.safetensors")
    fsspec.filesystem("memory").pipe("/models/a.bin", b"x")
    with pytest.raises(WeightsError, match="can only be read as a whole"):
        weights.open("memory://models/a.bin")


def test_a_file_behind_a_url_that_lies(remote: str):
    memory = fsspec.filesystem("memory")
    memory.pipe("/models/cut.safetensors", memory.cat_file("/models/org/one.safetensors")[:-1])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        weights.open("memory://models/cut.safetensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        Url("memory://models/absent").read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", True),
        ("org/name.v2@refs/pr/1", True),
        ("name", False),
        ("./org/name", False),
        ("org/name/file.safetensors", False),
        ("../name", False),
        ("org/na me", False),
    ],
)
def test_names_on_the_hub(text: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(text) == expected


def test_a_path_with_a_mistake_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(WeightsError, match="does not exist"):
        weights.open("models/tpyo")


def test_a_model_on_the_hub_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    asked: list[tuple[object, ...]] = []
    weights.save({"w": torch.ones(2)}, tmp_path / "cache" / "model.safetensors")

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str], **_: object) -> str:
        asked.append((name, revision, allow_patterns[0]))
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert list(weights.open("org/name@main")) == ["w"]
    assert asked == [("org/name", "main", "*.safetensors")]


def test_a_model_that_the_hub_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    def snapshot_download(*_: object, **__: object) -> str:
        raise OSError("404: no such repository\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="the hub does not give it") as caught:
        weights.open("org/name")
    assert caught.value.where == ("OSError: 404: no such repository",)


def test_the_hubs_cache_tells_the_hash_of_a_file(tmp_path: Path):
    weights.save({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    name = "0123456789abcdef" * 4
    blob = (tmp_path / "a.safetensors").rename(tmp_path / name)
    (tmp_path / "model.safetensors").symlink_to(blob)
    (found,) = weights.identify(tmp_path / "model.safetensors")
    assert found.content == name
    assert found.size == blob.stat().st_size
    assert len(found.header) == 64


def test_identities_change_with_the_file(tmp_path: Path):
    for suffix in (".safetensors", ".pt"):
        path = tmp_path / f"a{suffix}"
        seen = set()
        for value in range(2):
            if suffix == ".pt":
                torch.save({"w": torch.full((2,), float(value))}, path)
            else:
                weights.save({"w": torch.full((2,), float(value))}, path)
            seen.add(weights.identify(path))
        assert len(seen) == 2, suffix
    assert weights.identify({"w": torch.ones(1)}) == ()


@pytest.fixture
def quantised(tmp_path: Path) -> tuple[Path, Tensors]:
    """A GGUF file with plain and quantised tensors."""
    chance = np.random.default_rng(0)
    plain, wide = (
        chance.normal(size=(3, 5)).astype(np.float16),
        chance.normal(size=(4, 64)).astype(np.float32),
    )
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("plain", plain)
    packed = gguf.quantize(wide, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    again = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    return path, {"plain": torch.from_numpy(plain), "packed": torch.from_numpy(again)}


def test_gguf_is_read_and_dequantised(quantised: tuple[Path, Tensors]):
    path, expected = quantised
    found = weights.open(path)
    assert list(found) == ["packed", "plain"]
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
        assert torch.equal(weights.stored(found, name).elements(3, 14), tensor.reshape(-1)[3:14])
    assert weights.headers(path)["packed"] == weights.Entry(torch.float32, (4, 64))
    assert weights.identify(path)[0].size == path.stat().st_size


@pytest.mark.parametrize("part", [0.001, 0.2, 0.6, 0.9])
def test_a_gguf_file_that_is_cut_short(part: float, quantised: tuple[Path, Tensors]):
    path, _ = quantised
    content = path.read_bytes()
    path.write_bytes(content[: max(int(part * len(content)), 1)])
    with pytest.raises(WeightsError, match=r"model\.gguf is not a readable GGUF file"):
        weights.open(path)


def test_a_header_without_padding_is_read(tmp_path: Path):
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} '
    path = tmp_path / "old.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + torch.tensor([1.0, 2.0]).numpy().tobytes())
    assert (8 + len(header)) % 4
    assert weights.open(path)["w"].tolist() == [1, 2]


def test_pages_that_were_read_can_be_let_go(tmp_path: Path):
    weights.save({"w": torch.arange(100_000.0)}, tmp_path / "a.safetensors")
    lies = weights.stored(weights.open(tmp_path / "a.safetensors"), "w")
    before = lies.elements(0, 100_000)
    lies.expect(0, 200_000)  # what lies behind the file's end does not matter
    lies.drop(0, 100_000)
    lies.drop(5, 5)
    assert torch.equal(before, torch.arange(100_000.0)), "they come back from the file"


def test_a_file_that_vanishes_is_said(tmp_path: Path):
    with pytest.raises(WeightsError, match="cannot be read"):
        LocalBytes(tmp_path / "nothing")
