"""Pickles with code in them: refused, named, and nothing is run."""

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from isthmus import weights
from isthmus.errors import UnsafeFileError, WeightsError


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, call: Callable[[str], object], argument: str):
        self.call, self.argument = call, argument

    def __reduce__(self) -> tuple[object, ...]:
        return self.call, (self.argument,)


@pytest.fixture
def fuse(tmp_path: Path) -> Path:
    """A file that exists once a bomb has gone off; checked after each test."""
    fuse = tmp_path / "boom"
    yield fuse
    assert not fuse.exists(), "code in the file was run"


def test_the_bomb_is_real(tmp_path: Path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Bomb(os.mkdir, str(tmp_path / "boom"))))
    pickle.loads((tmp_path / "a.pkl").read_bytes())
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_a_pickle_with_code_is_refused_and_the_code_named(
    how: str, protocol: int, suffix: str, fuse: Path, tmp_path: Path
):
    path = tmp_path / f"model{suffix}"
    content = {"w": torch.ones(2), "state": Bomb(os.mkdir, str(fuse))}
    if how == "bare":
        path.write_bytes(pickle.dumps(content["state"], protocol=protocol))
    else:
        zipped = how == "zip"
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    for read in (weights.open, weights.load, weights.metadata):
        with pytest.raises(UnsafeFileError, match="was refused: loading it would run code") as caught:
            read(path)
        assert caught.value.where == ("it calls posix.mkdir",)


def test_every_call_is_named(fuse: Path, tmp_path: Path):
    torch.save([Bomb(os.mkdir, str(fuse)), Bomb(os.system, "true")], tmp_path / "a.pt")
    with pytest.raises(UnsafeFileError) as caught:
        weights.open(tmp_path / "a.pt")
    assert caught.value.where == ("it calls posix.mkdir", "it calls posix.system")


def test_the_oldest_opcodes(fuse: Path, tmp_path: Path):
    (tmp_path / "a.pt").write_bytes(f"(S'{fuse}'\nios\nmkdir\n.".encode())
    with pytest.raises(UnsafeFileError, match=r"it calls os\.mkdir"):
        weights.open(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"w": torch.ones(1), "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        ({"w": np.ones(3)}, "numpy"),
    ],
)
def test_objects_are_code_too(content: object, named: str, tmp_path: Path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UnsafeFileError, match=named):
        weights.open(tmp_path / "a.pt")


def test_a_bomb_among_shards(fuse: Path, tmp_path: Path):
    torch.save({"w": Bomb(os.mkdir, str(fuse))}, tmp_path / "one.bin")
    (tmp_path / "model.bin.index.json").write_text('{"weight_map": {"w": "one.bin"}}')
    with pytest.raises(UnsafeFileError, match=r"one\.bin"):
        weights.open(tmp_path)


def test_an_archive_of_code(fuse: Path, tmp_path: Path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:  # shaped like TorchScript
        archive.writestr("x/constants.pkl", pickle.dumps((), protocol=2))
        archive.writestr("x/data.pkl", pickle.dumps(Bomb(os.mkdir, str(fuse)), protocol=2))
        archive.writestr("x/version", "3\n")
    with pytest.raises(UnsafeFileError, match=r"posix\.mkdir"):
        weights.open(path)


def sound(tmp_path: Path, zipped: bool = True) -> bytes:
    torch.save({"w": torch.arange(100.0)}, tmp_path / "sound", _use_new_zipfile_serialization=zipped)
    return (tmp_path / "sound").read_bytes()


def test_torchs_advice_to_load_unsafely_is_not_passed_on(tmp_path: Path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(WeightsError) as caught:
        weights.open(tmp_path / "a.pt")
    assert caught.value.where[0].startswith("Unsupported operand")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_cut_short(part: float, zipped: bool, tmp_path: Path):
    path = tmp_path / "a.pt"
    content = sound(tmp_path, zipped)
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(WeightsError, match=r"a\.pt") as caught:
        weights.open(path)
    assert not isinstance(caught.value, UnsafeFileError)


def test_a_storage_shorter_than_its_tensor(tmp_path: Path):
    sound(tmp_path)
    with zipfile.ZipFile(tmp_path / "sound") as old, zipfile.ZipFile(tmp_path / "a.pt", "w") as new:
        for item in old.infolist():
            content = old.read(item)
            new.writestr(item.filename, content[:16] if item.filename.endswith("data/0") else content)
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        weights.open(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content", [b"hello world " * 9, bytes(100), b"PK\x03\x04", b"PK\x05\x06" + bytes(18)]
)
def test_another_format_in_disguise(content: bytes, tmp_path: Path):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        weights.open(tmp_path / "a.pt")


def test_storages_that_claim_each_others_bytes(tmp_path: Path):
    """Mapped without a look, one of them would show the bytes of the other."""
    torch.save({"a": torch.zeros(4), "b": torch.ones(400)}, tmp_path / "sound")
    with zipfile.ZipFile(tmp_path / "sound") as old, zipfile.ZipFile(tmp_path / "a.pt", "w") as new:
        for item in old.infolist():
            name = item.filename
            other = name.replace("data/0", "data/x").replace("data/1", "data/0").replace("data/x", "data/1")
            new.writestr(other, old.read(item))
    try:
        found = weights.load(tmp_path / "a.pt")
    except WeightsError:
        return
    assert not found["a"].any() and found["b"].all(), "never a plausible wrong tensor"
