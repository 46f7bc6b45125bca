"""Which tensor goes where, known from headers alone; a folder that is whole or absent."""

import json
from pathlib import Path

import pytest
import torch

from isthmus import weights
from isthmus.errors import WeightsError

F32 = torch.float32


def test_shards_are_filled_in_order():
    plan = weights.lay_out(
        [("a", F32, (3,)), ("b", F32, (10,)), ("c", F32, (1,)), ("d", F32, (2,))], shard_size=16
    )
    assert [sorted(s.entries) for s in plan.shards] == [["a"], ["b"], ["c", "d"]]
    assert plan.shards[0].file == "model-00001-of-00003.safetensors"
    assert plan.index is not None
    assert json.loads(plan.index) == {
        "metadata": {"total_size": 64},
        "weight_map": {
            n: f"model-0000{i}-of-00003.safetensors" for n, i in zip("abcd", (1, 2, 3, 3), strict=True)
        },
    }
    assert plan.size == sum(s.size for s in plan.shards) + len(plan.index)


def test_one_shard_is_a_file_without_an_index():
    plan = weights.lay_out([("a", F32, ())], shard_size=1, stem="adapter_model")
    assert [s.file for s in plan.shards] == ["adapter_model.safetensors"]
    assert plan.index is None


def test_what_cannot_be_planned_is_all_said():
    tensors = [
        ("a", F32, ()),
        ("a", F32, ()),
        ("__metadata__", F32, ()),
        ("\ud800", F32, ()),
        ("q", torch.complex128, ()),
    ]
    with pytest.raises(WeightsError, match="such a checkpoint cannot be written") as caught:
        weights.lay_out(tensors, shard_size=0)
    assert len(caught.value.where) == 5
    with pytest.raises(WeightsError, match="it has no tensors"):
        weights.lay_out([], shard_size=1)


def test_a_draft_that_is_not_complete_is_not_published(tmp_path: Path):
    plan = weights.lay_out([("a", F32, (2,)), ("b", F32, (2,))], shard_size=100)
    draft = weights.Draft(tmp_path / "out", plan, "key")
    draft.files[0].write("a", 0, torch.ones(2))
    draft.files[0].enter({"a": "1"})
    with pytest.raises(WeightsError, match="is not complete") as caught:
        draft.publish()
    assert caught.value.where == ("b    not written",)
    draft.close()
    assert weights.Draft(tmp_path / "out", plan, "key").finished == {"a"}


def test_a_draft_by_hand_is_what_save_writes(tmp_path: Path):
    tensors = {"b": torch.randn(5), "a": torch.randn(2, 3).bfloat16()}
    plan = weights.lay_out([(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()], shard_size=100)
    draft = weights.Draft(tmp_path / "deep" / "er" / "out", plan, "key")
    for name, tensor in tensors.items():
        flat = tensor.reshape(-1)
        draft.files[0].write(name, 2, flat[2:])
        draft.files[0].write(name, 0, flat[:2])
    draft.files[0].enter(dict.fromkeys(tensors, ""))
    draft.publish()
    weights.save(tensors, tmp_path / "same.safetensors")
    assert (draft.out / "model.safetensors").read_bytes() == (tmp_path / "same.safetensors").read_bytes()
    assert [f.name for f in (tmp_path / "deep" / "er").iterdir()] == ["out"]


@pytest.mark.parametrize("change", range(0, 23, 3))
def test_a_checksum_sees_every_byte(change: int):
    data = torch.arange(23, dtype=torch.uint8)
    other = data.clone()
    other[change] += 1
    assert weights.checksum(data) != weights.checksum(other)
