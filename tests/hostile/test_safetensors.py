"""Safetensors files that are broken, or lie: each is refused by name, none crashes or loses a tensor."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from isthmus import weights
from isthmus.errors import WeightsError

SOUND = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3)})


def file_of(header: dict[str, object] | bytes, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


ONE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
LIES = {
    "offsets past the end": file_of({"a": entry([4], 0, 16)}, bytes(8)),
    "bytes that belong to nothing": file_of({"a": entry([2], 0, 8)}, bytes(16)),
    "tensors that overlap": file_of({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "a hole between tensors": file_of({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "offsets backwards": file_of({"a": entry([2], 8, 0)}, bytes(8)),
    "a shape larger than its bytes": file_of({"a": entry([3], 0, 8)}, bytes(8)),
    "a shape that overflows": file_of({"a": entry([2**40, 2**40], 0, 8)}, bytes(8)),
    "a negative shape": file_of({"a": entry([-2], 0, 8)}, bytes(8)),
    "an unknown dtype": file_of({"a": entry([2], 0, 8, "F99")}, bytes(8)),
    "a dtype torch does not compute with": file_of({"a": entry([2], 0, 1, "F4")}, bytes(1)),
    "a header length past the end": file_of(b"{}", b"", length=1000),
    "a header length past all memory": file_of(b"{}", b"", length=2**63),
    "a header that is not JSON": file_of(b"{x}", b""),
    "a header that is not UTF-8": file_of(b"\xff\xfe", b""),
    "a header nested too deep": file_of(b'{"a":' * 100_000, b""),
    "no tensors": file_of(b"{}", b""),
    "a name twice, one of them hidden": file_of(ONE + b"," + ONE[1:] + b"}", bytes(8)),
    "nothing": b"",
    "eight bytes": bytes(8),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "a pickle": b"\x80\x02}q\x00.",
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_a_lie_is_refused_and_the_file_is_named(content: bytes, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for read in (weights.open, weights.load, weights.metadata):
        with pytest.raises(WeightsError, match=r"a\.safetensors"):
            read(path)


def test_a_name_that_stands_twice_is_named(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(LIES["a name twice, one of them hidden"])
    with pytest.raises(WeightsError, match="names tensors twice") as caught:
        weights.open(path)
    assert caught.value.where == ("a",)


@pytest.mark.parametrize("length", range(0, len(SOUND), 7))
def test_cut_short_anywhere(length: int, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(SOUND[:length])
    with pytest.raises(WeightsError):
        weights.open(path)


@given(st.integers(0, len(SOUND) - 1), st.integers(1, 255))
def test_any_byte_changed_is_an_error_of_ours_or_other_tensors(
    tmp_path_factory: pytest.TempPathFactory, position: int, change: int
):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    content = bytearray(SOUND)
    content[position] ^= change
    path.write_bytes(content)
    try:
        tensors = weights.load(path)
    except WeightsError:
        return
    assert weights.digest(tensors) != weights.digest(
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3)}
    )


@pytest.mark.parametrize("name", ["folder.safetensors", "absent.safetensors", "notes.txt", "/dev/null"])
def test_what_is_no_checkpoint_at_all(name: str, tmp_path: Path):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match=name):
        weights.open(tmp_path / name)
