"""Disks that are full, read-only or lie: said before the work where it can be known, never a plausible wrong file."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import isthmus
from isthmus import weights
from isthmus.errors import InputError, WeightsError
from isthmus.weights import draft as drafts


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    for name in ("a", "b"):
        weights.save({"w": torch.randn(300_000), "v": torch.ones(3)}, tmp_path / name / "model.safetensors")
    return [tmp_path / "a", tmp_path / "b"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte, where the tests may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("may not mount a disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_too_small_is_said_before(models: list[Path], small_disk: Path):
    with pytest.raises(WeightsError, match=r"needs 1\.2 MB, and its disk has .* left"):
        isthmus.merge_files(models, small_disk / "out")
    assert not list(small_disk.iterdir())


def test_a_disk_that_lies_of_its_room_is_found_out_before(
    models: list[Path], small_disk: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(drafts.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
    with pytest.raises(WeightsError, match=r"cannot be written\n  No space left on device"):
        isthmus.merge_files(models, small_disk / "out")
    assert not list(small_disk.iterdir())


def test_saving_on_a_full_disk(small_disk: Path):
    with pytest.raises(WeightsError, match="No space left"):
        weights.save({"w": torch.ones(1 << 20)}, small_disk / "a.safetensors")
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up_on_the_way(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on disks that copy on write, where room that was set aside may be gone."""
    written = os.pwrite

    def full(handle: int, data: bytes, position: int) -> int:
        if position > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(handle, data[: max(len(data) // 2, 1)], position)  # and writes are short

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(WeightsError, match=r"cannot be written\n  No space left on device"):
            isthmus.merge_files(models, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = isthmus.merge_files(models, tmp_path / "out")
    assert weights.digest(weights.open(done.folder)) == weights.digest(
        isthmus.combine([weights.load(m) for m in models])
    )


def test_short_writes_lose_nothing(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = isthmus.merge_files(models, tmp_path / "whole").folder
    written = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda h, data, at: written(h, data[: max(len(data) // 3, 1)], at))
    done = isthmus.merge_files(models, tmp_path / "out")
    assert (done.folder / "model.safetensors").read_bytes() == (wanted / "model.safetensors").read_bytes()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a place that nobody can write")
def test_a_place_that_cannot_be_written_is_said_before(models: list[Path]):
    with pytest.raises(WeightsError, match="cannot be written"):
        isthmus.merge_files(models, "/proc/out")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_disk_is_said_before(
    code: int, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(WeightsError, match="cannot be written") as caught:
        isthmus.merge_files(models, tmp_path / "out")
    assert caught.value.where == (os.strerror(code),)


def test_a_path_through_a_file(models: list[Path], tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="is a file"):
        isthmus.merge_files(models, tmp_path / "file" / "out")
    with pytest.raises(WeightsError, match="is a file"):
        isthmus.merge_files(models, tmp_path / "file")


def test_a_source_that_is_cut_short_before_it_is_read(models: list[Path], tmp_path: Path):
    file = models[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        isthmus.merge_files(models, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_from_other_scripts_and_empty_tensors(tmp_path: Path):
    for name in ("модель", "模型"):
        tensors = {
            "слой.вес": torch.ones(3),
            "空": torch.empty(0, 4),
            "\n": torch.ones(1),
            "a b/../c": torch.ones(()),
        }
        weights.save(tensors, tmp_path / name / "model.safetensors")
    done = isthmus.merge_files([tmp_path / "модель", tmp_path / "模型"], tmp_path / "résultat")
    assert list(weights.open(done.folder)) == ["\n", "a b/../c", "слой.вес", "空"]


def test_integers_that_differ_are_refused(tmp_path: Path):
    for number in range(2):
        tensors = {
            "w": torch.ones(2),
            "ids": torch.tensor([1, number]),
            "bn.num_batches_tracked": torch.tensor(number),
        }
        weights.save(tensors, tmp_path / f"{number}.safetensors")
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    with pytest.raises(InputError, match="integer tensors differ") as caught:
        isthmus.merge_files(paths, tmp_path / "out")
    assert caught.value.where == ("ids (int64)",)


@pytest.mark.parametrize("dtype", ["floaty", "int32", torch.int8])
def test_a_dtype_that_is_none(dtype: object, models: list[Path], tmp_path: Path):
    with pytest.raises(InputError, match="no dtype of weights"):
        isthmus.merge_files(models, tmp_path / "out", dtype=dtype)
