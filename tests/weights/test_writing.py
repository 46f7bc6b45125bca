"""What is written can be read, by anyone, and is the same bytes each time."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as reference_bytes
from torch import Tensor

from isthmus import weights
from isthmus.errors import WeightsError
from isthmus.weights.dense import DTYPES

Tensors = dict[str, Tensor]


def assert_same(a: Tensors, b: Tensors) -> None:
    assert sorted(a) == sorted(b)
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert weights.digest({"": a[name]}) == weights.digest({"": b[name]}), name


def test_every_name_and_value_comes_back(tensors: Tensors, tmp_path: Path):
    path = tmp_path / "new" / "folder" / "model.safetensors"
    weights.save(tensors, path)
    assert_same(weights.load(path), tensors)
    assert_same(load_file(path), tensors)  # and to other tools


def test_the_layout_is_the_reference_writers(tensors: Tensors, tmp_path: Path):
    path = tmp_path / "model.safetensors"
    weights.save(tensors, path)
    plain = {name: t.detach().resolve_conj().clone().contiguous() for name, t in tensors.items()}
    assert path.read_bytes() == reference_bytes(plain, {"format": "pt"})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_are_kept_and_laid_out_as_the_reference_does(dtype: torch.dtype, tmp_path: Path):
    path = tmp_path / "model.safetensors"
    tensors = {"b": torch.ones(3).to(dtype), "a": torch.zeros(2), "c": torch.ones(2, dtype=torch.int8)}
    weights.save(tensors, path)
    assert path.read_bytes() == reference_bytes(tensors, {"format": "pt"})
    assert weights.open(path)["b"].dtype == dtype


def test_dtypes_among_each_other_are_laid_out_as_the_reference_does(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    tensors = {f"t{i}": torch.ones(3).to(dtype) for i, dtype in enumerate(DTYPES)}
    weights.save(tensors, path)
    assert path.read_bytes() == reference_bytes(tensors, {"format": "pt"})


def test_the_same_input_gives_the_same_bytes(tmp_path: Path):
    a, b = torch.ones(2), torch.zeros(3, dtype=torch.int64)
    notes = {name: name.upper() for name in "zyxabc"}
    weights.save({"a": a, "b": b}, tmp_path / "1.safetensors", notes)
    weights.save({"b": b, "a": a}, tmp_path / "2.safetensors", dict(reversed(notes.items())))
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    assert weights.metadata(tmp_path / "1.safetensors") == {"format": "pt", **notes}


def test_a_file_may_be_written_over_itself_while_it_is_open(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    weights.save({"a": torch.arange(1000.0)}, path)
    lazy = weights.open(path)
    weights.save({"a": lazy["a"] * 2}, path)
    assert lazy["a"][3] == 3, "the old file lives on where it is still open"
    assert weights.open(path)["a"][3] == 6


def test_tied_tensors_are_written_once_per_name(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    table = torch.randn(3)
    weights.save({"embed": table, "head": table}, path)
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["embed", "head"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), weights.atomic(path) as file:  # noqa: PT012
        file.write(b"half of the new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path):
    (tmp_path / "plain").touch()
    weights.save({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_all_that_cannot_be_written_is_said_at_once_and_nothing_is(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(WeightsError) as caught:
        weights.save(
            {
                "fine": torch.ones(1),
                "sparse": torch.eye(2).to_sparse(),
                "ghost": torch.ones(2, device="meta"),
                "wide": torch.ones(2, dtype=torch.complex128),
                "__metadata__": torch.ones(1),
                "\ud800": torch.ones(1),
            },
            path,
        )
    assert str(caught.value) == (
        f"5 of 6 tensors cannot be written to {path}\n"
        "  sparse    is sparse or quantized: make it dense first\n"
        "  ghost    is on the meta device: it has no values\n"
        "  wide    is of torch.complex128, which safetensors does not have\n"
        "  __metadata__    the format keeps this name for itself\n"
        "  '\\ud800'    is no valid Unicode"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [("model.pt", "does not end in .safetensors"), ("folder.safetensors", "is a folder")],
)
def test_where_it_cannot_go(name: str, message: str, tmp_path: Path):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(WeightsError, match=message):
        weights.save({"a": torch.ones(1)}, tmp_path / name)


def test_no_tensors_are_no_checkpoint(tmp_path: Path):
    with pytest.raises(WeightsError, match="there are no tensors to write"):
        weights.save({}, tmp_path / "a.safetensors")


def test_a_path_through_a_file_is_said(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="cannot be written"):
        weights.save({"a": torch.ones(1)}, tmp_path / "file" / "a.safetensors")
